use crate::store::Order;
use crate::{Counts, Durable, Error, Info, JobId};
use futures_timer::Delay;
use futures_util::future::{BoxFuture, FutureExt, select};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fmt, iter};
use ulid::Ulid;

/// Reads a payload of an older version.
pub(crate) type Upgrade<T> = Arc<dyn Fn(Value) -> Result<T, serde_json::Error> + Send + Sync>;

/// Jobs of one type, under one name. All clones are one, and so are those of other processes with the same store and name.
///
/// Names and payloads outlive a deploy. What is enqueued carries the queue's [version](Queue::version); a worker that does not know it
/// leaves the job to one that does.
pub struct Queue<T> {
    pub(crate) jobs: Durable,
    pub(crate) name: &'static str,
    pub(crate) version: u32,
    pub(crate) upgrades: BTreeMap<u32, Upgrade<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone(), name: self.name, version: self.version, upgrades: self.upgrades.clone() }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("name", &self.name).field("version", &self.version).finish_non_exhaustive()
    }
}

impl<T> Queue<T> {
    pub(crate) fn new(jobs: Durable, name: &'static str) -> Self {
        Self { jobs, name, version: 1, upgrades: BTreeMap::new() }
    }

    /// Which version of its payload `T` is; 1 unless told. To be raised whenever `T` changes so that what is stored cannot be read as
    /// it, or may not be: a worker of the release before leaves such jobs alone.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// How a payload of another version becomes a `T`.
    #[must_use]
    pub fn upgrade<Old: DeserializeOwned>(mut self, from: u32, to: impl Fn(Old) -> T + Send + Sync + 'static) -> Self {
        self.upgrades.insert(from, Arc::new(move |payload| Old::deserialize(payload).map(&to)));
        self
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Enqueues a job: the [`Enqueue`] that is returned does, when it is awaited.
    pub fn enqueue(&self, job: T) -> Enqueue
    where
        T: Serialize,
    {
        self.order(iter::once(job), |ids| JobId(ids[0]))
    }

    /// Enqueues jobs, all or none: the [`EnqueueAll`] that is returned does, when it is awaited. Much faster than one after the other.
    pub fn enqueue_all(&self, jobs: impl IntoIterator<Item = T>) -> EnqueueAll
    where
        T: Serialize,
    {
        self.order(jobs, |ids| ids.into_iter().map(JobId).collect())
    }

    fn order<R>(&self, jobs: impl IntoIterator<Item = T>, told: fn(Vec<Ulid>) -> R) -> Enqueue<R>
    where
        T: Serialize,
    {
        let payloads = jobs.into_iter().map(|job| serde_json::to_vec(&job)).collect();
        let order = Order { queue: self.name, version: self.version, due: None, priority: 0, key: None };
        Enqueue { jobs: self.jobs.clone(), order, payloads, told }
    }

    /// What the store has of a job; `None` if it was never in this queue, or was done and is dropped by now.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn info(&self, id: JobId) -> Result<Option<Info>, Error> {
        self.jobs.runtime.within(self.jobs.store.info(self.name, id.0)).await
    }

    /// Waits until a job is [done or dead](crate::Status::is_final), in whichever process. `None` if it is not there.
    ///
    /// The store is asked now and then: at once for what ends in this process, else up to half a second late. It is cancel-safe.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn wait(&self, id: JobId) -> Result<Option<Info>, Error> {
        let mut pause = Duration::from_millis(20);
        loop {
            let settled = self.jobs.settled.listen();
            match self.info(id).await? {
                Some(info) if !info.status().is_final() => {}
                told => return Ok(told),
            }
            select(settled, Delay::new(pause)).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// The jobs that were given up, the oldest first. They stay until they are [retried](Queue::retry)
    /// or [discarded](Queue::discard).
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn dead(&self) -> Result<Vec<Info>, Error> {
        self.jobs.runtime.within(self.jobs.store.dead(self.name)).await
    }

    /// Has a dead job tried again, from its first attempt. `false` if it is not dead.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn retry(&self, id: JobId) -> Result<bool, Error> {
        let again = self.jobs.runtime.within(self.jobs.store.retry(self.name, id.0)).await?;
        self.jobs.bell(self.name).notify(usize::MAX);
        Ok(again)
    }

    /// Drops a job that no worker has, and that is not done: one that waits, or is to be retried, or is dead. `false` if it is none of
    /// these. Its key is free again.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn discard(&self, id: JobId) -> Result<bool, Error> {
        self.jobs.runtime.within(self.jobs.store.discard(self.name, id.0)).await
    }

    /// How many jobs there are.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn counts(&self) -> Result<Counts, Error> {
        self.jobs.runtime.within(self.jobs.store.counts(self.name)).await
    }
}

/// The year 9999, beyond which Postgres' dates are not everybody's.
const MOST: i64 = 253_402_300_799;

/// A job, or jobs, that are enqueued when this is awaited, or by [`within`](Enqueue::within): all or none.
///
/// `Ok` means committed: the job is in the store, and will be there after a power cut. An error means that it is not, but for one that
/// comes while the server commits ([`Error::Missing`]) and for a future that is dropped: then it may be there, and who enqueues once
/// more gives it a [key](Enqueue::unique).
#[must_use = "jobs are enqueued when this is awaited"]
pub struct Enqueue<R = JobId> {
    jobs: Durable,
    order: Order,
    payloads: Result<Vec<Vec<u8>>, serde_json::Error>,
    told: fn(Vec<Ulid>) -> R,
}

/// Jobs that are enqueued when this is awaited; the identifiers come in their order.
pub type EnqueueAll = Enqueue<Vec<JobId>>;

impl<R> Enqueue<R> {
    /// Not before so long from now has passed.
    pub fn later(self, delay: Duration) -> Self {
        self.due(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_add(delay))
    }

    /// Not before this, to the next whole second.
    pub fn at(self, due: SystemTime) -> Self {
        self.due(due.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    /// The next whole second, so that none comes too early.
    fn due(mut self, since_1970: Duration) -> Self {
        let whole = since_1970.as_secs().saturating_add(u64::from(since_1970.subsec_nanos() > 0));
        self.order.due = Some(i64::try_from(whole).unwrap_or(MOST).min(MOST));
        self
    }

    /// A higher one is taken before a lower one that is due as well; 0 unless told.
    pub fn priority(mut self, priority: u16) -> Self {
        self.order.priority = priority.into();
        self
    }

    /// Enqueues in a transaction of the caller's own on the same database, or on a connection without one: the job is there if and
    /// when that commits, together with what else it writes. A worker of this process sees it with its next look.
    ///
    /// On SQLite it should have begun with `BEGIN IMMEDIATE`, as one that reads before it writes can find that another has written.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn within<C: Connection>(self, connection: &mut C) -> Result<R, Error> {
        self.jobs.store.is_there()?;
        let payloads = self.payloads.map_err(Error::Encode)?;
        if payloads.is_empty() {
            return Ok((self.told)(Vec::new()));
        }
        Ok((self.told)(connection.push(&self.order, &payloads).await?))
    }
}

impl Enqueue {
    /// Only if no job of the queue has this key; if one has, its identifier is returned, however far it is. A job keeps its key for as
    /// long as it stands in the store: see [`Options::retain`](crate::Options::retain).
    pub fn unique(mut self, key: impl Into<String>) -> Self {
        self.order.key = Some(key.into());
        self
    }
}

impl<R: 'static> IntoFuture for Enqueue<R> {
    type Output = Result<R, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<R, Error>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (jobs, queue) = (self.jobs, self.order.queue);
            let payloads = self.payloads.map_err(Error::Encode)?;
            if payloads.is_empty() {
                return Ok((self.told)(Vec::new()));
            }
            let ids = jobs.runtime.within(jobs.store.push(self.order, payloads)).await?;
            jobs.bell(queue).notify(usize::MAX);
            Ok((self.told)(ids))
        })
    }
}

impl<R> fmt::Debug for Enqueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enqueue").field("queue", &self.order.queue).field("key", &self.order.key).finish_non_exhaustive()
    }
}

/// A connection of the caller's own to the database that has the jobs: `sqlx::SqliteConnection` or `sqlx::PgConnection`, which
/// `&mut *transaction` is.
pub trait Connection: sealed::Push {}

mod sealed {
    use super::{BoxFuture, Error, FutureExt, Order, Ulid};

    pub trait Push: Send {
        fn push<'a>(&'a mut self, order: &'a Order, payloads: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Vec<Ulid>, Error>>;
    }

    #[cfg(feature = "sqlite")]
    impl Push for sqlx::SqliteConnection {
        fn push<'a>(&'a mut self, order: &'a Order, payloads: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Vec<Ulid>, Error>> {
            crate::store::sqlite::push(self, order, payloads).boxed()
        }
    }

    #[cfg(feature = "postgres")]
    impl Push for sqlx::PgConnection {
        fn push<'a>(&'a mut self, order: &'a Order, payloads: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Vec<Ulid>, Error>> {
            crate::store::postgres::push(self, order, payloads).boxed()
        }
    }
}

#[cfg(feature = "sqlite")]
impl Connection for sqlx::SqliteConnection {}
#[cfg(feature = "postgres")]
impl Connection for sqlx::PgConnection {}
