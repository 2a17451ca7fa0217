//! What differs between the databases: the engine's tables are asked and told here, and nowhere else.

use crate::intake::Start;
use crate::{Counts, Error, Info};
use apalis_core::backend::TaskResult;
use apalis_core::task::Task;
use apalis_core::task::builder::TaskBuilder;
use apalis_core::task::metadata::MetadataStore;
use futures_util::future::BoxFuture;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use ulid::{Generator, Overflow, Ulid};

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

pub(crate) type RawTask = Task<Vec<u8>>;
pub(crate) type Told<T = ()> = Result<T, Error>;

/// Where the payload's version stands; it is 1 where none does.
pub(crate) const VERSION: &str = "version";

/// The migrations' own list of what they did, apart from that of the program's migrations in the same database.
#[cfg(feature = "sqlite")]
const MIGRATED: &str = "background_tasks_migrations";

/// How long the key of a tick is kept at least: longer than the tick can be late, or it would be enqueued once more.
const TICKS: Duration = Duration::from_mins(15);

/// What has become of jobs of one worker, told in one transaction.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) started: Vec<String>,
    pub(crate) ended: Vec<TaskResult<Value>>,
    /// Of those that ended, which come again, and after how long.
    pub(crate) again: Vec<(String, Duration)>,
    /// These go back as if nobody had taken them.
    pub(crate) returned: Vec<String>,
    /// These go back, to be looked at again later, and say why.
    pub(crate) deferred: Vec<(String, Duration, String)>,
}

/// What a worker asks of the engine.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) queue: &'static str,
    pub(crate) batch: usize,
    pub(crate) beat: Duration,
    pub(crate) beats: usize,
}

/// Object-safe, so that a `Durable` has no type parameter.
pub(crate) trait Store: Send + Sync + 'static {
    /// Not deleted, as a file can be while it is open.
    fn is_there(&self) -> Told {
        Ok(())
    }
    /// Commits them all or none. Those whose key is taken are left out: the identifiers are of those that stand there now.
    fn push(&self, queue: &'static str, tasks: Vec<RawTask>) -> BoxFuture<'_, Told<Vec<Ulid>>>;
    /// Runs the engine under a name, until it fails.
    fn engine(&self, name: String, terms: Terms, polls: crate::intake::Polls, start: Arc<Start>) -> BoxFuture<'static, Told>;
    fn settle<'a>(&'a self, worker: &'a str, batch: &'a Batch) -> BoxFuture<'a, Told>;
    /// The workers are alive.
    fn beat<'a>(&'a self, workers: &'a [String]) -> BoxFuture<'a, Told>;
    /// Gives back what the worker holds, but these.
    fn give_back<'a>(&'a self, worker: &'a str, but: &'a [String]) -> BoxFuture<'a, Told>;
    /// Gives back all that the worker holds, and has the others take it for dead, should a last fetch of its have been under way.
    fn sign_off<'a>(&'a self, worker: &'a str) -> BoxFuture<'a, Told>;
    fn info<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<Option<Info>>>;
    fn dead<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told<Vec<Info>>>;
    fn retry<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<bool>>;
    fn discard<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<bool>>;
    fn counts<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told<Counts>>;
    /// Drops what was done so long ago, and has the database look at its tables.
    fn upkeep<'a>(&'a self, queue: &'a str, retain: Duration) -> BoxFuture<'a, Told<u64>>;
    #[cfg(feature = "sqlite")]
    fn sqlite(&self) -> Option<&sqlx::SqlitePool> {
        None
    }
    #[cfg(feature = "postgres")]
    fn postgres(&self) -> Option<&sqlx::PgPool> {
        None
    }
}

/// A job as the engine has it. How often it may be tried is the worker's to say, so the engine's own limit is out of the way.
pub(crate) fn task(payload: Vec<u8>, version: u32, run_at: Option<u64>, key: Option<&str>, priority: u32) -> RawTask {
    let mut metadata = MetadataStore::new();
    if version != 1 {
        metadata.insert(VERSION, version.to_string()).expect("a name and a number");
    }
    let mut task = TaskBuilder::new(payload)
        .task_id(next().into())
        .with_metadata(metadata)
        .max_attempts(i32::MAX as usize)
        .priority(priority as usize);
    if let Some(run_at) = run_at {
        task = task.run_at_timestamp(run_at);
    }
    if let Some(key) = key {
        task = task.idempotency_key(key);
    }
    task.build()
}

pub(crate) fn id(task: &RawTask) -> Ulid {
    task.task_id().and_then(apalis_core::task::task_id::TaskId::as_ulid).expect("the tables' identifiers are ULIDs")
}

fn keyed(tasks: &[RawTask]) -> bool {
    tasks.iter().any(|task| task.idempotency_key().is_some())
}

pub(crate) fn engine_failed(error: impl std::fmt::Display) -> Error {
    Error::Engine(error.to_string())
}

fn migrated(result: Result<(), sqlx::migrate::MigrateError>) -> Told {
    use sqlx::migrate::MigrateError;
    result.map_err(|error| match error {
        MigrateError::Execute(error) => error.into(),
        MigrateError::ExecuteMigration(error, _) => match error.into() {
            Error::Database(error) => Error::Schema(error.to_string()),
            other => other, // no right to, no space for it
        },
        MigrateError::VersionMissing(version) => {
            Error::Schema(format!("a newer version of the engine has changed them ({version})"))
        }
        other => Error::Schema(other.to_string()),
    })
}

/// Later ones are greater, also within a millisecond: jobs of one bulk run in their order, and are inserted in that of their index.
fn next() -> Ulid {
    static LAST: Mutex<Generator> = Mutex::new(Generator::new());
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    last.generate().unwrap_or_else(Overflow::commit_overflow_random)
}
