//! Runs durable jobs in the way that a program uses them.

use crate::contender::Contender;
use crate::database::Database;
use crate::load::Load;
use crate::{LEASE, WEEK};
use background_tasks::{Registry, TokioSpawner};
use background_tasks_durable::{Failure, Job, Queue, WorkerOptions};
use std::convert::Infallible;
use std::sync::Arc;

pub struct Durable(Queue<u64>);

pub struct Worker(Registry<TokioSpawner>);

impl crate::contender::Worker for Worker {
    async fn drain(self) {
        self.0.shutdown().await;
    }

    async fn stop(self) {
        self.0.shutdown().await;
    }
}

impl Durable {
    /// Starts a worker whose jobs all fail. Each job is retried after a week.
    pub async fn fail(&self, concurrency: usize, load: &Arc<Load>) -> Worker {
        let registry = Registry::new(TokioSpawner);
        let options = WorkerOptions::default().batch_size(concurrency).concurrency(concurrency).backoff(WEEK, WEEK);
        let load = load.clone();
        let handler = move |job: Job<u64>| {
            let load = load.clone();
            async move {
                load.job(*job).await;
                Err::<(), _>(Failure::retry_after("fails", WEEK))
            }
        };
        self.0.serve(&registry, options, handler).await.expect("the worker starts");
        Worker(registry)
    }
}

impl Contender for Durable {
    const NAME: &'static str = "durable";
    type Store = background_tasks_durable::Durable;
    type Worker = Worker;

    async fn connect(database: &Database) -> Self::Store {
        let store = match database {
            Database::Sqlite { file, .. } => background_tasks_durable::Durable::sqlite(file).await,
            Database::Postgres { url } => background_tasks_durable::Durable::postgres(url).await,
        };
        store.expect("the database is available")
    }

    fn queue(store: &Self::Store, name: &'static str) -> Self {
        Self(store.queue(name))
    }

    async fn enqueue(&mut self, job: u64) {
        self.0.enqueue(job).await.expect("the database takes the job");
    }

    async fn enqueue_all(&mut self, jobs: Vec<u64>) {
        self.0.enqueue_all(jobs).await.expect("the database takes the jobs");
    }

    async fn enqueue_later(&mut self, jobs: Vec<u64>) {
        self.0.enqueue_all(jobs).delay(WEEK).await.expect("the database takes the jobs");
    }

    async fn work(&self, batch: usize, concurrency: usize, load: &Arc<Load>) -> Worker {
        let registry = Registry::new(TokioSpawner);
        let options = WorkerOptions::default().batch_size(batch).concurrency(concurrency).lease(LEASE);
        let load = load.clone();
        let handler = move |job: Job<u64>| {
            let load = load.clone();
            async move {
                load.job(*job).await;
                Ok::<_, Infallible>(())
            }
        };
        self.0.serve(&registry, options, handler).await.expect("the worker starts");
        Worker(registry)
    }

    async fn unfinished(&self) -> usize {
        let counts = self.0.counts().await.expect("the jobs are counted");
        usize::try_from(counts.waiting + counts.running + counts.retrying).expect("a count fits")
    }
}
