//! Lists the packages of the workspace with `cargo metadata`.

use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use xshell::{Shell, cmd};

pub(crate) struct Package {
    pub(crate) name: String,
    /// The path relative to the repository's root. The path of the core is empty.
    pub(crate) folder: PathBuf,
    pub(crate) version: String,
    /// The oldest Rust version that the package supports.
    pub(crate) rust_version: String,
    /// The names of the features, except `default`.
    pub(crate) features: Vec<String>,
}

/// Lists the packages of the workspace.
pub(crate) fn packages(sh: &Shell) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(&cmd!(sh, "cargo metadata --no-deps --format-version 1").quiet().read()?)?;
    let root = Path::new(text(&metadata, "workspace_root")?);
    let packages = metadata["packages"].as_array().context("no packages")?.iter().map(|package| {
        let manifest = Path::new(text(package, "manifest_path")?);
        let folder = manifest.parent().context("no folder")?.strip_prefix(root)?.to_owned();
        let features = package["features"].as_object().context("no features")?.keys();
        Ok(Package {
            name: text(package, "name")?.to_owned(),
            folder,
            version: text(package, "version")?.to_owned(),
            rust_version: text(package, "rust_version")?.to_owned(),
            features: features.filter(|feature| *feature != "default").cloned().collect(),
        })
    });
    packages.collect()
}

/// Returns the package of the workspace that has this name.
pub(crate) fn package(sh: &Shell, name: &str) -> Result<Package> {
    packages(sh)?.into_iter().find(|package| package.name == name).with_context(|| format!("no package {name}"))
}

/// Returns the version of a dependency in `Cargo.lock`.
pub(crate) fn locked_version(sh: &Shell, name: &str) -> Result<String> {
    let lock = sh.read_file("Cargo.lock")?;
    let (_, entry) =
        lock.split_once(&format!("name = \"{name}\"\nversion = \"")).with_context(|| format!("{name} is not locked"))?;
    Ok(entry.split('"').next().unwrap_or_default().to_owned())
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("no `{key}`"))
}
