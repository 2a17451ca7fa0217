//! Jobs that concern the core.

use crate::context::Context;
use crate::workspace::package;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use xshell::cmd;

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
    ensure!(found == BTreeSet::from(expected), "without features the core depends on {found:?}");
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
    // The versions for the tests are another matter.
    let (mut manifest, mut keep) = (String::new(), true);
    for line in sh.read_file("Cargo.toml")?.lines() {
        if line.starts_with('[') {
            keep = !line.starts_with("[dev-dependencies");
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
    Ok(cmd!(context.sh, "cargo run --quiet -p peers -- --quick --out {out}").run()?)
}
