//! Measures how long a job waits until an idle worker starts it. Another process enqueues the job.

use crate::bare::Bare;
use crate::contender::{Contender, Worker as _};
use crate::database::Database;
use crate::durable::Durable;
use crate::graphile::Graphile;
use crate::load::{Load, now};
use crate::samples::{number, percentile};
use crate::{Server, Settings};
use std::env;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// The first argument of the process that enqueues the jobs.
pub const ENQUEUE: &str = "--enqueue";

const JOBS: usize = 100;

/// The time limit for all jobs. It is longer than all jobs need with the longest poll interval.
const LIMIT: Duration = Duration::from_mins(5);

pub async fn section(server: &Server, settings: &Settings) {
    if !settings.selects(server, "pick-up") {
        return;
    }
    println!("\n| {}, pick-up from another process, ms | p50 | p95 | p99 |\n| --- | ---: | ---: | ---: |", server.name());
    print::<Durable>(server, settings).await;
    print::<Bare>(server, settings).await;
    if let Server::Postgres(_) = server {
        print::<Graphile>(server, settings).await;
    }
}

async fn print<C: Contender>(server: &Server, settings: &Settings) {
    let jobs = if settings.quick { JOBS / 20 } else { JOBS };
    let mut waits = Vec::new();
    for _ in 0..settings.rounds {
        waits.extend(measure::<C>(&server.database(), jobs).await);
    }
    let cells: String = [50, 95, 99].iter().map(|&percent| format!(" {} |", number(percentile(&waits, percent) / 1e3))).collect();
    println!("| {} |{cells}", C::NAME);
}

async fn measure<C: Contender>(database: &Database, jobs: usize) -> Vec<Duration> {
    let queue = C::queue(&C::connect(database).await, "bench");
    let load = Arc::new(Load::timed(jobs));
    let worker = queue.work(1, 4, &load).await;
    let program = env::current_exe().expect("the program has a path");
    let mut process = Command::new(program);
    let process = process.args([ENQUEUE, C::NAME, &database.to_string(), &jobs.to_string()]).status();
    assert!(process.await.expect("the process starts").success(), "the process enqueues all jobs");
    timeout(LIMIT, load.all_started()).await.expect("all jobs are picked up");
    worker.stop().await;
    load.waits()
}

/// Enqueues jobs in this process. The number of each job is the current time.
pub async fn enqueue(contender: &str, database: &str, jobs: u64) {
    let database = Database::from(database);
    match contender {
        Durable::NAME => push::<Durable>(&database, jobs).await,
        Bare::NAME => push::<Bare>(&database, jobs).await,
        Graphile::NAME => push::<Graphile>(&database, jobs).await,
        other => panic!("{other} is not a contender"),
    }
}

async fn push<C: Contender>(database: &Database, jobs: u64) {
    let mut queue = C::queue(&C::connect(database).await, "bench");
    for job in 0..jobs {
        // The pauses between jobs vary, so that the jobs do not always arrive at the same time within a poll interval.
        sleep(Duration::from_millis(40 + job * 37 % 101)).await;
        queue.enqueue(now()).await;
    }
}
