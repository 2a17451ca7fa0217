//! The jobs that a worker holds, and the updates about them, from their tasks to the completer.

use crate::sync::lock;
use apalis_core::backend::TaskResult;
use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_channel::oneshot;
use futures_util::future::FutureExt;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use ulid::Ulid;

/// What happened to a job.
pub(super) enum JobEvent {
    Started,
    Ended {
        result: TaskResult<Value>,
        /// The delay before the next attempt, if there is one.
        retry: Option<Duration>,
        /// The size of the result in bytes.
        size: usize,
    },
    /// The job returns to the queue as if it had never been fetched.
    Returned,
    /// The job returns to the queue after a delay, for the given reason.
    Deferred(Duration, String),
    /// The worker takes no more jobs. This update concerns no job.
    IntakeClosed,
}

pub(super) struct JobUpdate {
    pub(super) id: Ulid,
    pub(super) run: u64,
    pub(super) event: JobEvent,
    pub(super) committed: oneshot::Sender<()>,
}

/// A job that is held and whose outcome is not committed.
struct InFlightJob {
    /// The name of the engine that has fetched the job last.
    engine: Arc<str>,
    /// Counts the runs of this job in this worker.
    run: u64,
    /// Whether the run has ended. As soon as its outcome is committed, the job can be fetched again, even before this worker receives the
    /// response to the commit.
    is_over: bool,
}

pub(super) struct InFlightJobs {
    updates: UnboundedSender<JobUpdate>,
    jobs: Mutex<HashMap<Ulid, InFlightJob>>,
}

impl InFlightJobs {
    pub(super) fn new() -> (Arc<Self>, UnboundedReceiver<JobUpdate>) {
        let (updates, receiver) = unbounded();
        (Arc::new(Self { updates, jobs: Mutex::default() }), receiver)
    }

    pub(super) fn ids(&self) -> Vec<String> {
        lock(&self.jobs).keys().map(Ulid::to_string).collect()
    }

    /// Returns the engines that have fetched these jobs.
    pub(super) fn engines(&self) -> HashSet<Arc<str>> {
        lock(&self.jobs).values().map(|job| job.engine.clone()).collect()
    }

    /// Returns the engine that has fetched a job, if this run is the last.
    pub(super) fn engine_of(&self, id: Ulid, run: u64) -> Option<Arc<str>> {
        lock(&self.jobs).get(&id).filter(|job| job.run == run).map(|job| job.engine.clone())
    }

    /// Returns the last run of a job.
    pub(super) fn last_run(&self, id: Ulid) -> Option<u64> {
        lock(&self.jobs).get(&id).map(|job| job.run)
    }

    /// Adds a fetched job and returns its run. Returns `None` if the job still runs in this worker: other workers treated it as lost while
    /// this process hung, and this worker has fetched it again.
    pub(super) fn add(&self, id: Ulid, engine: Arc<str>) -> Option<u64> {
        let mut jobs = lock(&self.jobs);
        match jobs.get_mut(&id) {
            Some(job) if !job.is_over => {
                job.engine = engine;
                None
            }
            previous => {
                let run = previous.map_or(0, |job| job.run + 1);
                jobs.insert(id, InFlightJob { engine, run, is_over: false });
                Some(run)
            }
        }
    }

    pub(super) fn mark_over(&self, id: Ulid, run: u64) {
        if let Some(job) = lock(&self.jobs).get_mut(&id) {
            job.is_over |= job.run == run;
        }
    }

    /// Removes committed runs. Returns whether no jobs are left.
    pub(super) fn remove(&self, runs: Vec<(Ulid, u64)>) -> bool {
        let mut jobs = lock(&self.jobs);
        for (id, run) in runs {
            if jobs.get(&id).is_some_and(|job| job.run == run) {
                jobs.remove(&id);
            }
        }
        jobs.is_empty()
    }

    /// Sends an update. The future resolves to `true` when it is committed, and to `false` if it never will be because the worker's
    /// executor has dropped the worker.
    pub(super) fn send(&self, id: Ulid, run: u64, event: JobEvent) -> impl Future<Output = bool> + use<> {
        let (committed, response) = oneshot::channel();
        let _ = self.updates.unbounded_send(JobUpdate { id, run, event, committed });
        response.map(|committed| committed.is_ok())
    }

    pub(super) fn close_intake(&self) {
        drop(self.send(Ulid::nil(), 0, JobEvent::IntakeClosed));
    }
}
