//! Runs the jobs of a queue in the caller's task, for tests. Each attempt runs the same code as in a worker. Only the fetches differ: the
//! function repeats them until no job of the queue is due.

use super::executor::Executor;
use crate::engine::WorkerHandle;
use crate::error::Error;
use crate::job::{Job, JobInfo};
use crate::options::WorkerOptions;
use crate::panics;
use crate::queue::Queue;
use crate::store::{FetchRequest, LimitedFetch};
use background_tasks::{Registry, Spawner};
use futures_channel::mpsc::unbounded;
use futures_util::future::{Either, select};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

/// The lease is longer than any test, because nothing renews it.
const LEASE: Duration = Duration::from_hours(24);

/// The spawner of a registry that spawns no tasks. The registry exists only because an `Executor` needs a registry.
#[derive(Clone)]
struct NoSpawner;

impl Spawner for NoSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _: F) {
        unreachable!("the jobs run in the task of the caller")
    }
}

pub(crate) async fn drain<T, H, F, R, E>(queue: &Queue<T>, options: WorkerOptions, handler: H) -> Result<Vec<JobInfo>, Error>
where
    T: DeserializeOwned + Send + 'static,
    H: Fn(Job<T>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    R: Serialize + Send + 'static,
    E: Display + Send + 'static,
{
    let (engine, name) = (&queue.durable.engine, queue.name);
    let (store, registry) = (&engine.store, Registry::new(NoSpawner));
    let options = options.lease(LEASE);
    let (handle, _commands) = WorkerHandle::new(name, options.clone(), registry.signal());
    let (updates, receiver) = unbounded();
    handle.connect(updates);
    let executor = Arc::new(Executor { queue: queue.clone(), options, handler, registry, location: Location::caller() });
    store.register(&handle.lease()).await?;
    let jobs = async {
        let mut all = Vec::new();
        loop {
            let is_limited = store.tick(&[name]).await?.first().is_some_and(|tick| tick.is_limited);
            let request = FetchRequest { queue: name, worker: handle.id.clone(), limit: 1 };
            let fetch = if is_limited {
                store.fetch_limited(&request).await?
            } else {
                LimitedFetch { jobs: store.fetch(std::slice::from_ref(&request)).await?, ..LimitedFetch::default() }
            };
            let Some(job) = fetch.jobs.into_iter().next() else {
                if fetch.has_more {
                    continue; // the limit of its key blocks the fetched job
                }
                return Ok(all);
            };
            let id = job.id;
            let permit = loop {
                let changed = engine.slots.changed().listen();
                match engine.try_start(&handle, false) {
                    Some(permit) => break permit,
                    None => changed.await, // another worker runs a suspect, which must run alone
                }
            };
            if let Some(lease) = handle.take(engine, &job) {
                // The result of the task is ignored, because the store contains the outcome.
                let _ = panics::catch(executor.clone().run(lease, job, permit)).await;
            }
            all.extend(store.info(Some(name), id).await?);
        }
    };
    let result = match select(pin!(jobs), pin!(engine.commit_outcomes(receiver))).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => unreachable!("the handle of the worker keeps the channel open"),
    };
    // If this call fails, the worker is removed when its lease expires.
    let _ = store.deregister(std::slice::from_ref(&handle.id)).await;
    result
}
