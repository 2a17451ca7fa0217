//! Measures how much jobs that wait for their retry slow down the due jobs.

use crate::contender::{Contender, Worker as _};
use crate::durable::Durable;
use crate::load::Load;
use crate::samples::{median, number};
use crate::{Server, Settings};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const BATCH: usize = 10;
const CONCURRENCY: usize = 16;

/// The number of due jobs that a round processes.
const DUE: usize = 5_000;

/// The number of jobs that one call enqueues.
const CHUNK: usize = 10_000;

pub async fn section(server: &Server, settings: &Settings) {
    if !settings.selects(server, "backoff") {
        return;
    }
    let (database, empty_database) = (server.database(), server.database());
    let mut queue = Durable::queue(&Durable::connect(&database).await, "bench");
    let mut empty = Durable::queue(&Durable::connect(&empty_database).await, "bench");
    let load = Arc::new(Load::open(settings.jobs));
    for start in (0..settings.jobs).step_by(CHUNK) {
        queue.enqueue_all((0..(settings.jobs - start).min(CHUNK) as u64).collect()).await;
    }
    let worker = queue.fail(128, &load).await;
    load.all_started().await;
    worker.drain().await;
    // Autovacuum would do the same after this number of updates. Without it, each fetch would read and skip the index entries of the old
    // rows.
    database.analyze().await;
    database.checkpoint().await;

    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        without.push(rate(&mut empty, settings).await);
        with.push(rate(&mut queue, settings).await);
    }
    let (with, without) = (median(&with), median(&without));
    println!(
        "\n| {}, jobs/s | {} in backoff | none | ratio |\n| --- | ---: | ---: | ---: |",
        server.name(),
        number(settings.jobs as f64)
    );
    println!("| {} | {} | {} | {:.2} |", Durable::NAME, number(with), number(without), with / without);
}

async fn rate(queue: &mut Durable, settings: &Settings) -> f64 {
    let due = if settings.quick { DUE / 10 } else { DUE };
    queue.enqueue_all((0..due as u64).collect()).await;
    let load = Arc::new(Load::open(due));
    let worker = queue.work(BATCH, CONCURRENCY, &load).await;
    while load.started() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let start = Instant::now();
    load.all_started().await;
    let rate = due as f64 / start.elapsed().as_secs_f64();
    worker.drain().await;
    rate
}
