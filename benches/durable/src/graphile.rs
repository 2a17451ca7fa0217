//! Runs jobs on the engine `graphile_worker` in the way that its documentation shows. The engine needs Postgres.

use crate::contender::Contender;
use crate::database::Database;
use crate::load::Load;
use crate::{LEASE, WEEK};
use graphile_worker::{IntoTaskHandlerResult, JobSpec, LocalQueueConfig, RawJobSpec, TaskHandler, WorkerContext, WorkerUtils};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const SCHEMA: &str = "graphile_worker";

/// The number of jobs that one statement enqueues.
const CHUNK: usize = 5_000;

pub struct Graphile(PgPool);

/// A job with a number. In place of queues, the engine has task identifiers. One fetch gets the jobs of all task identifiers.
#[derive(Debug, Serialize, Deserialize)]
struct Number {
    job: u64,
}

#[derive(Clone)]
struct Extension(Arc<Load>);

impl std::fmt::Debug for Extension {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Extension")
    }
}

impl TaskHandler for Number {
    const IDENTIFIER: &'static str = "bench";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let load = context.get_ext::<Extension>().expect("the worker has the extension").0.clone();
        load.job(self.job).await;
        Ok::<_, String>(())
    }
}

pub struct Worker {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

impl crate::contender::Worker for Worker {
    async fn drain(self) {
        self.stop.send(()).expect("the worker lives");
        self.ended.await.expect("the worker does not panic");
    }

    async fn stop(self) {
        self.drain().await;
    }
}

impl Contender for Graphile {
    const NAME: &'static str = "graphile_worker";
    type Store = PgPool;
    type Worker = Worker;

    async fn connect(database: &Database) -> PgPool {
        let Database::Postgres { url } = database else { unreachable!("the engine needs Postgres") };
        let pool = PgPoolOptions::new().connect_lazy(url).expect("the URL is valid");
        WorkerUtils::new(pool.clone(), SCHEMA).migrate().await.expect("the tables are created");
        pool
    }

    fn queue(store: &PgPool, _: &'static str) -> Self {
        Self(store.clone())
    }

    async fn enqueue(&mut self, job: u64) {
        let utils = WorkerUtils::new(self.0.clone(), SCHEMA);
        utils.add_job(Number { job }, JobSpec::default()).await.expect("Postgres takes the job");
    }

    async fn enqueue_all(&mut self, jobs: Vec<u64>) {
        let utils = WorkerUtils::new(self.0.clone(), SCHEMA);
        for chunk in jobs.chunks(CHUNK) {
            let raw = |&job| RawJobSpec {
                identifier: Number::IDENTIFIER.to_owned(),
                payload: serde_json::json!({ "job": job }),
                spec: JobSpec::default(),
            };
            utils.add_raw_jobs(&chunk.iter().map(raw).collect::<Vec<_>>()).await.expect("Postgres takes the jobs");
        }
    }

    async fn enqueue_later(&mut self, jobs: Vec<u64>) {
        self.enqueue_all(jobs).await;
        let delay = "UPDATE graphile_worker._private_jobs SET run_at = run_at + make_interval(secs => $1) WHERE run_at <= now()";
        sqlx::query(delay).bind(WEEK.as_secs_f64()).execute(&self.0).await.expect("the jobs are delayed");
    }

    async fn work(&self, batch: usize, concurrency: usize, load: &Arc<Load>) -> Worker {
        let options = graphile_worker::WorkerOptions::default()
            .pg_pool(self.0.clone())
            .define_job::<Number>()
            .concurrency(concurrency)
            // Without a local queue, each concurrent slot of the worker fetches only one job for each notification or poll.
            .local_queue(LocalQueueConfig::default().with_size(batch.max(concurrency)))
            .heartbeat_interval(LEASE / 3)
            .sweep_interval(LEASE / 3)
            .sweep_threshold(LEASE)
            .listen_os_shutdown_signals(false)
            .shutdown_grace_period(Duration::from_secs(5))
            .add_extension(Extension(load.clone()));
        let (stop, stopped) = oneshot::channel();
        let worker = options.init().await.expect("the worker starts");
        let ended = tokio::spawn(async move {
            let stopping = async {
                // An error means that the sender has been dropped. The worker stops in this case too.
                let _ = stopped.await;
                worker.request_shutdown();
                std::future::pending().await
            };
            tokio::select! {
                ended = worker.run() => ended.expect("the worker runs"),
                () = stopping => {}
            }
        });
        Worker { stop, ended }
    }

    async fn unfinished(&self) -> usize {
        let count = sqlx::query_scalar("SELECT count(*) FROM graphile_worker._private_jobs").fetch_one(&self.0).await;
        let count: i64 = count.expect("the jobs are counted");
        usize::try_from(count).expect("a count is not negative")
    }
}
