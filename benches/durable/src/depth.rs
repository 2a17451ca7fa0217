//! Measures how fast a worker processes jobs while many other jobs wait in the queue.

use crate::bare::Bare;
use crate::contender::{Contender, Worker as _};
use crate::database::Database;
use crate::durable::Durable;
use crate::graphile::Graphile;
use crate::load::Load;
use crate::samples::{median, number, percentile};
use crate::{Server, Settings};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const BATCH: usize = 10;
const CONCURRENCY: usize = 16;

/// The time limit of a measurement in one round.
const WINDOW: Duration = Duration::from_secs(2);
/// The maximum number of jobs that a measurement processes.
const LIMIT: usize = 20_000;

/// The number of jobs that a round enqueues one by one.
const SINGLY: u64 = 100;

/// The number of jobs that one call enqueues.
const CHUNK: usize = 10_000;

/// The results of one store, which become one part of the plot.
pub struct Panel {
    pub title: &'static str,
    pub depths: Vec<usize>,
    pub curves: Vec<Curve>,
}

pub struct Curve {
    pub contender: &'static str,
    pub analyzed: bool,
    /// The measurements of each round, for each depth.
    rounds: Vec<Vec<Round>>,
}

/// The measurements of one round. The queue has the same depth during the round.
#[derive(Clone, Copy)]
pub struct Round {
    /// The number of processed jobs per second.
    rate: f64,
    /// The median time to enqueue one job, in microseconds.
    enqueue: f64,
    /// The time to count the unfinished jobs, in milliseconds.
    count: f64,
}

impl Curve {
    pub fn rates(&self) -> Vec<f64> {
        self.medians(|round| round.rate)
    }

    fn medians(&self, value: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(|rounds| median(&rounds.iter().map(&value).collect::<Vec<_>>())).collect()
    }

    pub fn name(&self) -> String {
        format!("{}, {}", self.contender, if self.analyzed { "analyzed" } else { "not analyzed" })
    }
}

pub async fn section(server: &Server, settings: &Settings) -> Option<Panel> {
    if !settings.selects(server, "depth") {
        return None;
    }
    let depths: Vec<_> =
        [1_000, 10_000, 100_000, 1_000_000].into_iter().filter(|&depth| depth <= settings.jobs.max(1_000)).collect();
    let mut panel = Panel { title: server.name(), depths: depths.clone(), curves: Vec::new() };
    let mut queues: Vec<Vec<Box<dyn Deep>>> = Vec::new();
    for &depth in &depths {
        let mut all: Vec<Box<dyn Deep>> =
            vec![Filled::<Durable>::filled(server, depth).await, Filled::<Bare>::filled(server, depth).await];
        if let Server::Postgres(_) = server {
            all.push(Filled::<Graphile>::filled(server, depth).await);
        }
        queues.push(all);
    }
    for analyzed in [false, true] {
        let names = queues[0].iter().map(|queue| queue.name());
        let mut curves: Vec<_> =
            names.map(|contender| Curve { contender, analyzed, rounds: vec![Vec::new(); depths.len()] }).collect();
        for round in 0..settings.rounds {
            for (place, queues) in queues.iter_mut().enumerate() {
                let count = queues.len();
                for turn in 0..count {
                    let contender = (round + turn) % count;
                    let measured = queues[contender].measure(analyzed).await;
                    curves[contender].rounds[place].push(measured);
                }
            }
        }
        panel.curves.extend(curves);
    }
    panel.print();
    Some(panel)
}

impl Panel {
    fn print(&self) {
        self.table("jobs/s while so many are due", |round| round.rate);
        self.table("p50 of an enqueue, µs", |round| round.enqueue);
        self.table("counting the jobs, ms", |round| round.count);
    }

    fn table(&self, what: &str, value: impl Fn(&Round) -> f64) {
        let depths: String = self.depths.iter().map(|&depth| format!(" {} |", number(depth as f64))).collect();
        println!("\n| {}, {what} |{depths} last / first |", self.title);
        println!("| --- |{}", " ---: |".repeat(self.depths.len() + 1));
        for curve in &self.curves {
            let medians = curve.medians(&value);
            let cells: String = medians.iter().map(|&median| format!(" {} |", number(median))).collect();
            println!("| {} |{cells} {:.2} |", curve.name(), medians[medians.len() - 1] / medians[0]);
        }
    }
}

/// A queue of one contender that is filled to one depth.
trait Deep {
    fn name(&self) -> &'static str;
    /// Fills the queue up to its depth, and measures it. The worker processes a part of the jobs during this time.
    fn measure(&mut self, analyzed: bool) -> Pin<Box<dyn Future<Output = Round> + '_>>;
}

struct Filled<C> {
    database: Database,
    queue: C,
    depth: usize,
    missing: usize,
}

impl<C: Contender + 'static> Filled<C> {
    async fn filled(server: &Server, depth: usize) -> Box<dyn Deep> {
        let database = server.database();
        let queue = C::queue(&C::connect(&database).await, "bench");
        let mut this = Self { database, queue, depth, missing: depth };
        this.fill().await;
        this.database.checkpoint().await;
        Box::new(this)
    }

    async fn fill(&mut self) {
        while self.missing > 0 {
            let jobs = self.missing.min(CHUNK);
            self.queue.enqueue_all((0..jobs as u64).collect()).await;
            self.missing -= jobs;
        }
    }
}

impl<C: Contender + 'static> Deep for Filled<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn measure(&mut self, analyzed: bool) -> Pin<Box<dyn Future<Output = Round> + '_>> {
        Box::pin(async move {
            self.fill().await;
            if analyzed {
                self.database.analyze().await;
            }
            let start = Instant::now();
            self.queue.unfinished().await;
            let count = start.elapsed().as_secs_f64() * 1e3;
            let mut latencies = Vec::new();
            for job in 0..SINGLY {
                let start = Instant::now();
                self.queue.enqueue(job).await;
                latencies.push(start.elapsed());
            }
            let enqueue = percentile(&latencies, 50);

            let jobs = self.depth.min(LIMIT);
            let load = Arc::new(Load::open(jobs));
            let worker = self.queue.work(BATCH, CONCURRENCY, &load).await;
            while load.started() == 0 {
                sleep(Duration::from_millis(1)).await;
            }
            let (start, first) = (Instant::now(), load.started());
            let _ = timeout(WINDOW, load.all_started()).await;
            let rate = (load.started() - first) as f64 / start.elapsed().as_secs_f64();
            worker.stop().await;
            self.missing = load.started().saturating_sub(SINGLY as usize);
            Round { rate, enqueue, count }
        })
    }
}
