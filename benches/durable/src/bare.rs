//! The bare engine with the settings that durable jobs use: no semaphore, no registry, no limit, no tracked tasks.

use crate::database::{Database, Pool};
use crate::load::Load;
use crate::{Contender, LEASE, POLL};
use apalis::layers::WorkerBuilderExt as _;
use apalis_core::backend::TaskSink as _;
use apalis_core::backend::ext::BackendExt as _;
use apalis_core::error::WorkerError;
use apalis_core::task::data::Data;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::ext::parallelize::ParallelizeExt as _;
use apalis_postgres::PostgresStorage;
use apalis_sqlite::SqliteStorage;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const QUEUE: &str = "bench";

pub enum Bare {
    Sqlite(SqliteStorage<u64>),
    Postgres(PostgresStorage<u64>),
}

/// A worker. `stop` stops it, and `ended` resolves when it has stopped.
pub struct Worker {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), WorkerError>>,
}

impl crate::Worker for Worker {
    async fn drain(self) {
        self.stop.send(()).expect("the worker lives");
        self.ended.await.expect("the worker does not panic").expect("the worker runs");
    }
}

impl Contender for Bare {
    type Worker = Worker;

    fn new(database: &Database) -> Self {
        match &database.pool {
            Pool::Sqlite(pool) => Self::Sqlite(SqliteStorage::new(pool).with_config(apalis_sqlite::Config::default().queue(QUEUE))),
            Pool::Postgres(pool) => {
                Self::Postgres(PostgresStorage::new(pool).with_config(apalis_postgres::Config::default().queue(QUEUE)))
            }
        }
    }

    async fn enqueue(&mut self, job: u64) {
        match self {
            Self::Sqlite(storage) => storage.push(job).await.expect("SQLite takes the job"),
            Self::Postgres(storage) => storage.push(job).await.expect("Postgres takes the job"),
        }
    }

    async fn enqueue_all(&mut self, jobs: Vec<u64>) {
        match self {
            Self::Sqlite(storage) => storage.push_bulk(jobs).await.expect("SQLite takes the jobs"),
            Self::Postgres(storage) => storage.push_bulk(jobs).await.expect("Postgres takes the jobs"),
        }
    }

    async fn work(&self, batch: usize, concurrency: usize, load: &Arc<Load>) -> Worker {
        // A generic function would need a page of trait bounds.
        macro_rules! work {
            ($storage:expr, $config:expr) => {{
                let config = $config.queue(QUEUE).batch_size(batch).heartbeat_interval(LEASE / 3).missed_heartbeats(3);
                let worker = WorkerBuilder::new("bare")
                    .backend($storage.clone().with_config(config).poll_with_interval(POLL))
                    .data(Arc::clone(load))
                    .concurrency(concurrency)
                    .parallelize(tokio::spawn)
                    .build(job);
                let (stop, stopped) = oneshot::channel();
                let ended = tokio::spawn(worker.run_until(async {
                    // The worker also stops when the sender is dropped.
                    let _ = stopped.await;
                    Ok::<_, std::io::Error>(())
                }));
                Worker { stop, ended }
            }};
        }
        match self {
            Self::Sqlite(storage) => work!(storage, apalis_sqlite::Config::default()),
            Self::Postgres(storage) => work!(storage, apalis_postgres::Config::default()),
        }
    }
}

async fn job(_: u64, load: Data<Arc<Load>>) -> Result<(), Infallible> {
    load.job().await;
    Ok(())
}
