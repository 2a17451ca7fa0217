//! Weakens one atomic ordering of the source at a time and requires that a loom model fails. The text `HELP` describes the program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, io};

const HELP: &str = "\
Weakens one atomic ordering at a time and requires that a loom model fails.

Usage: mutate-orderings [--list] [--slice K/N] [--only TEXT] PATH...

  PATH         a source file or folder below `src`, relative to the repository's root
  --list       print the mutants and exit
  --slice K/N  test only one of N slices of the mutants: mutant number K, K+N, K+2N, and so on
  --only TEXT  test only the mutants in files whose path contains TEXT

Mutations: Acquire -> Relaxed, Release -> Relaxed, AcqRel -> Acquire, AcqRel -> Release.
Code that the models do not compile (`cfg(test)`, `cfg(not(loom))`) is skipped. The source must be formatted by rustfmt.

The tool copies `src` and `models` to `target/mutants` and runs all models there on the unchanged source. It then applies one
mutation after another. A mutant is caught if a model fails or exceeds its time limit: ten times the duration on the
unchanged source, plus one minute. A mutant that does not compile is not counted. Fast models, and models that caught
earlier mutants, run first.

The file `tools/mutate-orderings/allowed.txt` lists mutants that no model can catch, each with the reason.
Exit code: 0 if every mutant is caught or allowed; 1 if a mutant is missed, an allowed mutant is caught or does not exist,
or the tool cannot run.";

const WEAKER: [(&str, &str); 4] = [("Acquire", "Relaxed"), ("Release", "Relaxed"), ("AcqRel", "Acquire"), ("AcqRel", "Release")];

struct Mutant {
    /// The path relative to the repository's root.
    file: String,
    line: usize,
    /// The trimmed source line. An entry of `allowed.txt` names a mutant by `file`, `text` and `change`, and not by its line
    /// number. The entry therefore stays valid when code moves.
    text: String,
    change: String,
    /// The byte offset of the ordering's name in the file.
    start: usize,
    from: &'static str,
    to: &'static str,
}

/// Returns whether this attribute excludes its item from the build of the models.
fn excludes_models(attribute: &str) -> bool {
    let mut words = attribute.split(|c: char| !c.is_alphanumeric() && c != '_');
    attribute.starts_with("#[cfg(")
        && (attribute.contains("not(loom)") || words.any(|word| word == "test") && !attribute.contains("not(test)"))
}

/// Finds the mutants of one file.
fn mutants_of(file: &str, source: &str) -> Vec<Mutant> {
    let (mut mutants, mut next_offset) = (Vec::<Mutant>::new(), 0);
    // The indentation of the excluded item that contains the current line, or `None` outside of excluded items.
    let mut excluded = None;
    for (number, line) in source.split_inclusive('\n').enumerate() {
        let offset = next_offset;
        next_offset += line.len();
        let code = line.split("//").next().unwrap_or_default().trim_end();
        let (text, indent) = (code.trim_start(), code.len() - code.trim_start().len());
        if excluded.is_none() && excludes_models(text) {
            excluded = Some(indent);
        }
        if let Some(outer) = excluded {
            // rustfmt indents the last line of an item like its first line, so the excluded item ends at such a line.
            if indent == outer && !text.starts_with("#[") && text.ends_with(['}', ';', ',']) {
                excluded = None;
            }
            continue;
        }
        for (from, to) in WEAKER {
            for (at, found) in code.match_indices(&format!("Ordering::{from}")) {
                let (text, start) = (line.trim(), offset + at + found.len() - from.len());
                let is_same = |other: &&Mutant| (&*other.text, other.from, other.to) == (text, from, to);
                let mut change = format!("{from} -> {to}");
                // If an earlier line of the file has an equal mutant, this code adds a number to distinguish the two mutants.
                match mutants.iter().filter(is_same).count() {
                    0 => {}
                    earlier => change += &format!(" (number {})", earlier + 1),
                }
                mutants.push(Mutant { file: file.into(), line: number + 1, text: text.into(), change, start, from, to });
            }
        }
    }
    mutants
}

/// Adds the Rust files at or below `path` to `files`, in alphabetical order.
fn rust_files(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        let mut entries = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        entries.sort();
        return entries.iter().try_for_each(|entry| rust_files(entry, files));
    }
    if path.extension().is_some_and(|extension| extension == "rs") {
        files.push(path.into());
    }
    Ok(())
}

/// Copies `from` to `to`, and removes files from `to` that `from` does not contain. Does not write a file that is already equal, so
/// that cargo does not rebuild its package.
fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        let content = fs::read(from)?;
        return if fs::read(to).is_ok_and(|old| old == content) { Ok(()) } else { fs::write(to, content) };
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        let (old, source) = (entry.path(), from.join(entry.file_name()));
        match (source.exists(), old.is_dir()) {
            (true, _) => {}
            (false, true) => fs::remove_dir_all(old)?,
            (false, false) => fs::remove_file(old)?,
        }
    }
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        if name != "target" {
            mirror(&from.join(&name), &to.join(&name))?;
        }
    }
    Ok(())
}

/// The folder that contains the copies of `src`, `models` and `build.rs`.
struct Sandbox(PathBuf);

impl Sandbox {
    fn new(root: &Path) -> io::Result<Self> {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |target| root.join(target));
        let sandbox = target.join("mutants");
        for folder in ["src", "models"] {
            mirror(&root.join(folder), &sandbox.join(folder))?;
        }
        fs::copy(root.join("build.rs"), sandbox.join("build.rs"))?;
        Ok(Self(sandbox))
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// Builds the models. Returns the path of the executable, or `None` if the models do not compile.
    fn build(&self) -> io::Result<Option<PathBuf>> {
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--quiet", "--no-run", "--message-format=json-render-diagnostics", "--test", "it"]);
        cargo.current_dir(self.0.join("models"));
        cargo.env("CARGO_TARGET_DIR", self.0.join("target")).env("RUSTFLAGS", "--cfg loom");
        // The builds take most of the time, so they are incremental and only slightly optimised.
        cargo.envs([("CARGO_INCREMENTAL", "1"), ("CARGO_PROFILE_DEV_OPT_LEVEL", "1"), ("CARGO_PROFILE_DEV_DEBUG", "0")]);
        let output = cargo.stderr(File::create(self.log())?).output()?;
        let messages = String::from_utf8_lossy(&output.stdout);
        let executable = |message: &str| Some(PathBuf::from(message.split_once("\"executable\":\"")?.1.split_once('"')?.0));
        Ok(messages.lines().find_map(executable).filter(|_| output.status.success()))
    }

    /// Runs the tests of a model until one fails. Returns the name of the failed test, or another description of the failure.
    /// Returns `None` if no test failed.
    fn run(&self, executable: &Path, model: &str, limit: Duration) -> io::Result<Option<String>> {
        let (start, log) = (Instant::now(), File::create(self.log())?);
        let module = format!("{model}::");
        let mut model = Command::new(executable);
        model.arg(module).env("RUST_BACKTRACE", "0").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut model = model.spawn()?;
        loop {
            let status = model.try_wait()?;
            let output = String::from_utf8_lossy(&fs::read(self.log())?).into_owned();
            // Reads only complete lines, because the model may be writing the last line now.
            let complete = output.rsplit_once('\n').map_or("", |(complete, _)| complete);
            let failed = complete.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
            let failure = match (failed, status) {
                (Some(test), _) => Some(test.to_owned()),
                (None, Some(status)) if status.success() => return Ok(None),
                // The process has failed without the result line of a failed test: usually, a second panic in loom's cleanup has
                // aborted the process. The thread of the first panic has the name of the test.
                (None, Some(status)) => {
                    let panicked = complete.lines().find_map(|line| line.strip_prefix("thread '")?.split('\'').next());
                    Some(panicked.map_or_else(|| status.to_string(), str::to_owned))
                }
                (None, None) => (start.elapsed() > limit).then(|| "timeout".to_owned()),
            };
            if failure.is_some() {
                let _ = model.kill();
                model.wait()?;
                return Ok(failure);
            }
            sleep(Duration::from_millis(50));
        }
    }
}

struct Model {
    name: String,
    limit: Duration,
}

/// Runs all models on the unchanged source, where they must pass. Returns the models, the fastest first.
fn baseline(root: &Path, sandbox: &Sandbox) -> io::Result<Vec<Model>> {
    let mut files = Vec::new();
    rust_files(&root.join("models/tests/it"), &mut files)?;
    files.retain(|file| file.parent().is_some_and(|folder| folder.ends_with("it")) && !file.ends_with("main.rs"));
    let names = files.iter().filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()));
    let failed = |what: &str| io::Error::other(format!("{what} without a mutation; see {}", sandbox.log().display()));
    let executable = sandbox.build()?.ok_or_else(|| failed("the models do not build"))?;
    let mut models = Vec::new();
    for name in names {
        let start = Instant::now();
        if let Some(test) = sandbox.run(&executable, &name, Duration::from_secs(600))? {
            return Err(failed(&format!("{test} fails")));
        }
        models.push(Model { name, limit: Duration::from_secs(60) + start.elapsed() * 10 });
    }
    models.sort_by_key(|model| model.limit);
    Ok(models)
}

enum Verdict {
    NotViable,
    Caught(String),
    Missed,
}

/// Runs the models on one mutant until a model fails. Moves this model to the front of `models`, because it may also catch the next
/// mutants.
fn test(sandbox: &Sandbox, models: &mut [Model], mutant: &Mutant) -> io::Result<Verdict> {
    let copy = sandbox.0.join(&mutant.file);
    let original = fs::read_to_string(&copy)?;
    let (before, after) = original.split_at(mutant.start);
    fs::write(&copy, format!("{before}{}{}", mutant.to, &after[mutant.from.len()..]))?;
    let mut verdict = Verdict::NotViable;
    if let Some(executable) = sandbox.build()? {
        verdict = Verdict::Missed;
        for index in 0..models.len() {
            let Model { name, limit } = &models[index];
            if let Some(test) = sandbox.run(&executable, name, *limit)? {
                verdict = Verdict::Caught(test);
                models[..=index].rotate_right(1);
                break;
            }
        }
    }
    fs::write(&copy, original)?;
    Ok(verdict)
}

fn main() -> ExitCode {
    match real_main() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutate-orderings: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every mutant is caught or allowed, and every entry of `allowed.txt` is needed.
fn real_main() -> io::Result<bool> {
    let usage = || io::Error::other("invalid arguments; see --help");
    let (mut list, mut slice, mut only, mut paths) = (false, (1, 1), String::new(), Vec::new());
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(true);
            }
            "--list" => list = true,
            "--only" => only = arguments.next().ok_or_else(usage)?,
            "--slice" => {
                let value = arguments.next().ok_or_else(usage)?;
                let parts = value.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
                slice = parts.filter(|(k, n)| (1..=*n).contains(k)).ok_or_else(usage)?;
            }
            _ if argument.starts_with('-') => return Err(usage()),
            _ => paths.push(argument),
        }
    }
    let here = env::current_dir()?;
    let root = here.ancestors().find(|folder| folder.join("models/Cargo.toml").is_file());
    let root = root.ok_or_else(|| io::Error::other("no `models/Cargo.toml` in this folder or above"))?;

    let mut files = Vec::new();
    paths.iter().try_for_each(|path| rust_files(&root.join(path), &mut files))?;
    let mut mutants = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).map_err(io::Error::other)?.display().to_string();
        mutants.extend(mutants_of(&name, &fs::read_to_string(&file)?));
    }
    if mutants.is_empty() {
        return Err(io::Error::other("no ordering to weaken in the given paths; see --help"));
    }
    let allowed = fs::read_to_string(root.join("tools/mutate-orderings/allowed.txt"))?;
    let entry_of = |mutant: &Mutant| {
        let prefix = format!("{}: {}: {}: ", mutant.file, mutant.text, mutant.change);
        allowed.lines().find(|entry| entry.starts_with(&prefix))
    };
    let entries = allowed.lines().filter(|entry| !entry.starts_with('#') && !entry.trim().is_empty());
    let stale: Vec<_> = entries.filter(|&entry| !mutants.iter().any(|mutant| entry_of(mutant) == Some(entry))).collect();
    let chosen = mutants.iter().filter(|mutant| mutant.file.contains(&only)).skip(slice.0 - 1).step_by(slice.1);
    let describe = |mutant: &Mutant| format!("{}:{}: {}: {}", mutant.file, mutant.line, mutant.text, mutant.change);
    if list {
        chosen.for_each(|mutant| println!("{}", describe(mutant)));
        return Ok(true);
    }

    let sandbox = Sandbox::new(root)?;
    let mut models = baseline(root, &sandbox)?;
    let (mut caught, mut missed, mut not_viable, mut unneeded) = (0, 0, 0, 0);
    for mutant in chosen {
        let verdict = test(&sandbox, &mut models, mutant)?;
        let says = match (verdict, entry_of(mutant)) {
            (Verdict::NotViable, _) => {
                not_viable += 1;
                "does not compile".to_owned()
            }
            (Verdict::Missed, Some(_)) => "missed, allowed".to_owned(),
            (Verdict::Missed, None) => {
                missed += 1;
                "MISSED".to_owned()
            }
            (Verdict::Caught(by), entry) => {
                caught += 1;
                unneeded += usize::from(entry.is_some());
                let note = if entry.is_some() { ", but ALLOWED" } else { "" };
                format!("caught by {by}{note}")
            }
        };
        println!("{}: {says}", describe(mutant));
    }
    for entry in &stale {
        println!("allowed.txt: no such mutant in the given paths: {entry}");
    }
    println!("{caught} caught, {missed} missed, {not_viable} that do not compile; {} entries to remove", unneeded + stale.len());
    Ok(missed + unneeded + stale.len() == 0)
}
