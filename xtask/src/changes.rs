//! Runs when `cargo xtask` gets no job name. Checks the formatting, lints and tests of the packages that changed.

use crate::context::Context;
use crate::workspace::{Package, packages};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;
use xshell::{Shell, cmd};

/// Returns the commit that the working tree is compared with. On a branch, this is the point where the branch left `main`. If `HEAD` is a
/// commit of `main`, or there is no branch `main`, the result is `HEAD` if some files are uncommitted, and the previous commit otherwise.
fn base(sh: &Shell) -> Result<String> {
    let head = cmd!(sh, "git rev-parse HEAD").quiet().read()?;
    let fork = cmd!(sh, "git merge-base HEAD main").quiet().ignore_stderr().read().unwrap_or_default();
    let is_committed = cmd!(sh, "git status --porcelain").quiet().read()?.is_empty();
    let on_main = if is_committed { "HEAD~1" } else { "HEAD" };
    Ok(if fork.is_empty() || fork == head { on_main.to_owned() } else { fork })
}

/// Lists the changed files, including untracked files.
fn changed_files(context: &Context) -> Result<BTreeSet<String>> {
    let (sh, base) = (&context.sh, base(&context.sh)?);
    let tracked = cmd!(sh, "git diff --name-only --no-renames {base}").quiet().ignore_stderr().read().unwrap_or_default();
    let untracked = cmd!(sh, "git ls-files --others --exclude-standard").quiet().read()?;
    Ok(tracked.lines().chain(untracked.lines()).map(str::to_owned).collect())
}

/// Returns the changes in `paths` as a patch. The patch does not contain untracked files.
pub(crate) fn diff(context: &Context, paths: &[&str]) -> Result<String> {
    let (sh, base) = (&context.sh, base(&context.sh)?);
    Ok(cmd!(sh, "git diff {base} -- {paths...}").quiet().ignore_stderr().read().unwrap_or_default())
}

/// Returns the package in the innermost folder that contains the file. The core owns the files whose paths start with a path in
/// `of_core`. The remaining files have no owner.
fn owner<'a>(packages: &'a [Package], file: &str) -> Option<&'a Package> {
    let of_core = ["build.rs", "src", "tests", "benches", "docs", "Cargo.toml", "README.md", "CHANGELOG.md"];
    let nested = packages.iter().filter(|package| package.folder != Path::new("") && Path::new(file).starts_with(&package.folder));
    let core = || {
        packages
            .iter()
            .find(|package| package.folder == Path::new("") && of_core.iter().any(|path| Path::new(file).starts_with(path)))
    };
    nested.max_by_key(|package| package.folder.as_os_str().len()).or_else(core)
}

pub(crate) fn check(context: &Context) -> Result<()> {
    let (sh, start) = (&context.sh, Instant::now());
    let (packages, files) = (packages(sh)?, changed_files(context)?);
    let changed: BTreeSet<&str> = files.iter().filter_map(|file| owner(&packages, file)).map(|package| &*package.name).collect();
    let names = if changed.is_empty() { "no package".to_owned() } else { changed.iter().copied().collect::<Vec<_>>().join(", ") };
    println!("{} files changed, in {names}", files.len());
    crate::jobs::fmt(context)?;
    if !changed.is_empty() {
        let of_changed: Vec<&str> = changed.iter().flat_map(|name| ["-p", name]).collect();
        let of_changed = &of_changed[..];
        cmd!(sh, "cargo clippy --quiet {of_changed...} --all-targets --all-features -- -D warnings").run()?;
        cmd!(sh, "cargo test --quiet {of_changed...} --all-features --lib --bins --tests").run()?;
    }
    for job in crate::jobs::concerned(&files) {
        println!("these changes also concern `cargo xtask {}` ({}; {} s)", job.name, job.tier.name(), job.seconds);
    }
    context.print_skips()?;
    println!("passed in {} s", start.elapsed().as_secs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, folder: &str) -> Package {
        Package {
            name: name.into(),
            folder: folder.into(),
            version: String::new(),
            rust_version: String::new(),
            features: Vec::new(),
        }
    }

    #[test]
    fn file_belongs_to_the_innermost_package() {
        let packages = [package("core", ""), package("durable", "durable"), package("example", "examples/durable")];
        let owner_of = |file| owner(&packages, file).map(|package| &*package.name);
        assert_eq!(owner_of("durable/src/store/sqlite.rs"), Some("durable"));
        assert_eq!(owner_of("examples/durable/src/main.rs"), Some("example"));
        assert_eq!(owner_of("src/sync/gate.rs"), Some("core"));
        assert_eq!(owner_of("docs/invariants.md"), Some("core"));
        assert_eq!(owner_of("models/tests/it/main.rs"), None);
        assert_eq!(owner_of("CONTRIBUTING.md"), None);
    }
}
