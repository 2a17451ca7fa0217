//! Defines the operations that the benchmark measures for each engine.

use crate::database::Database;
use crate::load::Load;
use std::future::Future;
use std::sync::Arc;

pub trait Contender: Sized {
    const NAME: &'static str;
    type Store;
    type Worker: Worker;

    /// Connects to the database, and creates the tables if they do not exist.
    fn connect(database: &Database) -> impl Future<Output = Self::Store>;
    fn queue(store: &Self::Store, name: &'static str) -> Self;
    fn enqueue(&mut self, job: u64) -> impl Future<Output = ()>;
    fn enqueue_all(&mut self, jobs: Vec<u64>) -> impl Future<Output = ()>;
    /// Enqueues jobs that are due in a week.
    fn enqueue_later(&mut self, jobs: Vec<u64>) -> impl Future<Output = ()>;
    fn work(&self, batch: usize, concurrency: usize, load: &Arc<Load>) -> impl Future<Output = Self::Worker>;
    /// Returns the number of jobs whose outcomes have not been committed.
    fn unfinished(&self) -> impl Future<Output = usize>;
}

pub trait Worker {
    /// Stops the worker after it has committed the outcomes of its jobs.
    fn drain(self) -> impl Future<Output = ()>;
    /// Stops the worker immediately. It may lose outcomes of jobs.
    fn stop(self) -> impl Future<Output = ()>;
}
