//! Runs the checks for other operating systems and processors.

use crate::context::Context;
use crate::workspace::locked_version;
use anyhow::{Result, ensure};
use std::ffi::OsString;
use std::path::Path;
use xshell::cmd;

pub(super) fn systems(context: &Context) -> Result<()> {
    for target in ["x86_64-pc-windows-gnu", "aarch64-apple-darwin"] {
        if context.target(target) {
            for package in ["background-tasks", "background-tasks-host", "background-tasks-runtimes"] {
                cmd!(context.sh, "cargo check --quiet -p {package} --all-features --target {target}").run()?;
            }
            cmd!(context.sh, "cargo check --quiet -p background-tasks-host --no-default-features --target {target}").run()?;
        }
    }
    if context.target("i686-unknown-linux-musl") {
        cmd!(context.sh, "cargo test --quiet --lib --target i686-unknown-linux-musl").run()?;
    }
    Ok(())
}

/// The C source of a DLL with `ProcessPrng`. Rust's standard library imports this function, and Wine 8 does not have it.
const BCRYPTPRIMITIVES: &str = "\
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T len) { return SystemFunction036(data, (ULONG)len); }
";

/// The tests of the core that are skipped under Wine, each with the reason.
const NOT_UNDER_WINE: [(&str, &str); 2] = [
    ("documentation::feature_table_of_each_crate_lists_every_feature", "it starts cargo"),
    ("documentation::runtime_table_matches_manifests_and_sources", "it starts cargo"),
];

/// The tests of the core that are skipped on an emulated processor, each with the reason.
const NOT_EMULATED: [(&str, &str); 4] = [
    ("documentation::", "they check the source"),
    ("layout::", "they check the source"),
    ("property::", "they take minutes there, and use one thread"),
    ("public_api::", "they check the source"),
];

/// Reports that these tests are skipped in `environment`. Returns the arguments that skip these tests.
fn skip_tests(context: &Context, tests: &'static [(&str, &str)], environment: &str) -> Vec<&'static str> {
    for (test, reason) in tests {
        context.skip(&format!("{test} {environment}: {reason}"));
    }
    tests.iter().flat_map(|(test, _)| ["--skip", test]).collect()
}

/// Runs Windows builds of the tests under Wine.
pub(super) fn wine(context: &Context) -> Result<()> {
    const TARGET: &str = "x86_64-pc-windows-gnu";
    let programs = [("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64"), ("wine", "wine")];
    if !programs.iter().all(|(program, package)| context.program(program, package)) || !context.target(TARGET) {
        return Ok(());
    }
    let sh = &context.sh;
    let prefix = context.built("wine");
    let _prefix = sh.push_env("WINEPREFIX", &prefix);
    let _log = sh.push_env("WINEDEBUG", "-all");
    let _runner = sh.push_env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER", "wine");
    let library = prefix.join("drive_c/windows/system32/bcryptprimitives.dll");
    if !library.exists() {
        cmd!(sh, "timeout 300 wineboot -i").quiet().ignore_stderr().run()?;
        let source = prefix.join("bcryptprimitives.c");
        sh.write_file(&source, BCRYPTPRIMITIVES)?;
        cmd!(sh, "x86_64-w64-mingw32-gcc -shared -o {library} {source} -ladvapi32").run()?;
    }
    let skips = skip_tests(context, &NOT_UNDER_WINE, "under Wine");
    let suites = [
        ("-p background-tasks --all-features --lib --test allocation --test it", skips),
        // The suite `process` prints the names of the tests that need Unix and are skipped.
        ("-p background-tasks-host --all-features --lib --tests", vec![]),
        ("-p invoices", vec![]),
    ];
    let run = |suite: &str, skips: &[&str]| {
        let words = &suite.split(' ').collect::<Vec<_>>()[..];
        cmd!(sh, "cargo test --quiet {words...} --target {TARGET} --no-run").run()?;
        cmd!(sh, "timeout 600 cargo test --quiet {words...} --target {TARGET} -- {skips...}").run()
    };
    let tested = suites.iter().try_for_each(|(suite, skips)| run(suite, skips));
    // Wine's background services would otherwise keep the output of this job open.
    cmd!(sh, "wineserver -k").quiet().ignore_status().run()?;
    Ok(tested?)
}

/// Runs the tests of the core on an emulated processor, and so tests the compiled code. The weaker memory order of the processor is not
/// tested, because QEMU uses the memory order of this computer.
pub(super) fn aarch64(context: &Context) -> Result<()> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    const TESTS: [&str; 4] = ["--all-features", "--lib", "--test=allocation", "--test=it"];
    let has_libc = || Path::new("/usr/aarch64-linux-gnu/lib/libc.so").exists();
    let has_tools = context.program("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")
        && context.program("qemu-aarch64", "qemu-user")
        && context.debian("libc6-dev-arm64-cross", has_libc);
    if !has_tools || !context.target(TARGET) {
        return Ok(());
    }
    let sh = &context.sh;
    let _linker = sh.push_env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
    let _runner = sh.push_env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "qemu-aarch64 -L /usr/aarch64-linux-gnu");
    cmd!(sh, "cargo test --quiet {TESTS...} --target {TARGET} --no-run").run()?;
    let skips = skip_tests(context, &NOT_EMULATED, "on aarch64");
    let test = cmd!(sh, "timeout 900 cargo test --quiet {TESTS...} --target {TARGET} -- {skips...}");
    // 20000 is a tenth of the default, because the emulator is slow.
    Ok(test.env("SOAK", "20000").run()?)
}

pub(super) fn bare(context: &Context) -> Result<()> {
    const BARE: &str = "critical-section,portable-atomic";
    let sh = &context.sh;
    for features in ["critical-section", BARE] {
        // Without `std`, the core treats the whole program as one thread. While one test reports a rejection, no other test can report
        // one, so the tests run one at a time.
        let test = cmd!(sh, "cargo test --quiet --no-default-features --features {features} --lib --test it");
        test.env("RUST_TEST_THREADS", "1").run()?;
    }

    // The targets in this list have no 64-bit atomics. The last two also have no atomic compare-and-swap.
    let targets = [
        ("thumbv7em-none-eabihf", ""),
        ("thumbv7em-none-eabihf", BARE),
        ("thumbv6m-none-eabi", BARE),
        ("riscv32imc-unknown-none-elf", BARE),
    ];
    for (target, features) in targets {
        if context.target(target) {
            cmd!(sh, "cargo clippy --quiet --no-default-features --features {features} --target {target} -- -D warnings").run()?;
            cmd!(sh, "cargo build --quiet --no-default-features --features {features} --target {target}").run()?;
        }
    }

    let has_qemu = context.program("qemu-system-arm", "qemu-system-arm");
    let _folder = sh.push_dir("examples/bare-metal");
    let readme = sh.read_file("README.md")?;
    let expected =
        readme.split_once("```text\n").and_then(|(_, rest)| rest.split_once("```")).map_or("", |(text, _)| text).trim_end();
    for target in ["thumbv7m-none-eabi", "thumbv6m-none-eabi"] {
        if context.target(target) {
            cmd!(sh, "cargo clippy --quiet --target {target} -- -D warnings").run()?;
            cmd!(sh, "cargo build --quiet --target {target}").run()?;
            if has_qemu {
                let printed = cmd!(sh, "timeout 60 cargo run --quiet --target {target}").read()?;
                ensure!(printed.trim_end() == expected, "on {target} the example prints:\n{printed}\nits README says:\n{expected}");
            }
        }
    }
    Ok(())
}

/// Returns a `PATH` with the programs of wasm-bindgen, in the version of the locked library. The programs are built without TLS support,
/// because the jobs do not need TLS.
fn wasm_bindgen(context: &Context) -> Result<Option<OsString>> {
    let version = locked_version(&context.sh, "wasm-bindgen")?;
    let arguments = ["--no-default-features", "--bin", "wasm-bindgen", "--bin", "wasm-bindgen-test-runner"];
    context.cargo_tool("wasm-bindgen-cli", &version, &arguments)
}

/// Runs the example Worker in workerd, the runtime of Cloudflare Workers.
pub(super) fn worker(context: &Context) -> Result<()> {
    const TARGET: &str = "wasm32-unknown-unknown";
    let sh = &context.sh;
    if !context.target(TARGET) || !context.program("node", "nodejs") {
        return Ok(());
    }
    cmd!(sh, "cargo clippy --quiet --target {TARGET} -p receipts -- -D warnings").run()?;
    let Some(package) = context.npm_package("workerd", "1.20261117.1")? else { return Ok(()) };
    let Some(path) = wasm_bindgen(context)? else { return Ok(()) };
    cmd!(sh, "cargo build --quiet -p receipts --target {TARGET}").run()?;
    let built = context.built("wasm32-unknown-unknown/debug/receipts.wasm");
    cmd!(sh, "wasm-bindgen --target web --no-typescript --out-dir examples/worker/pkg {built}").env("PATH", path).run()?;
    let workerd = {
        let _folder = sh.push_dir(package);
        let script = "require('workerd').default";
        cmd!(sh, "node --print {script}").quiet().read()?
    };
    Ok(cmd!(sh, "timeout 120 node --test examples/worker/tests/worker.mjs").env("WORKERD", workerd).run()?)
}

pub(super) fn wasm(context: &Context) -> Result<()> {
    const TARGET: &str = "wasm32-unknown-unknown";
    let sh = &context.sh;
    if !context.target(TARGET) {
        return Ok(());
    }
    for features in ["", "wasm-bindgen-futures,serde,tracing,metrics"] {
        cmd!(sh, "cargo clippy --quiet --target {TARGET} -p background-tasks --features {features} -- -D warnings").run()?;
    }
    cmd!(sh, "cargo clippy --quiet --target {TARGET} -p drafts --all-targets -- -D warnings").run()?;

    let Some(path) = wasm_bindgen(context)? else { return Ok(()) };
    let _path = sh.push_env("PATH", path);
    let _runner = sh.push_env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER", "wasm-bindgen-test-runner");
    // No `--quiet`: the runner rejects this option of the test harness.
    // The time limits of the tests do not include the build.
    cmd!(sh, "cargo test --no-run -p drafts --target {TARGET}").run()?;
    if context.program("node", "nodejs") {
        cmd!(sh, "timeout 300 cargo test -p drafts --target {TARGET}").run()?;
    }
    if !context.browser() {
        return Ok(());
    }
    let driver = cmd!(sh, "which chromedriver").quiet().read()?;
    let _driver = sh.push_env("CHROMEDRIVER", driver);
    {
        let _browser = sh.push_env("WASM_BINDGEN_USE_BROWSER", "1");
        cmd!(sh, "timeout 300 cargo test -p drafts --target {TARGET}").run()?;
        // In this build, a panic unwinds.
        if context.toolchain("nightly", "rust-src") {
            let _flags = sh.push_env("RUSTFLAGS", "-Cpanic=unwind");
            let _target = sh.push_env("CARGO_TARGET_DIR", context.built("unwind"));
            let test = ["cargo", "test", "-Zbuild-std=std,panic_unwind", "-p", "drafts", "--target", TARGET];
            cmd!(sh, "rustup run nightly {test...} --no-run").run()?;
            cmd!(sh, "timeout 300 rustup run nightly {test...}").run()?;
        }
    }
    cmd!(sh, "cargo build --quiet -p drafts --target {TARGET}").run()?;
    let built = context.built("wasm32-unknown-unknown/debug/drafts.wasm");
    cmd!(sh, "wasm-bindgen --target web --no-typescript --out-dir examples/browser/pkg {built}").run()?;
    Ok(cmd!(sh, "timeout 300 node --test examples/browser/tests/page.mjs").run()?)
}
