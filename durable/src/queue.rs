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

/// Converts a payload of another version to the payload type of the queue.
pub(crate) type Upgrade<T> = Arc<dyn Fn(&[u8]) -> Result<T, serde_json::Error> + Send + Sync>;

/// A named queue of jobs of one type. All `Queue` values with the same name and the same store refer to the same queue, even in different
/// processes.
///
/// The store keeps the names of queues and the payloads of jobs after a deploy. It also stores the [version](Queue::version) of each
/// payload. If a worker does not know the version, the worker puts the job back into the queue.
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
    /// Returns the queue with this name. All jobs of a queue have the same payload type `T`.
    ///
    /// The name of the queue is stored with each job. If the name in the program changes, existing jobs stay in the queue with the old
    /// name. This call does not access the store.
    pub fn queue<T>(&self, name: &'static str) -> Queue<T> {
        Queue { durable: self.clone(), name, version: 1, upgrades: BTreeMap::new() }
    }
}

impl<T> Queue<T> {
    /// Sets the version of the payload type `T`. Default: 1.
    ///
    /// Raise the version if a release changes `T` in such a way that stored payloads cannot or must not be deserialized as the new `T`.
    /// Workers of the previous release cannot run jobs of the new version. They put these jobs back into the queue. Each of these jobs is
    /// due again after the [`unknown_version_delay`](crate::WorkerOptions::unknown_version_delay).
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// Sets a function that converts payloads of the version `from` to `T`. If such a payload cannot be deserialized as an `Old`, the job
    /// becomes dead.
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
    /// This call does not check whether the payload can be deserialized. If a worker cannot deserialize the payload, the job is dead after
    /// its first attempt. This happens if the payload contains an infinite float or a NaN, because JSON stores these values as `null`. It
    /// also happens if the payload is nested more than 127 levels deep, or if its `Serialize` does not match its `Deserialize`. A test with
    /// [`testing::enqueued`](crate::testing::enqueued) or [`testing::drain`](crate::testing::drain) finds such payloads.
    pub fn enqueue(&self, job: T) -> Enqueue
    where
        T: Serialize,
    {
        Enqueue::new(&self.durable, self.name, self.version, iter::once(job), |pushed| JobId(pushed.ids[0]))
    }

    /// Serializes jobs, and enqueues them when the returned [`EnqueueAll`] is awaited. Either all jobs are enqueued, or none. This is much
    /// faster than one `enqueue` for each job.
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

    /// Waits until a job is [done, dead or cancelled](crate::JobStatus::is_final). It does not matter which process runs the job. Returns
    /// `None` if the job is not in this queue or has been deleted. The wait has no time limit.
    ///
    /// If a worker of this process runs the job, the wait ends as soon as the job ends. If another process runs the job, the wait ends at
    /// most a quarter of a second after the job. All calls of `wait` in a process share one statement that polls the store.
    ///
    /// # Errors
    ///
    /// Errors of the store. If the store fails during the wait, the wait ends with an error.
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

    /// Returns up to 100 dead jobs, oldest first. Dead jobs stay in the store until they are [retried](Queue::retry) or
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

    /// Enqueues a dead job again, and resets its numbers of attempts and crashes. Returns `false` if the job is not dead, or if another job
    /// uses its [key](crate::Enqueue::unique_key) now.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn retry(&self, id: JobId) -> Result<bool, Error> {
        self.untyped().retry(id).await
    }

    /// [Retries](Queue::retry) all dead jobs, except jobs whose key another job uses now. If several dead jobs have the same key, retries one
    /// of them. Returns the number of retried jobs.
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

    /// Deletes a job that is waiting, retrying, dead or cancelled, and frees its key. Returns `false` if the job is running or done, or
    /// does not exist. Also returns `false` if the job is cancelled, but its worker has not stopped the handler yet.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn discard(&self, id: JobId) -> Result<bool, Error> {
        self.untyped().discard(id).await
    }

    /// Deletes all dead jobs of the queue. Returns the number of deleted jobs.
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

    /// Cancels a job, even if another process runs it. Returns `false` if the job is done, dead or cancelled, or does not exist.
    ///
    /// If no worker runs the job, no further attempt starts. If a worker runs the job, the worker drops the handler's future at the
    /// handler's next await point. A worker in this process receives the cancellation immediately. A worker in another process usually
    /// receives it within 0.1 seconds, and within a second if a notification is lost. If the handler returns a result before its future is
    /// dropped, the result is discarded. If the handler has started a blocking closure, the closure continues.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn cancel(&self, id: JobId) -> Result<bool, Error> {
        self.untyped().cancel(id).await
    }

    /// Pauses the queue in all processes. Workers fetch no jobs of the queue until [`resume`](Queue::resume) is called. Jobs that were
    /// already fetched still run, and new jobs can be enqueued. The pause is stored, so it continues after a restart of the processes.
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

    /// Sets the limits of the queue for its workers in all processes, and replaces earlier limits. The limits are stored in the database.
    ///
    /// When the number of running jobs has reached the limit, workers start no further job. If a job then ends in another process, it can
    /// take up to a second (with the default [poll interval](crate::WorkerOptions::poll_interval)) until a worker starts the next job.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn set_limits(&self, limits: QueueLimits) -> Result<(), Error> {
        self.untyped().set_limits(limits).await
    }

    /// Returns the number of jobs in each status. The store stops counting above [`QueueCounts::LIMIT`], so the call takes only
    /// milliseconds.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn counts(&self) -> Result<QueueCounts, Error> {
        self.durable.runtime.enter(self.store().counts(self.name)).await
    }

    /// Deserializes a payload of this version. If the version of the queue is different, converts the payload to `T`.
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

/// The reason why a payload cannot be deserialized.
pub(crate) enum ReadError {
    /// This worker does not know the version of the payload. Another worker may know it.
    UnknownVersion(String),
    Invalid(String),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::UnknownVersion(text) | Self::Invalid(text)) = self;
        f.write_str(text)
    }
}
