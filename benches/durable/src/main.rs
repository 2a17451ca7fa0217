//! Measures durable jobs beside the bare engine underneath them, in rounds that run both in turn, and prints tables of it. Words on the
//! command line choose the rows that have one of them in their name; `ROUNDS` says how many rounds, and `QUICK=1` that figures do not matter.

mod bare;
mod database;
mod durable;
mod figures;
mod load;
#[path = "../../../durable/tests/common/postgres.rs"]
mod postgres;

use database::Database;
use figures::{Sample, Samples};
use load::Load;
use postgres::Postgres;
use rustix::time::{ClockId, clock_gettime};
use std::env;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LEASE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// What a row of the table measures, of so many jobs.
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

/// Who is measured: an engine, or what stands on one.
trait Contender: Sized {
    type Worker: Worker;

    fn new(database: &Database) -> Self;
    fn enqueue(&mut self, job: u64) -> impl Future<Output = ()>;
    fn enqueue_all(&mut self, jobs: Vec<u64>) -> impl Future<Output = ()>;
    fn work(&self, batch: usize, concurrency: usize, load: &Arc<Load>) -> impl Future<Output = Self::Worker>;
}

trait Worker {
    /// Has the worker end in order, and returns when it has.
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
        Err(why) => println!("Postgres skipped: {why}"),
    }
}

async fn table(engine: &str, rows: &[Work], rounds: usize, fresh: impl AsyncFn() -> Database) {
    if rows.is_empty() {
        return;
    }
    println!("\n{}", figures::head(engine));
    for &work in rows {
        let mut bare = Samples::default();
        let mut ours = Samples::default();
        // The first round warms up, and each is the first in turn.
        for round in 0..=rounds {
            for place in 0..2 {
                let sample = if (round + place) % 2 == 0 {
                    // It waits for ever: jobs that end wait for a place among the outcomes, which nobody writes any more.
                    if matches!(work, Work::Drain { .. }) {
                        continue;
                    }
                    (&mut bare, measure::<bare::Bare>(&fresh().await, work).await)
                } else {
                    (&mut ours, measure::<durable::Durable>(&fresh().await, work).await)
                };
                if round > 0 || rounds == 1 {
                    sample.0.push(sample.1);
                }
            }
        }
        for line in figures::lines(&work.name(), &bare, &ours) {
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
                let began = Instant::now();
                contender.enqueue(job).await;
                latencies.push(began.elapsed());
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
            // As the upkeep does: without it the plan of the one who comes first is another.
            database.analyze().await;
            let load = Arc::new(Load::open(jobs));
            let meter = Meter::start();
            let worker = contender.work(batch, concurrency, &load).await;
            load.all_begun().await;
            // What counts is the row: a job whose outcome is not there may run again.
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
            load.all_begun().await;
            load.let_go();
            let began = Instant::now();
            worker.drain().await;
            let took = began.elapsed();
            assert_eq!(database.done().await, jobs, "the outcome of each is there when the worker is gone");
            (took.as_secs_f64() * 1e3).into()
        }
    }
}

struct Meter {
    began: Instant,
    cpu: Duration,
}

impl Meter {
    fn start() -> Self {
        Self { began: Instant::now(), cpu: cpu() }
    }

    fn read(self, jobs: usize) -> Sample {
        let jobs = jobs as f64;
        let cpu = (cpu() - self.cpu).as_secs_f64() * 1e6 / jobs;
        Sample { cpu, ..Sample::from(jobs / self.began.elapsed().as_secs_f64()) }
    }
}

/// What this process has had of its processors.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("it goes forward")
}
