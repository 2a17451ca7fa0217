//! Runs the checks that concern one companion crate and its examples. The jobs for all packages do not run these checks.

use super::everywhere::{core_is_light, each_feature};
use crate::context::Context;
use crate::workspace::package;
use anyhow::{Result, ensure};
use xshell::cmd;

pub(super) fn host(context: &Context) -> Result<()> {
    let sh = &context.sh;
    let dockerfile = sh.read_file("examples/axum/Dockerfile")?;
    for (line, promise) in [
        ("ENTRYPOINT [\"/signups\"]", "runs the service as process 1"),
        ("CMD [\"--listen\", \"0.0.0.0:3000\", \"--dir\", \"/data\"]", "writes to /data"),
        ("COPY --from=build --chown=65532:65532 /data /data", "has a folder /data that its user can write to"),
        ("VOLUME /data", "stores /data in a volume"),
    ] {
        ensure!(dockerfile.lines().any(|written| written == line), "without `{line}`, no container of the image {promise}");
    }
    cmd!(sh, "cargo test --quiet -p background-tasks-host --no-default-features").run()?;
    each_feature(context, "background-tasks-host")?;

    cmd!(sh, "cargo build --quiet -p signups -p notes-tokio").run()?;
    if context.program("systemd-analyze", "systemd") {
        let program = context.built("debug/signups").display().to_string();
        let unit = sh
            .read_file("examples/axum/signups.service")?
            .replace("ExecStart=/usr/local/bin/signups", &format!("ExecStart={program}"));
        ensure!(unit.contains(&format!("ExecStart={program} ")), "signups.service does not start /usr/local/bin/signups");
        let path = context.built("unit/signups.service");
        sh.write_file(&path, unit)?;
        let socket = context.built("unit/signups.socket");
        sh.copy_file("examples/axum/signups.socket", &socket)?;
        // `systemd-analyze` reports an unknown directive only as a warning, and then exits with 0.
        let output = cmd!(sh, "systemd-analyze verify --man=no {path} {socket}").ignore_status().output()?;
        let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && !warnings.contains("signups.s"), "a unit is invalid: {warnings}");
    }
    let yaml = || cmd!(sh, "python3 -c 'import yaml'").quiet().ignore_stderr().run().is_ok();
    if yaml()
        || context.program("python3", "python3")
            && cmd!(sh, "apt-get install -y python3-yaml").quiet().ignore_stdout().ignore_stderr().run().is_ok()
            && yaml()
    {
        cmd!(sh, "python3 examples/axum/tests/manifest.py").run()?;
    } else {
        context.skip("python3-yaml is not available");
    }
    if context.browser() {
        let notes = context.built("debug/notes-tokio");
        cmd!(sh, "cargo build --quiet -p background-tasks-host --example dashboard --features dashboard,http").run()?;
        let shop = context.built("debug/examples/dashboard");
        cmd!(sh, "timeout 300 node --test host/tests/dashboard.mjs").env("NOTES", notes).env("SHOP", shop).run()?;
    }

    let host = package(sh, "background-tasks-host")?;
    let oldest = host.rust_version;
    ensure!(
        sh.read_file("host/README.md")?.contains(&format!("The crate needs Rust {oldest}, with each of its features.")),
        "host/README.md does not name Rust {oldest}"
    );
    if context.toolchain(&oldest, "") {
        for some in std::iter::once("").chain(host.features.iter().map(String::as_str)) {
            cmd!(sh, "rustup run {oldest} cargo check --quiet -p background-tasks-host --no-default-features --features {some}")
                .run()?;
        }
        cmd!(sh, "rustup run {oldest} cargo check --quiet -p signups").run()?;
    }
    Ok(())
}

pub(super) fn durable(context: &Context) -> Result<()> {
    let sh = &context.sh;
    context.postgres();
    for some in ["", "sqlite", "postgres,cron"] {
        cmd!(
            sh,
            "cargo clippy --quiet -p background-tasks-durable --no-default-features --features {some} --all-targets -- -D warnings"
        )
        .run()?;
    }
    core_is_light(context, &["sqlx", "libsqlite3"])?;
    if context.browser() {
        cmd!(sh, "cargo build --quiet -p durable-signups").run()?;
        let signups = context.built("debug/durable-signups");
        cmd!(sh, "timeout 600 node --test examples/durable/tests/page.mjs").env("SIGNUPS", signups).run()?;
    }
    check_oldest(context, "durable", &["-p", "background-tasks-durable-cli"])
}

/// Checks that a companion compiles with the oldest Rust version that its README names. `others` are cargo arguments that add packages.
fn check_oldest(context: &Context, companion: &str, others: &[&str]) -> Result<()> {
    let (sh, name) = (&context.sh, format!("background-tasks-{companion}"));
    let oldest = package(sh, &name)?.rust_version;
    ensure!(
        sh.read_file(format!("{companion}/README.md"))?.contains(&format!("Rust {oldest} or later")),
        "{companion}/README.md does not name Rust {oldest}"
    );
    if context.toolchain(&oldest, "") {
        cmd!(sh, "rustup run {oldest} cargo check --quiet -p {name} {others...} --all-features").run()?;
    }
    Ok(())
}

/// Returns the value of `REQUIRE` with these names added.
fn also_required(names: &[&str]) -> String {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    [&[&*required], names].concat().join(",")
}

/// Runs tests against each broker that is available.
fn test_with_brokers(context: &Context, arguments: &[&str], long: bool) -> Result<()> {
    let (azurite, moto) = (context.azurite()?, context.moto());
    let mut required = context.brokers();
    required.extend(azurite.as_ref().map(|_| "azurite"));
    required.extend(moto.as_ref().map(|_| "moto"));
    let mut test = cmd!(context.sh, "cargo test --quiet --all-features {arguments...}");
    if long {
        test = test.env("LONG", "1");
    }
    let test = test.env("AZURITE", azurite.unwrap_or_default()).env("MOTO", moto.unwrap_or_default());
    Ok(test.env("REQUIRE", also_required(&required)).run()?)
}

pub(super) fn brokers(context: &Context) -> Result<()> {
    test_with_brokers(context, &["-p", "background-tasks-consumer", "-p", "broker-signups"], false)
}

pub(super) fn consumer(context: &Context) -> Result<()> {
    each_feature(context, "background-tasks-consumer")?;
    core_is_light(context, &["lapin", "async-nats", "aws-sdk-sqs", "azure_core"])?;
    test_with_brokers(context, &["-p", "background-tasks-consumer", "--test", "brokers"], true)?;
    check_oldest(context, "consumer", &[])
}

pub(super) fn graphile(context: &Context) -> Result<()> {
    let required: &[_] = if context.postgres() { &["postgres"] } else { &[] };
    Ok(cmd!(context.sh, "cargo test --quiet -p graphile-recipe").env("REQUIRE", also_required(required)).run()?)
}

/// The sentence in the README of runtimes/ that names the Rust versions.
const VERSIONS: &str =
    "Rust 1.85, as do actix-rt, async-global-executor, glommio and monoio; `bevy_tasks` needs 1.89, compio 1.95,";

pub(super) fn runtimes(context: &Context) -> Result<()> {
    let sh = &context.sh;
    cmd!(sh, "cargo test --quiet -p background-tasks-runtimes --all-features").run()?;
    each_feature(context, "background-tasks-runtimes")?;
    // The examples in the documentation must compile without features too.
    cmd!(sh, "cargo test --quiet -p background-tasks-runtimes --doc").run()?;
    // Tests tokio's task builder, which passes task names to tokio-console.
    cmd!(sh, "cargo test --quiet -p background-tasks --features tokio-console --test console")
        .env("RUSTFLAGS", "--cfg tokio_unstable")
        .env("CARGO_TARGET_DIR", context.built("console"))
        .run()?;
    if context.program("valgrind", "valgrind") {
        cmd!(
            sh,
            "cargo test --quiet -p background-tasks-runtimes --all-features --test it -- --ignored --skip traced cache_lines::"
        )
        .run()?;
    }
    ensure!(
        sh.read_file("runtimes/README.md")?.contains(VERSIONS),
        "runtimes/README.md does not name these versions of Rust: {VERSIONS}"
    );
    for (oldest, features) in
        [("1.85", "actix-rt,async-global-executor,glommio,monoio"), ("1.89", "bevy_tasks"), ("1.95", "compio")]
    {
        if context.toolchain(oldest, "") {
            cmd!(sh, "rustup run {oldest} cargo check --quiet -p background-tasks-runtimes --features {features}").run()?;
        }
    }
    Ok(())
}
