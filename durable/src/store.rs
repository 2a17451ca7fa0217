//! What differs between the databases: the engine's tables are asked and told here, and nowhere else.

use crate::intake::{Polls, Start, lock};
use crate::{Counts, Error, Info};
use apalis_core::backend::TaskResult;
use apalis_core::task::Task;
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

pub(crate) type RawTask = Task<Vec<u8>>;
pub(crate) type Told<T = ()> = Result<T, Error>;

/// Where the payload's version stands; it is 1 where none does.
pub(crate) const VERSION: &str = "version";

/// The migrations' own list of what they did, apart from that of the program's migrations in the same database.
#[cfg(feature = "sqlite")]
const MIGRATED: &str = "background_tasks_migrations";

/// How long the key of a tick is kept at least: longer than the tick can be late, or it would be enqueued once more.
const TICKS: Duration = Duration::from_mins(15);

/// What the jobs of one `enqueue` have in common: all but their payloads.
#[derive(Clone, Debug)]
pub struct Order {
    pub(crate) queue: &'static str,
    pub(crate) version: u32,
    /// In seconds since 1970; at once if it is `None`.
    pub(crate) due: Option<i64>,
    pub(crate) priority: i32,
    /// Of a job that is alone.
    pub(crate) key: Option<String>,
}

impl Order {
    /// How often a job may be tried is the worker's to say: this is the engine's own limit, out of the way.
    const ATTEMPTS: i32 = i32::MAX;

    fn metadata(&self) -> Option<(String, String)> {
        (self.version != 1).then(|| (VERSION.to_owned(), self.version.to_string()))
    }
}

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

impl Batch {
    pub(crate) fn leave_out(&mut self, ids: &HashSet<String>) {
        self.ended.retain(|ended| !ids.contains(&ended.task_id.to_string()));
        self.again.retain(|(id, _)| !ids.contains(id));
        self.returned.retain(|id| !ids.contains(id));
        self.deferred.retain(|(id, ..)| !ids.contains(id));
    }
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
    /// Commits them all or none. If the key is taken, the identifier is that of the job that has it.
    fn push(&self, order: Order, payloads: Vec<Vec<u8>>) -> BoxFuture<'_, Told<Vec<Ulid>>>;
    /// Runs the engine under a name, until it fails, or until the shutdown, which is no error. Then nothing that it asked for is under
    /// way, as far as the store answers.
    fn engine(
        &self,
        name: String,
        terms: Terms,
        polls: Polls,
        start: Arc<Start>,
        signal: ShutdownSignal,
    ) -> BoxFuture<'static, Option<Error>>;
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
    /// Drops some of what was done so long ago, and tells how many.
    fn prune<'a>(&'a self, queue: &'a str, retain: Duration) -> BoxFuture<'a, Told<u64>>;
    /// Drops the workers that are long gone, and has the database look at its tables.
    fn tidy<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told>;
    #[cfg(feature = "sqlite")]
    fn sqlite(&self) -> Option<&sqlx::SqlitePool> {
        None
    }
    #[cfg(feature = "postgres")]
    fn postgres(&self) -> Option<&sqlx::PgPool> {
        None
    }
}

pub(crate) fn id(task: &RawTask) -> Ulid {
    task.task_id().and_then(apalis_core::task::task_id::TaskId::as_ulid).expect("the tables' identifiers are ULIDs")
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
fn ids(count: usize) -> Vec<Ulid> {
    static LAST: Mutex<Generator> = Mutex::new(Generator::new());
    let mut last = lock(&LAST);
    (0..count).map(|_| last.generate().unwrap_or_else(Overflow::commit_overflow_random)).collect()
}
