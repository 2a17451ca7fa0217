//! Compares durable jobs with two other engines, and prints tables. In each round, the engines take turns. The arguments select rows: the
//! name of a row must contain all arguments. `--help` lists the settings.

mod backoff;
mod bare;
mod contender;
mod database;
mod depth;
mod durable;
mod graphile;
mod idle;
mod load;
mod pickup;
mod plot;
#[path = "../../../durable/tests/it/common/postgres.rs"]
mod postgres;
mod samples;
mod speed;

use database::Database;
use postgres::Postgres;
use rustix::time::{ClockId, clock_gettime};
use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
const WEEK: Duration = Duration::from_hours(7 * 24);

const HELP: &str = "\
Compares durable jobs with the engines apalis and graphile_worker

Arguments select the rows whose names contain all of them: sqlite, postgres, speed, depth, pick-up, idle, backoff, process, …

--out FOLDER  writes the plot of the depth curve to this folder

ROUNDS=N   the number of rounds. Default: 5, with QUICK 1
JOBS=N     the size of the largest queue. Default: 100000, with QUICK 2000
QUICK=1    checks that all rows run; the numbers have no meaning";

struct Settings {
    words: Vec<String>,
    quick: bool,
    rounds: usize,
    /// The number of jobs in the largest queue.
    jobs: usize,
    out: Option<PathBuf>,
}

impl Settings {
    fn from_env() -> Self {
        let quick = env::var_os("QUICK").is_some();
        let number = |name, default| env::var(name).map_or(default, |text| text.parse().expect("the setting is a number"));
        let mut arguments = env::args().skip(1);
        let (mut words, mut out) = (Vec::new(), None);
        while let Some(argument) = arguments.next() {
            match &*argument {
                "--out" => {
                    // Cargo runs a benchmark in the folder of its package, so this path is relative to the workspace.
                    let folder =
                        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(arguments.next().expect("--out needs a folder"));
                    assert!(folder.is_dir(), "{} is not a folder", folder.display());
                    out = Some(folder);
                }
                // Cargo passes this argument to each benchmark.
                "--bench" => {}
                _ => words.push(argument),
            }
        }
        Self {
            words,
            quick,
            rounds: number("ROUNDS", if quick { 1 } else { 5 }),
            jobs: number("JOBS", if quick { 2_000 } else { 100_000 }),
            out,
        }
    }

    /// Returns whether the arguments select a row.
    fn selects(&self, store: &Server, row: &str) -> bool {
        self.words.iter().all(|word| format!("{} {row}", store.name().to_lowercase()).contains(word))
    }
}

/// The database server in which the benchmark creates databases.
enum Server {
    Sqlite,
    Postgres(Postgres),
}

impl Server {
    fn name(&self) -> &'static str {
        match self {
            Self::Sqlite => "SQLite",
            Self::Postgres(_) => "Postgres",
        }
    }

    fn database(&self) -> Database {
        match self {
            Self::Sqlite => Database::sqlite(),
            Self::Postgres(server) => Database::postgres(server),
        }
    }
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("the runtime starts");
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(|argument| &**argument).collect::<Vec<_>>()[..] {
        ["--help", ..] => println!("{HELP}"),
        [pickup::ENQUEUE, contender, database, jobs] => {
            runtime.block_on(pickup::enqueue(contender, database, jobs.parse().expect("the number of jobs")));
        }
        _ => runtime.block_on(compare(&Settings::from_env())),
    }
}

async fn compare(settings: &Settings) {
    let mut panels = Vec::new();
    // Autovacuum is off, because it could update the statistics during a measurement. The benchmark updates them between measurements.
    let postgres = Postgres::start_with(&[("autovacuum", "off")]);
    for server in [Ok(Server::Sqlite), postgres.map(Server::Postgres)] {
        let server = match server {
            Ok(server) => server,
            Err(reason) => {
                println!("Postgres skipped: {reason}");
                continue;
            }
        };
        speed::section(&server, settings).await;
        panels.extend(depth::section(&server, settings).await);
        pickup::section(&server, settings).await;
        idle::section(&server, settings).await;
        backoff::section(&server, settings).await;
    }
    if let Some(folder) = &settings.out
        && !panels.is_empty()
    {
        plot::draw(&panels, &folder.join("durable-depth.svg")).expect("the plot is written");
    }
}

/// Returns the CPU time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("the clock is not negative")
}
