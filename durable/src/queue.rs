use crate::durable::Durable;
use crate::enqueue::{Enqueue, EnqueueAll};
use crate::error::Error;
use crate::job::{JobId, JobInfo, QueueCounts};
use futures_timer::Delay;
use futures_util::future::select;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, iter};

/// Converts a payload of another version.
pub(crate) type Upgrade<T> = Arc<dyn Fn(Value) -> Result<T, serde_json::Error> + Send + Sync>;

/// A named queue of jobs of one type. Clones, and queues of the same name in other processes with the same store, are the same queue.
///
/// Names and payloads outlive a deploy. Every job carries the [version](Queue::version) of its queue. A worker that does not know this
/// version leaves the job to another worker.
pub struct Queue<T> {
    pub(crate) durable: Durable,
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) upgrades: BTreeMap<u32, Upgrade<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { durable: self.durable.clone(), name: self.name, version: self.version, upgrades: self.upgrades.clone() }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).field("version", &self.version).finish_non_exhaustive()
    }
}

impl Durable {
    /// Returns the queue with this name. All jobs of a queue have one type.
    ///
    /// The name is stored with each job: after a rename, old jobs remain in the old queue. This call does not access the store.
    pub fn queue<T>(&self, name: &'static str) -> Queue<T> {
        Queue { durable: self.clone(), name, version: 1, upgrades: BTreeMap::new() }
    }
}

impl<T> Queue<T> {
    /// Sets the version of the payload type `T`. Default: 1.
    ///
    /// Raise it whenever stored payloads cannot or must not be read as the new `T`. Workers of the previous release leave jobs of the new
    /// version alone.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Sets how to convert payloads of another version to `T`.
    #[must_use]
    pub fn upgrade<Old: DeserializeOwned>(mut self, from: u32, to: impl Fn(Old) -> T + Send + Sync + 'static) -> Self {
        self.upgrades.insert(from, Arc::new(move |payload| Old::deserialize(payload).map(&to)));
        self
    }

    /// Returns the name of the queue.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Enqueues a job when the returned [`Enqueue`] is awaited.
    pub fn enqueue(&self, job: T) -> Enqueue
    where
        T: Serialize,
    {
        Enqueue::new(&self.durable, self.name, self.version, iter::once(job), |ids| JobId(ids[0]))
    }

    /// Enqueues jobs when the returned [`EnqueueAll`] is awaited, all or none. This is much faster than to enqueue them one by one.
    pub fn enqueue_all(&self, jobs: impl IntoIterator<Item = T>) -> EnqueueAll
    where
        T: Serialize,
    {
        Enqueue::new(&self.durable, self.name, self.version, jobs, |ids| ids.into_iter().map(JobId).collect())
    }

    /// Returns what the store knows about a job. Returns `None` if the job was never in this queue or has been deleted after its
    /// retention.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn info(&self, id: JobId) -> Result<Option<JobInfo>, Error> {
        self.durable.runtime.enter(self.durable.store.info(self.name, id.0)).await
    }

    /// Waits until a job is [done or dead](crate::JobStatus::is_final), in any process. Returns `None` if the job is not in this queue.
    ///
    /// The wait ends immediately for jobs of workers in this process, and up to half a second late for jobs of other processes, for which
    /// it polls the store.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the job.
    pub async fn wait(&self, id: JobId) -> Result<Option<JobInfo>, Error> {
        let mut poll_interval = Duration::from_millis(20);
        loop {
            let outcome = self.durable.outcome_event.listen();
            match self.info(id).await? {
                Some(info) if !info.status().is_final() => {}
                info => return Ok(info),
            }
            select(outcome, Delay::new(poll_interval)).await;
            poll_interval = (poll_interval * 2).min(Duration::from_millis(500));
        }
    }

    /// Returns the dead jobs, oldest first. They stay in the store until they are [retried](Queue::retry) or
    /// [discarded](Queue::discard).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn dead(&self) -> Result<Vec<JobInfo>, Error> {
        self.durable.runtime.enter(self.durable.store.dead(self.name)).await
    }

    /// Enqueues a dead job again, with its full number of attempts. Returns `false` if the job is not dead.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn retry(&self, id: JobId) -> Result<bool, Error> {
        let is_retried = self.durable.runtime.enter(self.durable.store.retry(self.name, id.0)).await?;
        self.durable.enqueue_event(self.name).notify(usize::MAX);
        Ok(is_retried)
    }

    /// Deletes a job that is waiting, retrying or dead, and frees its key. Returns `false` if the job is running, done or unknown.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn discard(&self, id: JobId) -> Result<bool, Error> {
        self.durable.runtime.enter(self.durable.store.discard(self.name, id.0)).await
    }

    /// Returns the number of jobs in each status.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn counts(&self) -> Result<QueueCounts, Error> {
        self.durable.runtime.enter(self.durable.store.counts(self.name)).await
    }
}
