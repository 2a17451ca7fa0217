//! Runs the models, mutation tests and sanitizers, which find bugs that ordinary tests miss.

use crate::changes;
use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use xshell::cmd;

/// The tests of the core that start threads.
const THREADED: [&str; 15] = [
    "stress::",
    "join::",
    "child::",
    "services::",
    "shutdown_signal::",
    "release_order::",
    "outcomes::",
    "drain::",
    "spawners::",
    "observer::",
    "inspect::",
    "abort::",
    "limit::",
    "shutdown_policy::",
    "statics::",
];

pub(super) fn models(context: &Context) -> Result<()> {
    let arguments = &context.arguments;
    let models = cmd!(context.sh, "cargo test --quiet --manifest-path models/Cargo.toml {arguments...}");
    Ok(models.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", context.built("models")).run()?)
}

pub(super) fn orderings(context: &Context) -> Result<()> {
    let (slice, of) = context.slice(4);
    let slice = format!("{}/{of}", slice + 1);
    let arguments = &context.arguments;
    let tool = "tools/mutate-orderings/Cargo.toml";
    Ok(cmd!(context.sh, "cargo run --quiet --release --manifest-path {tool} -- --slice {slice} {arguments...} src/sync src/state")
        .run()?)
}

pub(super) fn mutants(context: &Context) -> Result<()> {
    let (slice, of) = context.slice(32);
    // With round-robin sharding, each slice contains mutants from every file.
    let shard = ["--sharding", "round-robin", "--shard", &format!("{slice}/{of}")];
    run_mutants(context, shard.into_iter().chain(context.arguments.iter().map(String::as_str)))
}

pub(super) fn changed_mutants(context: &Context) -> Result<()> {
    let diff = changes::diff(context, &["src/sync", "src/state"])?;
    if diff.is_empty() {
        println!("src/sync and src/state have not changed");
        return Ok(());
    }
    let path = context.built("changed.diff");
    context.sh.write_file(&path, diff)?;
    run_mutants(context, ["--in-diff", &path.to_string_lossy()].into_iter())
}

fn run_mutants<'a>(context: &Context, arguments: impl Iterator<Item = &'a str>) -> Result<()> {
    let Some(path) = context.cargo_tool("cargo-mutants", "27.1.0", &[])? else { return Ok(()) };
    let out = context.built("mutants-out");
    let run = cmd!(
        context.sh,
        "cargo mutants -p background-tasks --no-default-features --features async-executor --no-shuffle --output {out} {arguments...}"
    );
    println!("$ {run}");
    let status = Command::from(run.env("PATH", path).env_remove("CARGO_TARGET_DIR")).status()?;
    // Exit code 3 means that a test of some mutant exceeded the time limit and no mutant was missed. A timeout also catches a mutant.
    ensure!(matches!(status.code(), Some(0 | 3)), "cargo-mutants: {status}");
    Ok(())
}

/// Checks that the patch of each hazard applies to the working tree. `ci` runs the hazards only in some of its runs, but each change of the
/// source can break a patch.
pub(super) fn patches(context: &Context) -> Result<()> {
    hazard_patches(context).map(drop)
}

/// Returns the patches of the hazards, sorted by name. Each of them must apply to the working tree.
fn hazard_patches(context: &Context) -> Result<Vec<PathBuf>> {
    let sh = &context.sh;
    let mut patches: Vec<_> =
        fs::read_dir(sh.current_dir().join("xtask/hazards"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    patches.sort();
    ensure!(!patches.is_empty(), "there is no hazard");
    for patch in &patches {
        cmd!(sh, "git apply --check --recount {patch}")
            .quiet()
            .run()
            .with_context(|| format!("{} does not apply", patch.display()))?;
    }
    Ok(patches)
}

/// Clones the last commit and tests each patch alone in the clone. The test that the patch names must fail.
pub(super) fn hazards(context: &Context) -> Result<()> {
    let sh = &context.sh;
    let patches = hazard_patches(context)?;
    let (slice, of) = context.slice(4);
    let chosen = patches.iter().skip(slice).step_by(of);
    let chosen: Vec<_> =
        chosen.filter(|path| context.arguments.iter().all(|text| path.to_string_lossy().contains(&**text))).collect();

    let copy = context.built("hazards");
    sh.remove_path(&copy)?;
    cmd!(sh, "git clone --quiet . {copy}").quiet().run()?;
    if sh.path_exists("Cargo.lock") {
        sh.copy_file("Cargo.lock", &copy)?;
    }
    let mut missed = 0;
    for patch in &chosen {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy();
        let outcome = hazard(context, patch, &copy).with_context(|| format!("hazard {name}"))?;
        println!("{name}: {}", if outcome { "caught" } else { "MISSED" });
        missed += usize::from(!outcome);
    }
    println!("{} hazards apply, {} tested, {missed} missed", patches.len(), chosen.len());
    ensure!(missed == 0, "{missed} hazards were missed");
    Ok(())
}

/// Returns whether the test that a patch names fails with the patch. Without the patch, the test must pass.
fn hazard(context: &Context, patch: &Path, copy: &Path) -> Result<bool> {
    let sh = &context.sh;
    let description = fs::read_to_string(patch)?;
    let caught_by = description.lines().find_map(|line| line.strip_prefix("Caught by: ")).context("no line `Caught by:`")?;
    let model = caught_by.strip_prefix("models ");
    let mut arguments: Vec<&str> = match model {
        Some(test) => vec!["--manifest-path", "models/Cargo.toml", "--test", "it", test],
        None => caught_by.split(' ').collect(),
    };
    let filter = arguments.pop().context("no test")?;
    if model.is_none() {
        arguments.extend(["--lib", "--tests"]);
    }
    let arguments = &arguments[..];
    let _folder = sh.push_dir(copy);
    // The target folder differs from the repository's target folder. In the same folder, cargo would not build the packages of the copy,
    // because they have the same names as the repository's packages.
    let _target = sh.push_env("CARGO_TARGET_DIR", context.built(if model.is_some() { "hazards-models" } else { "hazards-target" }));
    let _flags = model.map(|_| sh.push_env("RUSTFLAGS", "--cfg loom"));
    let test = || -> Result<Output> {
        cmd!(sh, "cargo test --quiet {arguments...} --no-run")
            .quiet()
            .ignore_stderr()
            .run()
            .context("the source does not build")?;
        Ok(cmd!(sh, "timeout 120 cargo test --quiet {arguments...} {filter}").quiet().ignore_stderr().ignore_status().output()?)
    };
    cmd!(sh, "git checkout --quiet -- .").quiet().run()?;
    ensure!(test()?.status.success(), "{filter} fails without the hazard");
    cmd!(sh, "git apply --recount {patch}").quiet().run()?;
    let output = test()?;
    // For a test, a timeout also means that the bug is caught. A model must panic, because even a model of correct code can exceed the
    // time limit.
    let is_explained = model.is_none() || String::from_utf8_lossy(&output.stdout).contains("panicked at");
    Ok(!output.status.success() && is_explained)
}

pub(super) fn miri(context: &Context) -> Result<()> {
    if !context.toolchain("nightly", "miri,rust-src") {
        return Ok(());
    }
    // Skips the tests that use a runtime with a reactor, because Miri cannot run a reactor.
    let reactors = [
        "tokio",
        "smol",
        "async_std",
        "each_runtime",
        "static_registry_stays_open",
        "behind_any_pointer",
        "task_list_shows_each_kind",
        "work_that_cannot_be_aborted",
        "local_task_is_aborted",
        "local_task_may_return",
    ];
    let skips = reactors.iter().flat_map(|name| ["--skip", name]);
    // Miri emulates a single processor.
    let _threads = context.sh.push_env("RUST_TEST_THREADS", "1");
    let unit = cmd!(context.sh, "rustup run nightly cargo miri test --quiet -p background-tasks --all-features --lib");
    unit.env("MIRIFLAGS", "-Zmiri-disable-isolation").run()?;
    let miri = cmd!(
        context.sh,
        "rustup run nightly cargo miri test --quiet -p background-tasks --all-features --test it -- {THREADED...} bare:: {skips...}"
    );
    Ok(miri.env("MIRIFLAGS", "-Zmiri-disable-isolation").run()?)
}

pub(super) fn tsan(context: &Context) -> Result<()> {
    if !context.toolchain("nightly", "rust-src") {
        return Ok(());
    }
    let version = cmd!(context.sh, "rustc -vV").quiet().read()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let test = cmd!(
        context.sh,
        "rustup run nightly cargo test --quiet -Zbuild-std --target {host} -p background-tasks --all-features --test it -- {THREADED...} bare:: soak:: conformance::"
    );
    Ok(test.env("RUSTFLAGS", "-Zsanitizer=thread").env("CARGO_TARGET_DIR", context.built("thread-sanitizer")).run()?)
}
