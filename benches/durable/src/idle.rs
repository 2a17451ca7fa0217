//! Measures the cost of idle workers. Some workers have empty queues. One worker has a queue whose jobs are all due later.

use crate::bare::Bare;
use crate::contender::{Contender, Worker as _};
use crate::database::Database;
use crate::durable::Durable;
use crate::graphile::Graphile;
use crate::load::Load;
use crate::samples::{median, number, percentile};
use crate::{Server, Settings, cpu};
use sqlx::{Connection, PgConnection, Row};
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const QUEUES: usize = 20;

/// The number of jobs that one call enqueues.
const CHUNK: usize = 10_000;

/// The number of jobs that are enqueued one by one to measure the latency.
const SINGLY: u64 = 500;

/// The time that the benchmark gives workers to start before it measures them.
const SETTLE: Duration = Duration::from_secs(3);

/// The number of clock ticks per second in the files of `/proc`.
const TICKS: f64 = 100.0;

pub async fn section(server: &Server, settings: &Settings) {
    if settings.selects(server, "idle: queues") {
        println!("\n| {}, {QUEUES} idle queues | connections | transactions/s | CPU, % of a core |", server.name());
        println!("| --- | ---: | ---: | ---: |");
        queues::<Durable>(server, settings, QUEUES).await;
        queues::<Bare>(server, settings, QUEUES).await;
        if let Server::Postgres(_) = server {
            // A worker of this engine fetches the jobs of all tasks with one statement. One worker is therefore enough for any number of
            // tasks.
            queues::<Graphile>(server, settings, 1).await;
        }
    }
    if settings.selects(server, "idle: later") {
        let jobs = number(settings.jobs as f64);
        println!(
            "\n| {}, {jobs} jobs due in a week | worker, % of a core | enqueue p50, µs | without them | ratio |",
            server.name()
        );
        println!("| --- | ---: | ---: | ---: | ---: |");
        later::<Durable>(server, settings).await;
        later::<Bare>(server, settings).await;
        if let Server::Postgres(_) = server {
            later::<Graphile>(server, settings).await;
        }
    }
}

fn window(settings: &Settings) -> Duration {
    Duration::from_secs(if settings.quick { 1 } else { 10 })
}

async fn queues<C: Contender>(server: &Server, settings: &Settings, count: usize) {
    let database = server.database();
    let store = C::connect(&database).await;
    let load = Arc::new(Load::open(usize::MAX));
    let mut workers = Vec::new();
    for place in 0..count {
        let name = format!("idle {place}").leak();
        workers.push(C::queue(&store, name).work(1, 4, &load).await);
    }
    sleep(SETTLE).await;
    let idle = idle(&database, window(settings)).await;
    let cell = |value: Option<f64>| value.map_or("–".to_owned(), number);
    println!("| {} | {} | {} | {} |", C::NAME, cell(idle.connections), cell(idle.transactions), number(idle.cpu));
    for worker in workers {
        worker.stop().await;
    }
}

async fn later<C: Contender>(server: &Server, settings: &Settings) {
    let (empty, full) = (server.database(), server.database());
    let (empty_store, store) = (C::connect(&empty).await, C::connect(&full).await);
    let mut queue = C::queue(&store, "bench");
    for start in (0..settings.jobs).step_by(CHUNK) {
        queue.enqueue_later((0..(settings.jobs - start).min(CHUNK) as u64).collect()).await;
    }
    full.analyze().await;

    let worker = queue.work(1, 4, &Arc::new(Load::open(usize::MAX))).await;
    sleep(SETTLE).await;
    let idle = idle(&full, window(settings)).await;
    worker.stop().await;

    let mut empty_queue = C::queue(&empty_store, "bench");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        without.push(singly(&mut empty_queue).await);
        with.push(singly(&mut queue).await);
    }
    let (with, without) = (median(&with), median(&without));
    println!("| {} | {} | {} | {} | {:.2} |", C::NAME, number(idle.cpu), number(with), number(without), with / without);
}

/// Returns the median time to enqueue one job, in microseconds.
async fn singly<C: Contender>(queue: &mut C) -> f64 {
    let mut latencies = Vec::new();
    for job in 0..SINGLY {
        let start = Instant::now();
        queue.enqueue(job).await;
        latencies.push(start.elapsed());
    }
    percentile(&latencies, 50)
}

struct Idle {
    connections: Option<f64>,
    /// The number of transactions per second.
    transactions: Option<f64>,
    /// The CPU time of this process and of its server processes in Postgres, in percent of a core.
    cpu: f64,
}

async fn idle(database: &Database, window: Duration) -> Idle {
    let Database::Postgres { url } = database else {
        let before = cpu();
        sleep(window).await;
        return Idle { connections: None, transactions: None, cpu: percent(cpu() - before, window) };
    };
    // This connection uses another database, so that the measurement does not include it.
    let (server, name) = url.rsplit_once('/').expect("the URL names a database");
    let mut conn = PgConnection::connect(&format!("{server}/postgres")).await.expect("the server is running");
    let before = (cpu(), backends(&mut conn, name).await, transactions(&mut conn, name).await);
    sleep(window).await;
    let after = (cpu(), backends(&mut conn, name).await, transactions(&mut conn, name).await);
    let used = |ticks: u64| Duration::from_secs_f64(ticks as f64 / TICKS);
    let cpu = after.0 - before.0 + used(after.1.1.saturating_sub(before.1.1));
    Idle {
        connections: Some(after.1.0 as f64),
        transactions: Some((after.2 - before.2) as f64 / window.as_secs_f64()),
        cpu: percent(cpu, window),
    }
}

fn percent(used: Duration, window: Duration) -> f64 {
    100.0 * used.as_secs_f64() / window.as_secs_f64()
}

/// Returns the number of connections to a database, and the CPU time of their server processes in clock ticks.
async fn backends(conn: &mut PgConnection, database: &str) -> (usize, u64) {
    let query = sqlx::query("SELECT pid FROM pg_stat_activity WHERE datname = $1").bind(database);
    let rows = query.fetch_all(conn).await.expect("the server lists its connections");
    let ticks = |row: &sqlx::postgres::PgRow| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", row.get::<i32, _>(0))).unwrap_or_default();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // `utime` and `stime` are the fields 14 and 15 of the file. `fields` starts with field 3.
        [11, 12].iter().filter_map(|&field| fields.get(field)?.parse::<u64>().ok()).sum::<u64>()
    };
    (rows.len(), rows.iter().map(ticks).sum())
}

/// Returns the number of transactions since the database was created.
async fn transactions(conn: &mut PgConnection, database: &str) -> i64 {
    // Discards the counts that Postgres has cached for this connection.
    sqlx::raw_sql("SELECT pg_stat_clear_snapshot()").execute(&mut *conn).await.expect("the server is running");
    let query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1";
    sqlx::query_scalar(query).bind(database).fetch_one(conn).await.expect("the server counts transactions")
}
