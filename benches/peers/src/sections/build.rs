use super::{ASYNC_SHUTDOWN, GRACEFUL, Measured, SWANSONG};
use crate::cargo::{self, MANIFEST_DIR};
use crate::goals::Goal;
use crate::measure::Pace;
use crate::report::{Numbers, Row, Table};
use std::collections::BTreeSet;
use std::env::temp_dir;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Instant;

const OURS: &str = "background-tasks";
const TOKIO_UTIL: &str = "tokio-util";
const ROUNDS: u32 = 3;

pub fn run(pace: Pace) -> Measured {
    let scratch = Scratch::new()?;
    let dependencies = pace.few(&[OURS, SWANSONG, TOKIO_UTIL, ASYNC_SHUTDOWN, GRACEFUL]);
    let programs = dependencies.iter().map(|dependency| Program::new(&scratch.0, dependency)).collect::<Result<Vec<_>, _>>()?;
    let mut times = vec![Vec::new(); programs.len()];
    for _ in 0..pace.rounds(ROUNDS) {
        for (program, times) in programs.iter().zip(&mut times) {
            times.push(program.build()?);
        }
    }
    let row = |(program, times): (&Program, _)| Row {
        name: program.dependency,
        cells: vec![Numbers::of(vec![program.crates]), Numbers::of(times)],
    };
    let rows = programs.iter().zip(times).map(row).collect();
    let columns = vec!["crates".to_owned(), "seconds".to_owned()];
    let title = "A release build from scratch";
    let table = Table::new(title, "", OURS, columns, rows)
        .value(0, OURS, Goal::at_most(8.0))
        .ratio(1..2, OURS, TOKIO_UTIL, Goal::at_most(1.0))
        .ratio(1..2, OURS, SWANSONG, Goal::at_most(1.0));
    Ok(vec![table])
}

/// An empty program that depends on one crate. Cargo uses the versions in this workspace's lockfile.
struct Program {
    dependency: &'static str,
    folder: PathBuf,
    is_offline: bool,
    crates: f64,
}

impl Program {
    fn new(scratch: &Path, dependency: &'static str) -> Result<Self, String> {
        let folder = scratch.join(dependency);
        let error_in_folder = |error| format!("{}: {error}", folder.display());
        let root = Path::new(MANIFEST_DIR).join("../..");
        fs::create_dir_all(folder.join("src")).map_err(error_in_folder)?;
        fs::write(folder.join("src/main.rs"), "fn main() {}\n").map_err(error_in_folder)?;
        fs::write(folder.join("Cargo.toml"), manifest(dependency, &root)?).map_err(error_in_folder)?;
        fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).map_err(error_in_folder)?;
        let mut program = Self { dependency, folder, is_offline: true, crates: 0.0 };
        let tree = program.tree().or_else(|_| {
            program.is_offline = false;
            program.tree()
        })?;
        let crates: BTreeSet<_> = tree.lines().skip(1).filter_map(cargo::name_and_version).collect();
        program.crates = crates.iter().map(|_| 1.0).sum();
        program.cargo(&["fetch"])?;
        Ok(program)
    }

    fn tree(&self) -> Result<String, String> {
        self.cargo(&["tree", "-e", "normal", "--prefix", "none"])
    }

    /// Returns the build time in seconds.
    fn build(&self) -> Result<f64, String> {
        let start = Instant::now();
        self.cargo(&["build", "--release", "--target-dir", "target"])?;
        let elapsed = start.elapsed();
        fs::remove_dir_all(self.folder.join("target")).map_err(|error| format!("{}: {error}", self.folder.display()))?;
        Ok(elapsed.as_secs_f64())
    }

    fn cargo(&self, arguments: &[&str]) -> Result<String, String> {
        let offline = self.is_offline.then_some("--offline");
        cargo::run(&self.folder, arguments.iter().copied().chain(offline))
    }
}

fn manifest(dependency: &str, root: &Path) -> Result<String, String> {
    let source = if dependency == OURS {
        let path = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
        format!("path = '{}'", path.display())
    } else {
        let version = cargo::versions(&[dependency])?
            .pop()
            .map(|(_, version)| version)
            .ok_or_else(|| format!("{dependency} is not a dependency of this package"))?;
        let features = if dependency == TOKIO_UTIL { ", features = [\"rt\"]" } else { "" };
        format!("version = \"={version}\"{features}")
    };
    Ok(format!(
        "[package]\nname = \"with-{dependency}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
         [dependencies]\n{dependency} = {{ {source} }}\n\n[workspace]\n"
    ))
}

/// A folder that is removed when this value is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, String> {
        let folder = temp_dir().join(format!("background-tasks-peers-{}", process::id()));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("failed to remove {}: {error}", self.0.display());
        }
    }
}
