use crate::durable::Durable;
use crate::enqueue::{Enqueue, EnqueueAll};
use crate::error::Error;
use crate::job::{JobId, JobInfo, QueueCounts};
use crate::limits::QueueLimits;
use crate::operator::{PAGE, UntypedQueue};
use crate::store::{Order, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::type_name;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::{fmt, iter};

/// Converts a payload of another version.
pub(crate) type Upgrade<T> = Arc<dyn Fn(&[u8]) -> Result<T, serde_json::Error> + Send + Sync>;

/// A named queue of jobs of one type. Clones, and queues of the same name in all processes with the same store, are the same queue.
///
/// Names and payloads outlive a deploy. Every job carries the [version](Queue::version) of its queue. A worker that does not know this
/// version returns the job to the queue.
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
    /// Raise it whenever stored payloads cannot or must not be read as the new `T`. Workers of the previous release return jobs of the new
    /// version to the queue, for the time of [`unknown_version_delay`](crate::WorkerOptions::unknown_version_delay).
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Sets how to convert payloads of the version `from` to `T`. If such a payload is not an `Old`, the job is dead.
    #[must_use]
    pub fn upgrade<Old: DeserializeOwned>(mut self, from: u32, to: impl Fn(Old) -> T + Send + Sync + 'static) -> Self {
        self.upgrades.insert(from, Arc::new(move |payload| serde_json::from_slice(payload).map(&to)));
        self
    }

    /// Returns the name of the queue.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Serializes a job, and enqueues it when the returned [`Enqueue`] is awaited.
    ///
    /// The program that enqueues a job need not be able to read it: the payload is not read back. If a worker cannot deserialize the
    /// payload, the job is dead after its first attempt. Such payloads contain floats that are not finite (JSON stores them as `null`), are
    /// nested more than 127 levels deep, or have a `Serialize` that does not match their `Deserialize`. A test with
    /// [`testing::enqueued`](crate::testing::enqueued) or [`testing::drain`](crate::testing::drain) finds them.
    pub fn enqueue(&self, job: T) -> Enqueue
    where
        T: Serialize,
    {
        Enqueue::new(&self.durable, self.name, self.version, iter::once(job), |pushed| JobId(pushed.ids[0]))
    }

    /// Serializes jobs, and enqueues all or none when the returned [`EnqueueAll`] is awaited. This is much faster than single enqueues.
    pub fn enqueue_all(&self, jobs: impl IntoIterator<Item = T>) -> EnqueueAll
    where
        T: Serialize,
    {
        Enqueue::new(&self.durable, self.name, self.version, jobs, |pushed| pushed.ids.into_iter().map(JobId).collect())
    }

    /// Returns the stored state of a job. Returns `None` if the job was never in this queue or has been deleted.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn info(&self, id: JobId) -> Result<Option<JobInfo>, Error> {
        self.durable.runtime.enter(self.store().info(Some(self.name), id.0)).await
    }

    /// Waits until a job is [done, dead or cancelled](crate::JobStatus::is_final), in any process. Returns `None` if the job is not in this
    /// queue or has been deleted. The wait has no time limit.
    ///
    /// The wait ends immediately for jobs of workers in this process, and up to a quarter of a second late for jobs of other processes. One
    /// statement polls the store for all waits of the process.
    ///
    /// # Errors
    ///
    /// Errors of the store. An outage ends the wait.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect on the job.
    pub async fn wait(&self, id: JobId) -> Result<Option<JobInfo>, Error> {
        loop {
            let ended = self.durable.engine.ended(id.0);
            match self.info(id).await? {
                Some(info) if !info.status().is_final() => ended.await,
                info => return Ok(info),
            }
        }
    }

    /// Returns up to 100 dead jobs, oldest first. They stay in the store until they are [retried](Queue::retry) or
    /// [discarded](Queue::discard), or until their [retention](crate::WorkerOptions::dead_retention) expires.
    ///
    /// [`dead_after`](Queue::dead_after) returns the next page.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn dead(&self) -> Result<Vec<JobInfo>, Error> {
        self.durable.runtime.enter(self.store().jobs(self.name, "dead", Order::Oldest, None, PAGE)).await
    }

    /// Returns up to 100 dead jobs that follow `last` in the list of dead jobs.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn dead_after(&self, last: &JobInfo) -> Result<Vec<JobInfo>, Error> {
        self.durable.runtime.enter(self.store().jobs(self.name, "dead", Order::Oldest, Some(last), PAGE)).await
    }

    /// Enqueues a dead job again, and resets its attempts and crashes. Returns `false` if the job is not dead, or if another job uses its
    /// [key](crate::Enqueue::unique_key) now.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn retry(&self, id: JobId) -> Result<bool, Error> {
        self.untyped().retry(id).await
    }

    /// [Retries](Queue::retry) all dead jobs whose key no other job uses. Returns the number of jobs.
    ///
    /// # Errors
    ///
    /// Errors of the store. Some of the jobs may have been enqueued before the error.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, some of the jobs may have been enqueued.
    pub async fn retry_all(&self) -> Result<u64, Error> {
        self.untyped().retry_all().await
    }

    /// Deletes a job that is waiting, retrying, dead or cancelled, and frees its key. Returns `false` if the job is running, done or
    /// unknown, or if it was cancelled and its worker has not stopped it yet.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn discard(&self, id: JobId) -> Result<bool, Error> {
        self.untyped().discard(id).await
    }

    /// Deletes all dead jobs. Returns the number of jobs.
    ///
    /// # Errors
    ///
    /// Errors of the store. Some of the jobs may have been deleted before the error.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, some of the jobs may have been deleted.
    pub async fn discard_all(&self) -> Result<u64, Error> {
        self.untyped().discard_all().await
    }

    /// Cancels a job, in any process. Returns `false` if the job is done, dead, cancelled or unknown.
    ///
    /// A job that waits never runs. If the job runs, its worker drops the handler's future at the handler's next await point: immediately
    /// in this process, usually within 0.1 seconds in another process, and within a second if a notice is lost. A result that the handler
    /// returns before the drop is discarded. A blocking closure that the handler has started continues.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn cancel(&self, id: JobId) -> Result<bool, Error> {
        self.untyped().cancel(id).await
    }

    /// Pauses the queue in all processes: its jobs are not fetched until [`resume`](Queue::resume). Jobs that were already fetched still
    /// run, and jobs can be enqueued. The pause is stored.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn pause(&self) -> Result<(), Error> {
        self.untyped().pause().await
    }

    /// Ends a [pause](Queue::pause).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn resume(&self) -> Result<(), Error> {
        self.untyped().resume().await
    }

    /// Sets the limits of the queue for its workers in all processes, and replaces earlier limits. The limits are stored.
    ///
    /// If the limit of running jobs is reached, a worker checks once a second whether jobs of other processes have ended.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn set_limits(&self, limits: QueueLimits) -> Result<(), Error> {
        self.untyped().set_limits(limits).await
    }

    /// Returns the number of jobs in each status, up to [`QueueCounts::LIMIT`], in milliseconds.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn counts(&self) -> Result<QueueCounts, Error> {
        self.durable.runtime.enter(self.store().counts(self.name)).await
    }

    /// Reads a payload of this version.
    pub(crate) fn read(&self, version: u32, payload: &[u8]) -> Result<T, ReadError>
    where
        T: DeserializeOwned,
    {
        let payload = match self.upgrades.get(&version) {
            _ if version == self.version => serde_json::from_slice(payload),
            Some(upgrade) => upgrade(payload),
            None => {
                let known: Vec<_> = self.upgrades.keys().chain([&self.version]).map(u32::to_string).collect();
                let text = format!("unknown payload version {version}: this worker knows {}", known.join(", "));
                return Err(ReadError::UnknownVersion(text));
            }
        };
        payload.map_err(|error| ReadError::Invalid(format!("cannot deserialize the payload as {}: {error}", type_name::<T>())))
    }

    fn untyped(&self) -> UntypedQueue {
        self.durable.untyped_queue(self.name)
    }

    fn store(&self) -> &dyn Store {
        &*self.durable.engine.store
    }
}

/// Why a payload cannot be read.
pub(crate) enum ReadError {
    /// Another worker may know the version.
    UnknownVersion(String),
    Invalid(String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::UnknownVersion(text) | Self::Invalid(text)) = self;
        f.write_str(text)
    }
}
