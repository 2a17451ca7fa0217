//! Durable jobs, as a program uses them.

use crate::database::Database;
use crate::load::Load;
use crate::{Contender, LEASE, POLL};
use background_tasks::{Registry, TokioSpawner};
use background_tasks_durable::{Job, Queue, WorkerOptions};
use std::convert::Infallible;
use std::sync::Arc;

pub struct Durable(Queue<u64>);

pub struct Worker(Registry<TokioSpawner>);

impl crate::Worker for Worker {
    async fn drain(self) {
        self.0.shutdown().await;
    }
}

impl Contender for Durable {
    type Worker = Worker;

    fn new(database: &Database) -> Self {
        Self(database.durable.queue("bench"))
    }

    async fn enqueue(&mut self, job: u64) {
        self.0.enqueue(job).await.expect("the database takes the job");
    }

    async fn enqueue_all(&mut self, jobs: Vec<u64>) {
        self.0.enqueue_all(jobs).await.expect("the database takes the jobs");
    }

    async fn work(&self, batch: usize, concurrency: usize, load: &Arc<Load>) -> Worker {
        let registry = Registry::new(TokioSpawner);
        let options = WorkerOptions::default().batch_size(batch).concurrency(concurrency).lease(LEASE).poll_interval(POLL);
        let load = load.clone();
        let handler = move |_: Job<u64>| {
            let load = load.clone();
            async move {
                load.job().await;
                Ok::<_, Infallible>(())
            }
        };
        self.0.serve(&registry, options, handler).await.expect("the worker starts");
        Worker(registry)
    }
}
