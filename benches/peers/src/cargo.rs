//! Runs cargo, and parses its output.

use std::path::Path;
use std::process::Command;

pub const MANIFEST_DIR: &str = env!("CARGO_MANIFEST_DIR");

/// Runs cargo. Returns its stdout. If cargo fails, returns the first error line of its stderr.
pub fn run<'a>(folder: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .current_dir(folder)
        .output()
        .map_err(|error| format!("failed to run cargo: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(stderr.lines().find(|line| line.starts_with("error")).unwrap_or("cargo failed").to_owned())
}

/// Parses a line of the output of `cargo tree`.
pub fn name_and_version(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    Some((words.next()?, words.next()?.trim_start_matches('v')))
}

/// Returns the names and versions of the crates in `crates` on which this package depends.
pub fn versions(crates: &[&str]) -> Result<Vec<(String, String)>, String> {
    let arguments = ["tree", "-p", env!("CARGO_PKG_NAME"), "--depth", "1", "-e", "normal", "--prefix", "none"];
    let tree = run(Path::new(MANIFEST_DIR), arguments)?;
    let packages = tree.lines().filter_map(name_and_version).filter(|(name, _)| crates.contains(name));
    Ok(packages.map(|(name, version)| (name.to_owned(), version.to_owned())).collect())
}
