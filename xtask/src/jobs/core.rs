//! Runs the checks that concern only the core.

use crate::context::Context;
use crate::workspace::package;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use xshell::{Shell, cmd};

pub(super) fn features(context: &Context) -> Result<()> {
    let sh = &context.sh;
    cmd!(sh, "cargo clippy --quiet --no-default-features --features critical-section -- -D warnings").run()?;
    for feature in package(sh, "background-tasks")?.features {
        cmd!(sh, "cargo clippy --quiet --no-default-features --features critical-section,{feature} -- -D warnings").run()?;
    }
    let format = "{lib}";
    let tree = cmd!(sh, "cargo tree -e normal --prefix none --format {format}").quiet().read()?;
    let found: BTreeSet<&str> = tree.lines().filter(|line| !line.is_empty()).collect();
    let expected =
        ["background_tasks", "event_listener", "futures_core", "futures_task", "futures_util", "parking", "pin_project_lite"];
    ensure!(found == BTreeSet::from(expected), "with its default features the core depends on {found:?}");
    build_names_missing_std(sh)?;
    for (package, folder) in
        [("background-tasks", ""), ("background-tasks-host", "host"), ("background-tasks-runtimes", "runtimes")]
    {
        compiler_names_missing_features(context, package, folder)?;
    }
    Ok(())
}

/// Checks the error if a program turns off the feature `std` on an operating system. The error of the build script must be the only error.
fn build_names_missing_std(sh: &Shell) -> Result<()> {
    let output = cmd!(sh, "cargo check --quiet --no-default-features").quiet().ignore_status().output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = message.lines().filter(|line| line.starts_with("error")).collect();
    ensure!(
        matches!(errors[..], [first, "error: build script logged errors"] if first.contains("default feature `std`")),
        "without `std`, the build of the core ends with these errors:\n{message}"
    );
    Ok(())
}

/// Checks the compiler's error when a program imports an item and its feature is off: the error must name the feature.
///
/// The compiler can name the feature only if the crate exports the item with an explicit `pub use` behind a `cfg`. The compiler cannot
/// name the feature for a glob export.
fn compiler_names_missing_features(context: &Context, package: &str, folder: &str) -> Result<()> {
    let (sh, root) = (&context.sh, context.sh.current_dir());
    let source = sh.read_file(root.join(folder).join("src/lib.rs"))?;
    let mut program = String::new();
    let mut features = BTreeSet::new();
    for (cfg, export) in source.lines().zip(source.lines().skip(1)) {
        let (Some((_, cfg)), Some(path)) = (cfg.split_once("feature = \""), export.strip_prefix("pub use ")) else { continue };
        let feature = cfg.split_once('"').map_or(cfg, |(feature, _)| feature);
        let items = path.rsplit_once("::").map_or(path, |(_, items)| items).trim_end_matches(';');
        writeln!(program, "pub use {}::{items};", package.replace('-', "_"))?;
        features.insert(feature);
    }
    ensure!(!features.is_empty(), "no `pub use` of {package} is behind a feature");
    let path = context.built("missing-features").join(package);
    let dependency = root.join(folder).display().to_string();
    sh.write_file(
        path.join("Cargo.toml"),
        format!(
            "[workspace]\n[package]\nname = \"missing-features\"\nedition = \"2024\"\n[dependencies]\n{package} = {{ path = '{dependency}' }}\n"
        ),
    )?;
    sh.write_file(path.join("src/lib.rs"), program)?;
    // With the locked versions, the check works offline, because cargo has downloaded them already.
    sh.copy_file(root.join("Cargo.lock"), path.join("Cargo.lock"))?;
    let manifest = path.join("Cargo.toml");
    let output = cmd!(sh, "cargo check --offline --quiet --manifest-path {manifest}").quiet().ignore_status().output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    for feature in features {
        ensure!(
            message.contains(&format!("the item is gated behind the `{feature}` feature")),
            "{package}: the compiler does not name the feature `{feature}`:\n{message}"
        );
    }
    Ok(())
}

pub(super) fn shards(context: &Context) -> Result<()> {
    for shards in ["1", "2", "64"] {
        println!("{shards} shards");
        cmd!(context.sh, "cargo test --quiet --all-features --lib --tests").env("BACKGROUND_TASKS_SHARDS", shards).run()?;
    }
    Ok(())
}

pub(super) fn msrv(context: &Context) -> Result<()> {
    let oldest = package(&context.sh, "background-tasks")?.rust_version;
    if context.toolchain(&oldest, "") {
        cmd!(context.sh, "rustup run {oldest} cargo check --quiet --all-features").run()?;
    }
    Ok(())
}

pub(super) fn minimal(context: &Context) -> Result<()> {
    let sh = &context.sh;
    if !context.toolchain("nightly", "") {
        return Ok(());
    }
    let copy = context.built("oldest");
    sh.remove_path(&copy)?;
    sh.create_dir(&copy)?;
    cmd!(sh, "cargo package --quiet --allow-dirty --no-verify -p background-tasks").run()?;
    let version = package(sh, "background-tasks")?.version;
    let archive = context.built(&format!("package/background-tasks-{version}.crate"));
    cmd!(sh, "tar -xzf {archive} --strip-components=1 -C {copy}").run()?;
    let _folder = sh.push_dir(&copy);
    // Removes the dependencies of the tests from the manifest, because their oldest versions are not checked.
    let (mut manifest, mut keep) = (String::new(), true);
    for line in sh.read_file("Cargo.toml")?.lines() {
        if line.starts_with('[') {
            keep = !line.contains("dev-dependencies");
        }
        if keep {
            manifest += line;
            manifest.push('\n');
        }
    }
    sh.write_file("Cargo.toml", manifest + "[workspace]\n")?;
    sh.remove_path("Cargo.lock")?;
    cmd!(sh, "rustup run nightly cargo update --quiet -Zdirect-minimal-versions").run()?;
    Ok(cmd!(sh, "cargo check --quiet --all-features").run()?)
}

pub(super) fn bench(context: &Context) -> Result<()> {
    context.program("valgrind", "valgrind");
    let out = context.built("peers-quick");
    cmd!(context.sh, "cargo run --quiet -p peers -- --quick --out {out}").run()?;
    // Fails if the service that uses background-tasks loses work silently.
    Ok(cmd!(context.sh, "cargo run --quiet -p lost-work -- --stops 1").run()?)
}
