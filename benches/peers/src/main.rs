//! Compares a registry with similar crates, prints tables, and writes the numbers and plots to a folder. `--help` lists the options.

mod arguments;
mod caption;
mod cargo;
mod document;
mod goals;
mod measure;
mod plot;
mod report;
mod sections;
mod valgrind;
mod waiting;

use arguments::{Options, Task};
use caption::Caption;
use measure::Pace;
use report::{Section, count_goals};
use sections::{PLANS, Plan};
use serde_json::json;
use std::any::Any;
use std::fmt::Write as _;
use std::fs;
use std::panic::catch_unwind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match arguments::parse() {
        Ok(Task::Measure(options)) => measure_all(&options),
        Ok(Task::Scenario(name, count)) => sections::scenario(&name, count),
        Ok(Task::Help) => {
            println!("{}", arguments::usage());
            Ok(())
        }
        Err(error) => Err(format!("{error}\n\n{}", arguments::usage())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn measure_all(options: &Options) -> Result<(), String> {
    fs::create_dir_all(&options.out).map_err(|error| format!("{}: {error}", options.out.display()))?;
    options.doc.as_deref().map_or(Ok(()), document::check)?;
    let caption = Caption::new();
    println!("{caption}");
    let pace = Pace { quick: options.quick };
    let sections: Vec<_> = PLANS.iter().filter(|plan| options.has(plan.name)).map(|plan| measure(plan, pace)).collect();
    let (met, missed) = count_goals(&sections);
    let count = if options.quick {
        "Quick run: the numbers have no meaning.".to_owned()
    } else {
        format!("{met} goals met, {missed} missed.")
    };
    println!("{count}");
    write_out(options, &caption, &sections)?;
    let Some(doc) = &options.doc else { return Ok(()) };
    let mut text = caption.to_string();
    for section in &sections {
        write!(text, "\n{section}").map_err(|error| error.to_string())?;
    }
    document::rewrite(doc, &format!("{text}{count}"))
}

fn measure(plan: &Plan, pace: Pace) -> Section {
    let mut outcome = catch_unwind(|| (plan.run)(pace)).unwrap_or_else(|panic| Err(panic_message(&*panic)));
    if pace.quick {
        // Removes the goals, because the numbers of a quick run have no meaning.
        outcome.iter_mut().flatten().for_each(|table| table.checks.clear());
    }
    let section = Section { name: plan.name, title: plan.title, outcome };
    print!("{section}");
    section
}

fn panic_message(panic: &dyn Any) -> String {
    let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
    format!("the section panicked: {}", message.unwrap_or("no message"))
}

fn write_out(options: &Options, caption: &Caption, sections: &[Section]) -> Result<(), String> {
    let all: Vec<_> = sections.iter().map(Section::json).collect();
    let numbers = json!({ "caption": caption.json(), "quick": options.quick, "sections": all });
    let file = options.out.join("peers.json");
    fs::write(&file, format!("{numbers:#}\n")).map_err(|error| format!("{}: {error}", file.display()))?;
    for section in sections {
        plot::draw(section, caption, &options.out).map_err(|error| format!("{}.svg: {error}", section.name))?;
    }
    Ok(())
}
