//! Stops a service under load, and prints how much work the service lost. Each variant of the service uses a different crate. `--help`
//! lists the options.

mod arguments;
#[path = "../../peers/src/cargo.rs"]
mod cargo;
#[path = "../../peers/src/document.rs"]
mod document;
mod report;
mod service;
mod stop;
mod variants;

use arguments::{Options, Task, USAGE};
use report::Results;
use std::process::ExitCode;
use variants::VARIANTS;

fn main() -> ExitCode {
    let done = match arguments::parse() {
        Ok(Task::Serve(variant)) => return (variant.main)(),
        Ok(Task::Compare(options)) => compare(&options),
        Ok(Task::Help) => {
            print!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(format!("{error}\n\n{USAGE}")),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::from(2)
    })
}

fn compare(options: &Options) -> Result<ExitCode, String> {
    options.doc.as_deref().map_or(Ok(()), document::check)?;
    let mut results: Vec<_> = VARIANTS.iter().map(Results::new).collect();
    for round in 0..options.stops {
        let seed = options.seed.wrapping_add(round.into());
        // The variants take turns, so that other load on the machine affects all variants.
        for each in &mut results {
            let stop = stop::stop(each.variant, seed)?;
            let (name, silent) = (each.variant.name, stop.lost_silently);
            eprintln!("stop {} of {}: {name} lost {silent} of {} jobs silently", round + 1, options.stops, stop.accepted);
            each.stops.push(stop);
        }
    }
    let text = report::render(options, &results)?;
    println!("{text}");
    if let Some(doc) = &options.doc {
        document::rewrite(doc, &text)?;
    }
    let ours = results.iter().find(|each| each.variant.name == "background_tasks");
    let is_silent = ours.is_none_or(|ours| ours.sum(|stop| stop.lost_silently) > 0);
    Ok(if is_silent { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
