use crate::durable::Durable;
use crate::error::Error;
use crate::job::JobId;
use crate::options::MAX_DURATION;
use crate::store::{JobSpec, Pushed, RunAt};
use futures_util::future::{BoxFuture, FutureExt};
use serde::Serialize;
use std::fmt;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

/// The latest time at which a job can be due: the end of the year 9999, in seconds since 1970. Some clients of Postgres cannot read later
/// dates.
const MAX_RUN_AT: Duration = Duration::from_secs(253_402_300_799);

/// A request to enqueue one or more jobs. To enqueue the jobs, await the request or call [`in_transaction`](Enqueue::in_transaction).
/// Either all of the jobs are enqueued, or none.
///
/// When the awaited request returns `Ok`, the jobs are committed to the store and survive a power failure. After any error except
/// [`Error::Unavailable`], nothing was enqueued. After [`Error::Unavailable`], the jobs may have been enqueued, because the server may have
/// become unavailable during the commit. To retry safely after this error, set a [unique key](Enqueue::unique_key).
///
/// # Cancel safety
///
/// If the future is dropped before it resolves, the jobs may or may not have been enqueued.
#[must_use = "jobs are enqueued when this is awaited"]
pub struct Enqueue<R = JobId> {
    durable: Durable,
    spec: JobSpec,
    payloads: Result<Vec<Vec<u8>>, serde_json::Error>,
    to_output: fn(Pushed) -> R,
}

/// The result of an enqueue with a [unique key](Enqueue::unique_key).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// The ID of the new job, or of the existing job that uses the key.
    pub id: JobId,
    /// Whether the job is new. If `false`, nothing was enqueued, because an existing job uses the key.
    pub is_new: bool,
}

/// A request to enqueue several jobs. The awaited request returns the IDs of the jobs, in the order of the jobs.
pub type EnqueueAll = Enqueue<Vec<JobId>>;

impl<R> Enqueue<R> {
    pub(crate) fn new<T: Serialize>(
        durable: &Durable,
        queue: &'static str,
        version: u32,
        jobs: impl IntoIterator<Item = T>,
        to_output: fn(Pushed) -> R,
    ) -> Self {
        let payloads = jobs.into_iter().map(|job| serde_json::to_vec(&job)).collect();
        let spec = JobSpec { queue, version, run_at: RunAt::Now, priority: 0, unique_key: None, unique_for: None, limit_key: None };
        Self { durable: durable.clone(), spec, payloads, to_output }
    }

    /// Delays the jobs: they become due when this time has passed since the enqueue. The clock of the store measures the time. Default:
    /// zero.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.spec.run_at = if delay > MAX_DURATION { RunAt::At(SystemTime::UNIX_EPOCH + MAX_RUN_AT) } else { RunAt::After(delay) };
        self
    }

    /// Schedules the jobs for this time. The jobs do not start earlier. The time is rounded up to whole milliseconds on SQLite, and to
    /// whole microseconds on Postgres.
    pub fn run_at(mut self, time: SystemTime) -> Self {
        self.spec.run_at = RunAt::At(time.min(SystemTime::UNIX_EPOCH + MAX_RUN_AT));
        self
    }

    /// Sets the priority. Default: 0. Among the jobs that are due, jobs with the highest priority start first.
    pub fn priority(mut self, priority: u16) -> Self {
        self.spec.priority = priority;
        self
    }

    /// Sets a limit key, for example the ID of a customer. [`QueueLimits::running_per_key`](crate::QueueLimits::running_per_key) limits how
    /// many jobs with the same limit key run at the same time.
    pub fn limit_key(mut self, key: impl Into<String>) -> Self {
        self.spec.limit_key = Some(key.into());
        self
    }

    /// Enqueues the jobs in a transaction that the caller has opened on the database of the store. The jobs are enqueued if and only if the
    /// transaction commits.
    ///
    /// If the connection has no open transaction, the jobs are committed immediately.
    ///
    /// This process notifies the workers 10 and 200 milliseconds after this call. If the transaction commits later, the workers find the
    /// jobs at their [next check](crate::WorkerOptions::poll_interval) of the store.
    ///
    /// On SQLite, start the transaction with `BEGIN IMMEDIATE`. With a plain `BEGIN`, a transaction that reads before it writes can fail,
    /// because another transaction may write between the read and the write.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] if a job cannot be serialized, and errors of the store.
    pub async fn in_transaction<C: Connection>(self, connection: &mut C) -> Result<R, Error> {
        self.durable.engine.store.check_available()?;
        let payloads = self.payloads.map_err(Error::Encode)?;
        if payloads.is_empty() {
            return Ok((self.to_output)(Pushed { ids: Vec::new(), is_new: true }));
        }
        let engine = &self.durable.engine;
        let pushed = connection.push(engine.store.prefix(), &self.spec, &payloads).await?;
        engine.changes_soon(self.spec.queue);
        Ok((self.to_output)(pushed))
    }
}

impl Enqueue {
    /// Sets a unique key. Only one of the queue's waiting, running and retrying jobs can have this key. If an existing job has the key,
    /// nothing is enqueued, and the call returns the ID of the existing job.
    ///
    /// The key is free again when its job is done, dead, cancelled or deleted. [`unique_for`](Enqueue::unique_for) can reserve the key for
    /// a longer time.
    pub fn unique_key(self, key: impl Into<String>) -> Enqueue<Enqueued> {
        let to_output = |pushed: Pushed| Enqueued { id: JobId(pushed.ids[0]), is_new: pushed.is_new };
        let Self { durable, mut spec, payloads, .. } = self;
        spec.unique_key = Some(key.into());
        Enqueue { durable, spec, payloads, to_output }
    }
}

impl Enqueue<Enqueued> {
    /// Reserves the [key](Enqueue::unique_key) for this time after the enqueue, even if the job ends earlier. Default: zero.
    ///
    /// The job stays in the store until this time has passed, even if its [retention](crate::WorkerOptions::retention) is shorter. If the
    /// job is [discarded](crate::Queue::discard), the key is free immediately.
    pub fn unique_for(mut self, period: Duration) -> Self {
        self.spec.unique_for = Some(period.min(MAX_DURATION));
        self
    }
}

impl<R: 'static> IntoFuture for Enqueue<R> {
    type Output = Result<R, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<R, Error>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (durable, queue, run_at) = (self.durable, self.spec.queue, self.spec.run_at);
            let payloads = self.payloads.map_err(Error::Encode)?;
            if payloads.is_empty() {
                return Ok((self.to_output)(Pushed { ids: Vec::new(), is_new: true }));
            }
            let pushed = durable.runtime.enter(durable.engine.store.push(self.spec, payloads)).await?;
            let delay = match run_at {
                RunAt::Now => Duration::ZERO,
                RunAt::After(delay) => delay,
                RunAt::At(time) => time.duration_since(SystemTime::now()).unwrap_or_default(),
            };
            durable.engine.changed(queue, delay);
            Ok((self.to_output)(pushed))
        })
    }
}

impl<R> fmt::Debug for Enqueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enqueue").field("queue", &self.spec.queue).field("key", &self.spec.unique_key).finish_non_exhaustive()
    }
}

/// A connection to the database that stores the jobs: `sqlx::SqliteConnection` or `sqlx::PgConnection`. To use a transaction, pass `&mut
/// *transaction`.
pub trait Connection: sealed::Push {}

mod sealed {
    use super::{BoxFuture, Error, FutureExt, JobSpec, Pushed};
    use crate::running::Completion;

    pub trait Push: Send {
        fn push<'a>(
            &'a mut self,
            prefix: &'a str,
            spec: &'a JobSpec,
            payloads: &'a [Vec<u8>],
        ) -> BoxFuture<'a, Result<Pushed, Error>>;
        /// Marks a running job as done. Returns `false` if the worker no longer holds the job.
        fn complete<'a>(&'a mut self, prefix: &'a str, completion: &'a Completion) -> BoxFuture<'a, Result<bool, Error>>;
    }

    #[cfg(feature = "sqlite")]
    impl Push for sqlx::SqliteConnection {
        fn push<'a>(&'a mut self, _: &'a str, spec: &'a JobSpec, payloads: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Pushed, Error>> {
            crate::store::sqlite::push(self, spec, payloads).boxed()
        }

        fn complete<'a>(&'a mut self, _: &'a str, completion: &'a Completion) -> BoxFuture<'a, Result<bool, Error>> {
            crate::store::sqlite::complete(self, completion).boxed()
        }
    }

    #[cfg(feature = "postgres")]
    impl Push for sqlx::PgConnection {
        fn push<'a>(
            &'a mut self,
            prefix: &'a str,
            spec: &'a JobSpec,
            payloads: &'a [Vec<u8>],
        ) -> BoxFuture<'a, Result<Pushed, Error>> {
            crate::store::postgres::push(self, prefix, spec, payloads).boxed()
        }

        fn complete<'a>(&'a mut self, prefix: &'a str, completion: &'a Completion) -> BoxFuture<'a, Result<bool, Error>> {
            crate::store::postgres::complete(self, prefix, completion).boxed()
        }
    }
}

#[cfg(feature = "sqlite")]
impl Connection for sqlx::SqliteConnection {}
#[cfg(feature = "postgres")]
impl Connection for sqlx::PgConnection {}
