//! Defines the table of the jobs.

mod companions;
mod core;
mod everywhere;
mod pictures;
mod proofs;
mod targets;
mod words;

pub(crate) use everywhere::fmt;

use crate::context::Context;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

pub(crate) struct Job {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) tier: Tier,
    /// The files and folders that the job checks. An empty list means all files.
    paths: &'static [&'static str],
    /// The tools that the job needs in addition to the Rust toolchain.
    tools: &'static str,
    /// An estimate of the duration on two cores, in seconds.
    pub(crate) seconds: u32,
    pub(crate) run: fn(&Context) -> Result<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// The job runs on every change.
    Full,
    /// The job runs in `nightly`, and also in `ci` if the turn of `ci` is this number (0 to 7).
    Nightly(usize),
    /// The job runs only if the command line names it.
    OnRequest,
}

impl Tier {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Tier::Full => "full",
            Tier::Nightly(_) => "nightly",
            Tier::OnRequest => "-",
        }
    }

    /// Returns whether `ci` runs the jobs of this tier at this turn.
    pub(crate) fn has_turn(self, turn: usize) -> bool {
        match self {
            Tier::Full => true,
            Tier::Nightly(own) => own == turn,
            Tier::OnRequest => false,
        }
    }
}

use Tier::{Full, Nightly, OnRequest};

#[rustfmt::skip]
pub(crate) const JOBS: &[Job] = &[
    Job { name: "fmt", about: "formatting", tier: Full, paths: &[], tools: "", seconds: 1, run: fmt },
    Job { name: "test", about: "the tests, with the command in the README", tier: Full, paths: &[], tools: "Postgres, PgBouncer, runit, systemd", seconds: 500, run: everywhere::test },
    Job { name: "brokers", about: "the tests of consumer/ and of its example, with each broker", tier: Full, paths: &["consumer", "examples/consumer", "examples/durable"], tools: "nats-server, RabbitMQ, Node, azurite, moto", seconds: 400, run: companions::brokers },
    Job { name: "lint", about: "Clippy on all packages, with all features", tier: Full, paths: &[], tools: "", seconds: 150, run: everywhere::lint },
    Job { name: "docs", about: "the documentation of each published crate, with all features and with the default features", tier: Full, paths: &["src", "docs/guide", "host", "runtimes", "durable", "consumer"], tools: "", seconds: 120, run: everywhere::docs },
    Job { name: "words", about: "the spelling, and phrases to avoid in prose", tier: Full, paths: &[], tools: "typos, Python", seconds: 5, run: words::words },
    Job { name: "patches", about: "the patches of the hazards apply to the source", tier: Full, paths: &["xtask/hazards", "src", "host/src", "durable/src"], tools: "", seconds: 1, run: proofs::patches },
    Job { name: "features", about: "the core without std and with each feature alone, its dependencies, and the errors for missing features", tier: Full, paths: &["src", "build.rs", "Cargo.toml", "host/src/lib.rs", "runtimes/src/lib.rs"], tools: "", seconds: 40, run: core::features },
    Job { name: "shards", about: "the tests of the core with one, two and 64 shards", tier: Full, paths: &["src", "tests"], tools: "", seconds: 100, run: core::shards },
    Job { name: "package", about: "the files of each published package; a dry run of publishing the core", tier: Full, paths: &["Cargo.toml", "host", "runtimes", "durable", "consumer"], tools: "", seconds: 6, run: everywhere::package },
    Job { name: "msrv", about: "the core with the oldest supported Rust", tier: Full, paths: &["src", "Cargo.toml"], tools: "toolchain 1.85", seconds: 30, run: core::msrv },
    Job { name: "models", about: "the loom models", tier: Full, paths: &["src/sync", "src/state", "src/task.rs", "src/signal.rs", "models"], tools: "", seconds: 150, run: proofs::models },
    Job { name: "changed-mutants", about: "mutants of the changed lines in the core's logic", tier: Full, paths: &["src/sync", "src/state"], tools: "cargo-mutants", seconds: 5, run: proofs::changed_mutants },
    Job { name: "hazards", about: "hand-written bugs, each of which a test or a model must catch", tier: Nightly(2), paths: &["xtask/hazards", "src", "host/src", "durable/src"], tools: "", seconds: 180, run: proofs::hazards },
    Job { name: "orderings", about: "weakened atomic orderings, each of which a model must catch", tier: Nightly(5), paths: &["src/sync", "src/state", "models"], tools: "", seconds: 150, run: proofs::orderings },
    Job { name: "mutants", about: "mutants of the core's logic, by cargo-mutants", tier: Nightly(7), paths: &["src/sync", "src/state"], tools: "cargo-mutants", seconds: 400, run: proofs::mutants },
    Job { name: "miri", about: "the core's tests without a reactor under Miri", tier: Nightly(0), paths: &["src", "tests"], tools: "nightly, Miri", seconds: 400, run: proofs::miri },
    Job { name: "tsan", about: "the core's tests with threads under ThreadSanitizer", tier: Nightly(1), paths: &["src", "tests"], tools: "nightly, rust-src", seconds: 300, run: proofs::tsan },
    Job { name: "wasm", about: "the core in Node and Chromium, and the page of the example", tier: Nightly(2), paths: &["src/adapters/wasm_bindgen_futures.rs", "examples/browser", "testing/webdriver.mjs"], tools: "wasm32, Node, Chromium, nightly", seconds: 230, run: targets::wasm },
    Job { name: "bare", about: "the core without std, and its example on two emulated boards", tier: Nightly(3), paths: &["src", "tests/it/bare.rs", "tests/it/common", "examples/bare-metal"], tools: "four targets, QEMU", seconds: 150, run: targets::bare },
    Job { name: "systems", about: "the core, host/ and runtimes/ compile for Windows and macOS; the unit tests of the core on 32 bits", tier: Nightly(3), paths: &["src", "host", "runtimes"], tools: "three targets", seconds: 250, run: targets::systems },
    Job { name: "wine", about: "the core, host/ and the service of examples/windows-service under Wine", tier: Nightly(1), paths: &["src", "tests", "host", "testing", "examples/windows-service"], tools: "Windows target, MinGW, Wine", seconds: 240, run: targets::wine },
    Job { name: "aarch64", about: "the core on an emulated processor", tier: Nightly(6), paths: &["src", "tests"], tools: "aarch64 target, GCC, QEMU", seconds: 150, run: targets::aarch64 },
    Job { name: "worker", about: "the Worker of examples/worker in workerd", tier: Nightly(3), paths: &["src/adapters/wasm_bindgen_futures.rs", "examples/worker"], tools: "wasm32, Node, npm", seconds: 30, run: targets::worker },
    Job { name: "host", about: "host/ with each feature alone, the unit and the manifest of examples/axum, the dashboard in Chromium, the oldest Rust", tier: Nightly(4), paths: &["host", "examples/axum", "examples/notes", "testing/webdriver.mjs"], tools: "systemd, PyYAML, Node, Chromium, toolchain 1.85", seconds: 200, run: companions::host },
    Job { name: "durable", about: "durable/ compiles with each store alone and with the oldest Rust; the page of the example in Chromium", tier: Nightly(5), paths: &["durable", "examples/durable", "testing/webdriver.mjs"], tools: "Postgres, Node, Chromium, toolchain 1.94", seconds: 300, run: companions::durable },
    Job { name: "consumer", about: "consumer/ compiles with each feature alone and with the oldest Rust; long tests of its worker processes with each broker", tier: Nightly(2), paths: &["consumer", "examples/consumer", "examples/durable"], tools: "nats-server, RabbitMQ, Node, azurite, moto, toolchain 1.89", seconds: 600, run: companions::consumer },
    Job { name: "runtimes", about: "the tests of runtimes/, the recipes of host/src/frameworks.md, the features of runtimes/ alone, its shared cache lines, and the oldest Rust of each feature; the names in tokio-console", tier: Nightly(6), paths: &["runtimes", "host/src/frameworks.md", "src/adapters/tokio.rs", "tests/console.rs"], tools: "Valgrind, toolchains 1.85 to 1.95", seconds: 270, run: companions::runtimes },
    Job { name: "graphile", about: "the tests of the recipe for graphile_worker", tier: Nightly(7), paths: &["examples/graphile"], tools: "Postgres", seconds: 60, run: companions::graphile },
    Job { name: "minimal", about: "the core with the oldest versions of its direct dependencies", tier: Nightly(6), paths: &["Cargo.toml"], tools: "nightly", seconds: 60, run: core::minimal },
    Job { name: "bench", about: "short runs of the benchmarks peers and lost-work; a stopped service loses no work silently", tier: Nightly(0), paths: &["benches"], tools: "Valgrind", seconds: 80, run: core::bench },
    Job { name: "deny", about: "bans, licences, sources and advisories of all dependencies", tier: Nightly(4), paths: &["deny.toml", "Cargo.toml"], tools: "cargo-deny", seconds: 250, run: everywhere::deny },
    Job { name: "portable", about: "the tests of the core and of host/, which pass on every system", tier: OnRequest, paths: &[], tools: "", seconds: 60, run: everywhere::portable },
    Job { name: "pictures", about: "makes the pictures in docs/pictures, except lifecycle.svg", tier: OnRequest, paths: &["docs/pictures"], tools: "util-linux, Node, Chromium", seconds: 100, run: pictures::pictures },
    Job { name: "semver", about: "the public API, compared with the last release", tier: Nightly(7), paths: &["src", "host", "runtimes", "durable", "consumer"], tools: "cargo-semver-checks", seconds: 5, run: everywhere::semver },
];

/// Prints the table of the jobs.
pub(crate) fn print_list() {
    println!("{:15} {:8} {:>9}  checks", "job", "tier", "seconds");
    for job in JOBS {
        println!("{:15} {:8} {:>9}  {}", job.name, job.tier.name(), job.seconds, job.about);
        let paths = if job.paths.is_empty() { "all".to_owned() } else { job.paths.join(" ") };
        println!("{:36}paths: {paths}{}{}", "", if job.tools.is_empty() { "" } else { "; needs: " }, job.tools);
    }
    println!(
        "\ntier -: the job runs only by its name\n\
        seconds: an estimate for `ci` on two cores; `ci` runs a quarter of `hazards` and `orderings`, and 1/32 of `mutants`"
    );
}

/// Returns the jobs whose paths contain at least one of these files.
pub(crate) fn concerned(files: &BTreeSet<String>) -> impl Iterator<Item = &'static Job> {
    let has = |path: &str| files.iter().any(|file| Path::new(file).starts_with(path));
    JOBS.iter().filter(move |job| job.paths.iter().any(|path| has(path)))
}
