use crate::durable::Durable;
use crate::error::Error;
use crate::job::JobId;
use crate::store::JobSpec;
use futures_util::future::{BoxFuture, FutureExt};
use serde::Serialize;
use std::fmt;
use std::pin::Pin;
use std::time::{Duration, SystemTime};
use ulid::Ulid;

/// The end of the year 9999. Not every client of Postgres reads later dates.
const MAX_RUN_AT: i64 = 253_402_300_799;

/// Enqueues one or more jobs when it is awaited or passed to a [transaction](Enqueue::in_transaction): all or none.
///
/// `Ok` means committed: the jobs are in the store and survive a power failure. An error means that nothing was enqueued, with two
/// exceptions. If the server disappears during the commit ([`Error::Unavailable`]) or the future is dropped, the jobs may have been
/// enqueued. To repeat such a call safely, set a [key](Enqueue::unique_key).
#[must_use = "jobs are enqueued when this is awaited"]
pub struct Enqueue<R = JobId> {
    durable: Durable,
    spec: JobSpec,
    payloads: Result<Vec<Vec<u8>>, serde_json::Error>,
    to_output: fn(Vec<Ulid>) -> R,
}

/// Enqueues several jobs when it is awaited. Returns their IDs in the same order.
pub type EnqueueAll = Enqueue<Vec<JobId>>;

impl<R> Enqueue<R> {
    pub(crate) fn new<T: Serialize>(
        durable: &Durable,
        queue: &'static str,
        version: u32,
        jobs: impl IntoIterator<Item = T>,
        to_output: fn(Vec<Ulid>) -> R,
    ) -> Self {
        let payloads = jobs.into_iter().map(|job| serde_json::to_vec(&job)).collect();
        let spec = JobSpec { queue, version, run_at: None, priority: 0, unique_key: None };
        Self { durable: durable.clone(), spec, payloads, to_output }
    }

    /// Delays the jobs: they start no earlier than this long from now.
    pub fn delay(self, delay: Duration) -> Self {
        self.run_after_epoch(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_add(delay))
    }

    /// Schedules the jobs: they start no earlier than this time, rounded up to whole seconds.
    pub fn run_at(self, time: SystemTime) -> Self {
        self.run_after_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    /// Rounds up to whole seconds, so that no job starts early.
    fn run_after_epoch(mut self, since_epoch: Duration) -> Self {
        let seconds = since_epoch.as_secs().saturating_add(u64::from(since_epoch.subsec_nanos() > 0));
        self.spec.run_at = Some(i64::try_from(seconds).unwrap_or(MAX_RUN_AT).min(MAX_RUN_AT));
        self
    }

    /// Sets the priority. Of the jobs that are due, those with the highest priority start first. Default: 0.
    pub fn priority(mut self, priority: u16) -> Self {
        self.spec.priority = priority.into();
        self
    }

    /// Enqueues the jobs in a transaction of the caller on the same database. The jobs exist if and only if the transaction commits.
    ///
    /// A connection without an open transaction commits immediately. Workers of this process find the jobs at their next poll. On SQLite
    /// start the transaction with `BEGIN IMMEDIATE`: a transaction that reads before it writes can fail if another one has written.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn in_transaction<C: Connection>(self, connection: &mut C) -> Result<R, Error> {
        self.durable.store.check_available()?;
        let payloads = self.payloads.map_err(Error::Encode)?;
        if payloads.is_empty() {
            return Ok((self.to_output)(Vec::new()));
        }
        Ok((self.to_output)(connection.push(&self.spec, &payloads).await?))
    }
}

impl Enqueue {
    /// Sets an idempotency key, which is unique in the queue. If a job with this key exists, in any status, nothing is enqueued and the
    /// call returns the ID of that job.
    ///
    /// A job keeps its key as long as it is in the store: see [`WorkerOptions::retention`](crate::WorkerOptions::retention).
    pub fn unique_key(mut self, key: impl Into<String>) -> Self {
        self.spec.unique_key = Some(key.into());
        self
    }
}

impl<R: 'static> IntoFuture for Enqueue<R> {
    type Output = Result<R, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<R, Error>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (durable, queue) = (self.durable, self.spec.queue);
            let payloads = self.payloads.map_err(Error::Encode)?;
            if payloads.is_empty() {
                return Ok((self.to_output)(Vec::new()));
            }
            let ids = durable.runtime.enter(durable.store.push(self.spec, payloads)).await?;
            durable.enqueue_event(queue).notify(usize::MAX);
            Ok((self.to_output)(ids))
        })
    }
}

impl<R> fmt::Debug for Enqueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enqueue").field("queue", &self.spec.queue).field("key", &self.spec.unique_key).finish_non_exhaustive()
    }
}

/// A connection to the database that stores the jobs: `sqlx::SqliteConnection` or `sqlx::PgConnection`. `&mut *transaction` is one.
pub trait Connection: sealed::Push {}

mod sealed {
    use super::{BoxFuture, Error, FutureExt, JobSpec, Ulid};

    pub trait Push: Send {
        fn push<'a>(&'a mut self, spec: &'a JobSpec, payloads: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Vec<Ulid>, Error>>;
    }

    #[cfg(feature = "sqlite")]
    impl Push for sqlx::SqliteConnection {
        fn push<'a>(&'a mut self, spec: &'a JobSpec, payloads: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Vec<Ulid>, Error>> {
            crate::store::sqlite::push(self, spec, payloads).boxed()
        }
    }

    #[cfg(feature = "postgres")]
    impl Push for sqlx::PgConnection {
        fn push<'a>(&'a mut self, spec: &'a JobSpec, payloads: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Vec<Ulid>, Error>> {
            crate::store::postgres::push(self, spec, payloads).boxed()
        }
    }
}

#[cfg(feature = "sqlite")]
impl Connection for sqlx::SqliteConnection {}
#[cfg(feature = "postgres")]
impl Connection for sqlx::PgConnection {}
