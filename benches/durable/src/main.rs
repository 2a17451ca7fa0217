//! Compares durable jobs with the bare engine, in rounds that run both in turn, and prints tables. Arguments select the rows whose names
//! contain all of them. `ROUNDS` sets the number of rounds. `QUICK=1` runs a short check whose numbers have no meaning.

mod bare;
mod database;
mod durable;
mod load;
#[path = "../../../durable/tests/it/common/postgres.rs"]
mod postgres;
mod samples;

use database::Database;
use load::Load;
use postgres::Postgres;
use rustix::time::{ClockId, clock_gettime};
use samples::{Sample, Samples};
use std::env;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LEASE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// A row of the table: what it measures, with how many jobs.
#[derive(Clone, Copy)]
enum Work {
    Singly { jobs: usize },
    InBulk { jobs: usize },
    Process { jobs: usize, batch: usize, concurrency: usize },
    Drain { jobs: usize },
}

impl Work {
    fn name(self) -> String {
        match self {
            Self::Singly { .. } => "enqueue singly, jobs/s".into(),
            Self::InBulk { jobs } => format!("enqueue {jobs} in bulk, jobs/s"),
            Self::Process { batch, concurrency, .. } => format!("process at batch {batch}, concurrency {concurrency}, jobs/s"),
            Self::Drain { jobs } => format!("drain {jobs} in flight, ms"),
        }
    }

    fn quick(self) -> Self {
        match self {
            Self::Singly { jobs } => Self::Singly { jobs: jobs / 20 },
            Self::InBulk { jobs } => Self::InBulk { jobs: jobs / 20 },
            Self::Process { jobs, batch, concurrency } => Self::Process { jobs: jobs / 20, batch, concurrency },
            drain @ Self::Drain { .. } => drain,
        }
    }
}

const SQLITE: &[Work] = &[
    Work::Singly { jobs: 2_000 },
    Work::InBulk { jobs: 10_000 },
    Work::Process { jobs: 2_000, batch: 1, concurrency: 4 },
    Work::Process { jobs: 2_000, batch: 1, concurrency: 16 },
    Work::Process { jobs: 10_000, batch: 10, concurrency: 16 },
    Work::Drain { jobs: 16 },
];

const POSTGRES: &[Work] = &[
    Work::Singly { jobs: 2_000 },
    Work::InBulk { jobs: 10_000 },
    Work::Process { jobs: 1_000, batch: 1, concurrency: 4 },
    Work::Process { jobs: 1_000, batch: 1, concurrency: 16 },
    Work::Process { jobs: 5_000, batch: 10, concurrency: 16 },
    Work::Process { jobs: 10_000, batch: 100, concurrency: 128 },
    Work::Drain { jobs: 16 },
];

/// A contender: the bare engine, or durable jobs.
trait Contender: Sized {
    type Worker: Worker;

    fn new(database: &Database) -> Self;
    fn enqueue(&mut self, job: u64) -> impl Future<Output = ()>;
    fn enqueue_all(&mut self, jobs: Vec<u64>) -> impl Future<Output = ()>;
    fn work(&self, batch: usize, concurrency: usize, load: &Arc<Load>) -> impl Future<Output = Self::Worker>;
}

trait Worker {
    /// Drains the worker.
    fn drain(self) -> impl Future<Output = ()>;
}

#[tokio::main]
async fn main() {
    let wanted: Vec<_> = env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let quick = env::var_os("QUICK").is_some();
    let rounds = env::var("ROUNDS").map_or(if quick { 1 } else { 5 }, |rounds| rounds.parse().expect("ROUNDS is a number"));

    let rows = |engine: &str, all: &[Work]| -> Vec<Work> {
        let has = |work: &Work| wanted.is_empty() || wanted.iter().all(|word| format!("{engine} {}", work.name()).contains(word));
        all.iter().copied().map(|work| if quick { work.quick() } else { work }).filter(has).collect()
    };
    table("SQLite", &rows("sqlite", SQLITE), rounds, Database::sqlite).await;
    let on_postgres = rows("postgres", POSTGRES);
    match Postgres::start() {
        _ if on_postgres.is_empty() => {}
        Ok(server) => table("Postgres", &on_postgres, rounds, async || Database::postgres(&server).await).await,
        Err(reason) => println!("Postgres skipped: {reason}"),
    }
}

async fn table(engine: &str, rows: &[Work], rounds: usize, fresh: impl AsyncFn() -> Database) {
    if rows.is_empty() {
        return;
    }
    println!("\n{}", samples::head(engine));
    for &work in rows {
        let mut bare = Samples::default();
        let mut durable = Samples::default();
        // The first round warms up. The contenders take turns at being first.
        for round in 0..=rounds {
            for turn in 0..2 {
                let sample = if (round + turn) % 2 == 0 {
                    // The drain of the bare engine never ends: finished jobs wait until their outcomes are written, but it has stopped writing.
                    if matches!(work, Work::Drain { .. }) {
                        continue;
                    }
                    (&mut bare, measure::<bare::Bare>(&fresh().await, work).await)
                } else {
                    (&mut durable, measure::<durable::Durable>(&fresh().await, work).await)
                };
                if round > 0 || rounds == 1 {
                    sample.0.push(sample.1);
                }
            }
        }
        for line in samples::lines(&work.name(), &bare, &durable) {
            println!("{line}");
        }
    }
}

async fn measure<C: Contender>(database: &Database, work: Work) -> Sample {
    let mut contender = C::new(database);
    match work {
        Work::Singly { jobs } => {
            let mut latencies = Vec::with_capacity(jobs);
            let meter = Meter::start();
            for job in 0..jobs as u64 {
                let start = Instant::now();
                contender.enqueue(job).await;
                latencies.push(start.elapsed());
            }
            Sample { latencies, ..meter.read(jobs) }
        }
        Work::InBulk { jobs } => {
            let all = (0..jobs as u64).collect();
            let meter = Meter::start();
            contender.enqueue_all(all).await;
            meter.read(jobs)
        }
        Work::Process { jobs, batch, concurrency } => {
            contender.enqueue_all((0..jobs as u64).collect()).await;
            // Maintenance does the same. Without it the first contender would have another query plan.
            database.analyze().await;
            let load = Arc::new(Load::open(jobs));
            let meter = Meter::start();
            let worker = contender.work(batch, concurrency, &load).await;
            load.all_started().await;
            // A job is finished when its outcome is committed. Without it the job may run again.
            while database.done().await < jobs {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let sample = meter.read(jobs);
            worker.drain().await;
            sample
        }
        Work::Drain { jobs } => {
            contender.enqueue_all((0..jobs as u64).collect()).await;
            let load = Arc::new(Load::held(jobs));
            let worker = contender.work(1, jobs, &load).await;
            load.all_started().await;
            load.release();
            let start = Instant::now();
            worker.drain().await;
            let duration = start.elapsed();
            assert_eq!(database.done().await, jobs, "every outcome is committed when the worker has drained");
            (duration.as_secs_f64() * 1e3).into()
        }
    }
}

struct Meter {
    start: Instant,
    cpu: Duration,
}

impl Meter {
    fn start() -> Self {
        Self { start: Instant::now(), cpu: cpu() }
    }

    fn read(self, jobs: usize) -> Sample {
        let jobs = jobs as f64;
        let cpu = (cpu() - self.cpu).as_secs_f64() * 1e6 / jobs;
        Sample { cpu, ..Sample::from(jobs / self.start.elapsed().as_secs_f64()) }
    }
}

/// Returns the CPU time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("the clock is not negative")
}
