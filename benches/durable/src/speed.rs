//! Measures how fast jobs are enqueued and processed, and how long a drain takes.

use crate::bare::Bare;
use crate::contender::{Contender, Worker};
use crate::database::Database;
use crate::durable::Durable;
use crate::graphile::Graphile;
use crate::load::Load;
use crate::samples::{self, Sample, Samples};
use crate::{Server, Settings, cpu};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A row of the table. The row has a measured operation and a number of jobs.
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

pub async fn section(server: &Server, settings: &Settings) {
    let rows = if let Server::Sqlite = server { SQLITE } else { POSTGRES };
    let rows = rows.iter().map(|&work| if settings.quick { work.quick() } else { work });
    let rows: Vec<_> = rows.filter(|work| settings.selects(server, &format!("speed: {}", work.name()))).collect();
    if rows.is_empty() {
        return;
    }
    println!("\n{}", samples::head(server));
    for work in rows {
        let [mut durable, mut bare, mut graphile] = [Samples::default(), Samples::default(), Samples::default()];
        // The first round is a warm-up. The order of the contenders changes in each round.
        for round in 0..=settings.rounds {
            for turn in 0..3 {
                let database = server.database();
                let (samples, sample) = match (round + turn) % 3 {
                    0 => (&mut durable, measure::<Durable>(&database, work).await),
                    // A drain of apalis never ends. Finished jobs wait until apalis writes their outcomes, but a draining apalis has
                    // stopped writing.
                    1 if matches!(work, Work::Drain { .. }) => continue,
                    1 => (&mut bare, measure::<Bare>(&database, work).await),
                    _ if database.is_sqlite() => continue,
                    _ => (&mut graphile, measure::<Graphile>(&database, work).await),
                };
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        for line in samples::lines(server, &work.name(), &durable, &[&bare, &graphile]) {
            println!("{line}");
        }
    }
}

async fn measure<C: Contender>(database: &Database, work: Work) -> Sample {
    let mut contender = C::queue(&C::connect(database).await, "bench");
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
            // The maintenance of a queue does the same. Without new statistics, the first contender would have another query plan.
            database.analyze().await;
            let load = Arc::new(Load::open(jobs));
            let meter = Meter::start();
            let worker = contender.work(batch, concurrency, &load).await;
            load.all_started().await;
            // A job counts as finished when its outcome has been committed. Until then, the job may run again.
            while contender.unfinished().await > 0 {
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
            assert_eq!(contender.unfinished().await, 0, "every outcome is committed when the worker has drained");
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
