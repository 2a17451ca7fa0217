//! What the worker and the queue need from a database. Only the stores access the engine's tables.

use crate::engine::{FetchConfig, PollTimer, StartJob};
use crate::error::Error;
use crate::job::{JobInfo, QueueCounts};
use crate::sync::lock;
use apalis_core::backend::TaskResult;
use background_tasks::ShutdownSignal;
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use ulid::{Generator, Overflow, Ulid};

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

pub(crate) type StoreResult<T = ()> = Result<T, Error>;

/// The key of the payload's version in the metadata of a job. Without it the version is 1.
pub(crate) const VERSION: &str = "version";

/// How long the key of a cron tick is kept at least. It must be longer than a tick can be late, or the tick is enqueued twice.
const CRON_KEY_RETENTION: Duration = Duration::from_mins(15);

/// What the jobs of one `enqueue` have in common: everything but their payloads.
#[derive(Clone, Debug)]
pub struct JobSpec {
    pub(crate) queue: &'static str,
    pub(crate) version: u32,
    /// In seconds since 1970. `None` means now.
    pub(crate) run_at: Option<i64>,
    pub(crate) priority: i32,
    /// For a single job only.
    pub(crate) unique_key: Option<String>,
}

impl JobSpec {
    /// The engine's own limit of attempts is never reached: the worker decides how often a job is retried.
    const MAX_ATTEMPTS: i32 = i32::MAX;

    fn metadata(&self) -> Option<(String, String)> {
        (self.version != 1).then(|| (VERSION.to_owned(), self.version.to_string()))
    }
}

/// Outcomes of jobs of one engine, which are committed in one transaction.
#[derive(Debug, Default)]
pub(crate) struct OutcomeBatch {
    pub(crate) started: Vec<String>,
    pub(crate) ended: Vec<TaskResult<Value>>,
    /// The jobs among `ended` that are retried, and after what delay.
    pub(crate) retries: Vec<(String, Duration)>,
    /// Jobs that return to the queue as if they had never been fetched.
    pub(crate) returned: Vec<String>,
    /// Jobs that return to the queue after a delay, with the reason.
    pub(crate) deferred: Vec<(String, Duration, String)>,
}

impl OutcomeBatch {
    /// Removes the outcomes of these jobs.
    pub(crate) fn remove(&mut self, ids: &HashSet<String>) {
        self.ended.retain(|ended| !ids.contains(&ended.task_id.to_string()));
        self.retries.retain(|(id, _)| !ids.contains(id));
        self.returned.retain(|id| !ids.contains(id));
        self.deferred.retain(|(id, ..)| !ids.contains(id));
    }
}

/// A database with the engine's tables. The trait is object-safe, so that `Durable` has no type parameter.
pub(crate) trait Store: Send + Sync + 'static {
    /// Fails if the file was deleted while it was open.
    fn check_available(&self) -> StoreResult {
        Ok(())
    }
    /// Commits all jobs or none. If the key exists, returns the ID of the job that has it.
    fn push(&self, spec: JobSpec, payloads: Vec<Vec<u8>>) -> BoxFuture<'_, StoreResult<Vec<Ulid>>>;
    /// Runs an engine under this name until it fails, and returns the error, or until shutdown starts, and returns `None`. After that none
    /// of its statements are in progress, as far as the store responds.
    fn run_engine(
        &self,
        name: String,
        config: FetchConfig,
        timer: PollTimer,
        start: Arc<StartJob>,
        signal: ShutdownSignal,
    ) -> BoxFuture<'static, Option<Error>>;
    fn commit_outcomes<'a>(&'a self, engine: &'a str, batch: &'a OutcomeBatch) -> BoxFuture<'a, StoreResult>;
    /// Records that these engines are alive.
    fn heartbeat<'a>(&'a self, engines: &'a [String]) -> BoxFuture<'a, StoreResult>;
    /// Returns all jobs that the engine holds to the queue, except these.
    fn release<'a>(&'a self, engine: &'a str, except: &'a [String]) -> BoxFuture<'a, StoreResult>;
    /// Returns all jobs that the engine holds to the queue and marks it as dead, in case its last fetch is still in progress.
    fn deregister<'a>(&'a self, engine: &'a str) -> BoxFuture<'a, StoreResult>;
    fn info<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<Option<JobInfo>>>;
    fn dead<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult<Vec<JobInfo>>>;
    fn retry<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<bool>>;
    fn discard<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<bool>>;
    fn counts<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult<QueueCounts>>;
    /// Deletes some of the jobs whose retention has expired. Returns how many.
    fn prune<'a>(&'a self, queue: &'a str, retention: Duration) -> BoxFuture<'a, StoreResult<u64>>;
    /// Deletes workers that died long ago, and updates the statistics of the query planner.
    fn clean_up<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult>;
    #[cfg(feature = "sqlite")]
    fn sqlite(&self) -> Option<&sqlx::SqlitePool> {
        None
    }
    #[cfg(feature = "postgres")]
    fn postgres(&self) -> Option<&sqlx::PgPool> {
        None
    }
}

fn parse_id(text: &str) -> StoreResult<Ulid> {
    text.parse().map_err(|_| Error::Schema(format!("invalid job ID {text}")))
}

fn migrated(result: Result<(), sqlx::migrate::MigrateError>) -> StoreResult {
    use sqlx::migrate::MigrateError;
    result.map_err(|error| match error {
        MigrateError::Execute(error) => error.into(),
        MigrateError::ExecuteMigration(error, _) => match error.into() {
            Error::Database(error) => Error::Schema(error.to_string()),
            other => other, // for example no permission or no space
        },
        MigrateError::VersionMissing(version) => {
            Error::Schema(format!("a newer version of the engine has migrated the tables ({version})"))
        }
        other => Error::Schema(other.to_string()),
    })
}

/// Returns increasing IDs, even within a millisecond: jobs of one call run in order, and are inserted in index order.
fn new_ids(count: usize) -> Vec<Ulid> {
    static GENERATOR: Mutex<Generator> = Mutex::new(Generator::new());
    let mut generator = lock(&GENERATOR);
    (0..count).map(|_| generator.generate().unwrap_or_else(Overflow::commit_overflow_random)).collect()
}
