//! Runs the checks that concern every package.

use crate::context::Context;
use crate::workspace::{self, Package};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use xshell::cmd;

/// The packages that this project publishes.
const PUBLISHED: [&str; 6] = [
    "background-tasks",
    "background-tasks-host",
    "background-tasks-runtimes",
    "background-tasks-durable",
    "background-tasks-durable-cli",
    "background-tasks-consumer",
];

/// The published packages that are programs. A program has no public API to compare.
const PROGRAMS: [&str; 1] = ["background-tasks-durable-cli"];

pub(crate) fn fmt(context: &Context) -> Result<()> {
    cmd!(context.sh, "cargo fmt --all --check").run()?;
    for manifest in ["models/Cargo.toml", "examples/bare-metal/Cargo.toml", "tools/mutate-orderings/Cargo.toml"] {
        cmd!(context.sh, "cargo fmt --check --manifest-path {manifest}").run()?;
    }
    Ok(())
}

pub(super) fn test(context: &Context) -> Result<()> {
    const COMMAND: &str = "cargo test --workspace --all-features --exclude background-tasks-runtimes --exclude graphile-recipe \
        --exclude background-tasks-consumer --exclude broker-signups --exclude consumer-bench";
    ensure!(
        context.sh.read_file("README.md")?.lines().any(|line| line == COMMAND),
        "README.md does not contain the command of this job"
    );
    // If a tool is installed, its tests must not be skipped.
    let mut required = Vec::new();
    required.extend(context.postgres().then_some("postgres"));
    required.extend(context.program("pgbouncer", "pgbouncer").then_some("pgbouncer"));
    required.extend(context.program("runsv", "runit").then_some("runit"));
    context.program("systemctl", "systemd");
    let required = std::env::var("REQUIRE").unwrap_or(required.join(","));
    let words = COMMAND.split(' ').skip(1);
    let arguments = &context.arguments;
    // Runs more rounds against the services, and more jobs on the workers that are killed, than the default of the tests.
    let load = |name, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let test = cmd!(context.sh, "cargo {words...} {arguments...}").env("REQUIRE", required);
    Ok(test.env("ROUNDS", load("ROUNDS", "10")).env("JOBS", load("JOBS", "300")).run()?)
}

/// Runs only the tests that pass on Windows and macOS too.
pub(super) fn portable(context: &Context) -> Result<()> {
    Ok(cmd!(context.sh, "cargo test -p background-tasks -p background-tasks-host --all-features").run()?)
}

pub(super) fn lint(context: &Context) -> Result<()> {
    Ok(cmd!(context.sh, "cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings").run()?)
}

pub(super) fn docs(context: &Context) -> Result<()> {
    let _flags = context.sh.push_env("RUSTDOCFLAGS", "-D warnings");
    for package in PUBLISHED {
        cmd!(context.sh, "cargo doc --quiet -p {package} --no-deps --all-features --document-private-items").run()?;
        cmd!(context.sh, "cargo doc --quiet -p {package} --no-deps").run()?;
    }
    Ok(cmd!(context.sh, "cargo doc --quiet -p background-tasks-host --no-deps --no-default-features").run()?)
}

pub(super) fn package(context: &Context) -> Result<()> {
    let sh = &context.sh;
    for name in PUBLISHED {
        let package = workspace::package(sh, name)?;
        let listed = cmd!(sh, "cargo package -p {name} --list --allow-dirty").quiet().read()?;
        let made_by_cargo = [".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml.orig"];
        let listed: BTreeSet<&str> = listed.lines().filter(|file| !made_by_cargo.contains(file)).collect();
        let tracked = tracked_files(context, &package)?;
        let expected: BTreeSet<&str> = tracked.iter().map(String::as_str).collect();
        ensure!(
            listed == expected,
            "these files of the package {name} are missing or not expected: {:?}",
            listed.symmetric_difference(&expected)
        );
        for license in ["LICENSE-APACHE", "LICENSE-MIT"] {
            ensure!(
                sh.read_file(license)? == sh.read_file(package.folder.join(license))?,
                "{license} of {name} differs from {license} of the core"
            );
        }
        println!("{name} {}: {} files", package.version, listed.len());
    }
    // Only the core: the companions depend on versions of the core that are not published yet.
    Ok(cmd!(sh, "cargo publish --dry-run --allow-dirty --quiet -p background-tasks").run()?)
}

/// Lists the files that the published package must contain: its source code, its manifest, and the files for readers.
fn tracked_files(context: &Context, package: &Package) -> Result<Vec<String>> {
    let _folder = (package.folder != Path::new("")).then(|| context.sh.push_dir(&package.folder));
    let readme = ["Cargo.toml", "README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];
    let docs = ["build.rs", "docs/guide", "docs/architecture.md", "docs/invariants.md", "docs/performance.md"];
    let of_core = if package.folder == Path::new("") { &docs[..] } else { &[] };
    let files = cmd!(context.sh, "git ls-files -- src {readme...} {of_core...}").quiet().read()?;
    Ok(files.lines().map(str::to_owned).collect())
}

pub(super) fn deny(context: &Context) -> Result<()> {
    let Some(path) = context.cargo_tool("cargo-deny", "0.18.5", &[])? else { return Ok(()) };
    cmd!(context.sh, "cargo deny --all-features check bans licenses sources").env("PATH", &path).run()?;
    // The advisory database is a git repository on another server.
    if cmd!(context.sh, "cargo deny --all-features check advisories").env("PATH", &path).run().is_err() {
        let fetched = cmd!(context.sh, "cargo deny fetch db").env("PATH", &path).ignore_stderr().run().is_ok();
        ensure!(!fetched, "there are advisories for dependencies");
        context.skip("the database of advisories is not available");
    }
    Ok(())
}

pub(super) fn semver(context: &Context) -> Result<()> {
    for name in PUBLISHED.into_iter().filter(|name| !PROGRAMS.contains(name)) {
        let is_published =
            cmd!(context.sh, "cargo info --registry crates-io {name}").quiet().ignore_stdout().ignore_stderr().run().is_ok();
        if !is_published {
            context.skip(&format!("{name} has no release to compare with"));
            continue;
        }
        let Some(path) = context.cargo_tool("cargo-semver-checks", "0.44.0", &[])? else { return Ok(()) };
        cmd!(context.sh, "cargo semver-checks -p {name}").env("PATH", &path).run()?;
    }
    Ok(())
}

/// Lints a package without features, with each feature alone, and with all features.
pub(super) fn each_feature(context: &Context, name: &str) -> Result<()> {
    let features = workspace::package(&context.sh, name)?.features;
    let all = features.join(",");
    for some in std::iter::once("").chain(features.iter().map(String::as_str)).chain([&*all]) {
        cmd!(context.sh, "cargo clippy --quiet -p {name} --no-default-features --features {some} -- -D warnings").run()?;
    }
    Ok(())
}

/// Checks that the core does not depend on a library that only a companion needs.
pub(super) fn core_is_light(context: &Context, forbidden: &[&str]) -> Result<()> {
    let tree = cmd!(context.sh, "cargo tree -p background-tasks --all-features -e normal,build --target all --prefix none")
        .quiet()
        .read()?;
    let found = tree.lines().find(|line| forbidden.iter().any(|name| line.starts_with(name)));
    ensure!(found.is_none(), "the core depends on {}", found.unwrap_or_default());
    Ok(())
}
