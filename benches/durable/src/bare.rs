//! Runs jobs on the engine apalis in the way that its documentation shows: without a semaphore, a registry, a limit or tracked tasks.

use crate::contender::Contender;
use crate::database::Database;
use crate::load::Load;
use crate::{LEASE, POLL};
use apalis::layers::WorkerBuilderExt as _;
use apalis_core::backend::TaskSink as _;
use apalis_core::backend::ext::BackendExt as _;
use apalis_core::error::WorkerError;
use apalis_core::task::data::Data;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::ext::parallelize::ParallelizeExt as _;
use apalis_postgres::PostgresStorage;
use apalis_sqlite::SqliteStorage;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{PgPool, SqlitePool};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

#[derive(Clone)]
pub enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

pub struct Bare {
    pool: Pool,
    storage: Storage,
    queue: &'static str,
}

enum Storage {
    Sqlite(SqliteStorage<u64>),
    Postgres(PostgresStorage<u64>),
}

/// A worker of apalis. `stop` makes the worker stop, and `ended` resolves when it has stopped.
pub struct Worker {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), WorkerError>>,
}

impl crate::contender::Worker for Worker {
    async fn drain(self) {
        self.stop.send(()).expect("the worker lives");
        self.ended.await.expect("the worker does not panic").expect("the worker runs");
    }

    /// Aborts the worker, because a drain would never end while jobs run. Finished jobs wait until the engine writes their outcomes, but
    /// a draining engine has stopped writing.
    async fn stop(self) {
        self.ended.abort();
        let _ = self.ended.await;
    }
}

impl Contender for Bare {
    const NAME: &'static str = "apalis";
    type Store = Pool;
    type Worker = Worker;

    async fn connect(database: &Database) -> Pool {
        match database {
            Database::Sqlite { file, .. } => {
                // The setup of apalis would turn `synchronous` off. These settings are the same as for durable jobs.
                let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
                let options = options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
                let pool = SqlitePoolOptions::new().connect_lazy_with(options.busy_timeout(Duration::from_secs(30)));
                SqliteStorage::<()>::migrations().run(&pool).await.expect("the tables are created");
                Pool::Sqlite(pool)
            }
            Database::Postgres { url } => {
                let pool = PgPoolOptions::new().connect_lazy(url).expect("the URL is valid");
                PostgresStorage::setup(&pool).await.expect("the tables are created");
                Pool::Postgres(pool)
            }
        }
    }

    fn queue(store: &Pool, name: &'static str) -> Self {
        let storage = match store {
            Pool::Sqlite(pool) => {
                Storage::Sqlite(SqliteStorage::new(pool).with_config(apalis_sqlite::Config::default().queue(name)))
            }
            Pool::Postgres(pool) => {
                Storage::Postgres(PostgresStorage::new(pool).with_config(apalis_postgres::Config::default().queue(name)))
            }
        };
        Self { pool: store.clone(), storage, queue: name }
    }

    async fn enqueue(&mut self, job: u64) {
        match &mut self.storage {
            Storage::Sqlite(storage) => storage.push(job).await.expect("SQLite takes the job"),
            Storage::Postgres(storage) => storage.push(job).await.expect("Postgres takes the job"),
        }
    }

    async fn enqueue_all(&mut self, jobs: Vec<u64>) {
        match &mut self.storage {
            Storage::Sqlite(storage) => storage.push_bulk(jobs).await.expect("SQLite takes the jobs"),
            Storage::Postgres(storage) => storage.push_bulk(jobs).await.expect("Postgres takes the jobs"),
        }
    }

    async fn enqueue_later(&mut self, jobs: Vec<u64>) {
        self.enqueue_all(jobs).await;
        let delayed = match &self.pool {
            Pool::Sqlite(pool) => sqlx::raw_sql("UPDATE Jobs SET run_at = run_at + 7 * 86400 WHERE run_at <= unixepoch()")
                .execute(pool)
                .await
                .map(drop),
            Pool::Postgres(pool) => {
                sqlx::raw_sql("UPDATE apalis.jobs SET run_at = run_at + interval '7 days' WHERE run_at <= now()")
                    .execute(pool)
                    .await
                    .map(drop)
            }
        };
        delayed.expect("the jobs are delayed");
    }

    async fn work(&self, batch: usize, concurrency: usize, load: &Arc<Load>) -> Worker {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        // This code is a macro because a generic function would need very many trait bounds.
        macro_rules! work {
            ($storage:expr, $config:expr) => {{
                let config = $config.queue(self.queue).batch_size(batch).heartbeat_interval(LEASE / 3).missed_heartbeats(3);
                // Each worker needs a new name, because the engine rejects the name of another worker.
                let worker = WorkerBuilder::new(format!("apalis {}", NEXT.fetch_add(1, Ordering::Relaxed)))
                    .backend($storage.clone().with_config(config).poll_with_interval(POLL))
                    .data(Arc::clone(load))
                    .concurrency(concurrency)
                    .parallelize(tokio::spawn)
                    .build(job);
                let (stop, stopped) = oneshot::channel();
                let ended = tokio::spawn(worker.run_until(async {
                    // An error means that the sender has been dropped. The worker stops in this case too.
                    let _ = stopped.await;
                    Ok::<_, std::io::Error>(())
                }));
                Worker { stop, ended }
            }};
        }
        match &self.storage {
            Storage::Sqlite(storage) => work!(storage, apalis_sqlite::Config::default()),
            Storage::Postgres(storage) => work!(storage, apalis_postgres::Config::default()),
        }
    }

    async fn unfinished(&self) -> usize {
        let count: i64 = match &self.pool {
            Pool::Sqlite(pool) => sqlx::query_scalar("SELECT count(*) FROM Jobs WHERE status <> 'Done'").fetch_one(pool).await,
            Pool::Postgres(pool) => {
                sqlx::query_scalar("SELECT count(*) FROM apalis.jobs WHERE status <> 'Done'").fetch_one(pool).await
            }
        }
        .expect("the jobs are counted");
        usize::try_from(count).expect("a count is not negative")
    }
}

async fn job(job: u64, load: Data<Arc<Load>>) -> Result<(), Infallible> {
    load.job(job).await;
    Ok(())
}
