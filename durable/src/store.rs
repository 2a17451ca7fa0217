//! Defines the database operations that the engine and the queues call. SQL occurs only in this module and in its submodules.
//!
//! Where possible, each call of the engine is a single statement. The server, or the thread of the SQLite driver, executes this statement
//! to its end, even if a handler blocks the runtime. Such a call therefore never leaves a lock or a transaction open.

use crate::error::Error;
use crate::job::{JobInfo, JobStatus, QueueCounts};
use crate::limits::QueueLimits;
use crate::operator::QueueInfo;
use crate::sync::lock;
use futures_util::future::BoxFuture;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};
use ulid::{Generator, Overflow, Ulid};

#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

pub(crate) type StoreResult<T = ()> = Result<T, Error>;
pub(crate) type StoreFuture<'a, T = ()> = BoxFuture<'a, StoreResult<T>>;

/// The maximum number of jobs that one statement fetches, commits or changes. To change more jobs, a call repeats its statement.
pub(crate) const MAX_ROWS: usize = 1000;

/// The time at which a job is due.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RunAt {
    Now,
    /// The job is due when this delay has passed since the enqueue, by the clock of the store.
    After(Duration),
    At(SystemTime),
}

/// The values that all jobs of one `enqueue` share: everything except the payloads.
#[derive(Clone, Debug)]
pub struct JobSpec {
    pub(crate) queue: &'static str,
    pub(crate) version: u32,
    pub(crate) run_at: RunAt,
    pub(crate) priority: u16,
    /// Only an `enqueue` of a single job can have a unique key.
    pub(crate) unique_key: Option<String>,
    /// After the enqueue, the key stays in use for this time, even if the job has ended.
    pub(crate) unique_for: Option<Duration>,
    pub(crate) limit_key: Option<String>,
}

/// The result of one `enqueue`.
#[derive(Debug)]
pub struct Pushed {
    pub(crate) ids: Vec<Ulid>,
    /// Whether the jobs are new. If `false`, an existing job uses the unique key, and `ids` contains the ID of this job.
    pub(crate) is_new: bool,
}

/// A request to fetch jobs for a worker.
#[derive(Clone, Debug)]
pub(crate) struct FetchRequest {
    pub(crate) queue: &'static str,
    pub(crate) worker: String,
    pub(crate) limit: usize,
}

#[derive(Debug)]
pub(crate) struct FetchedJob {
    pub(crate) id: Ulid,
    pub(crate) queue: String,
    pub(crate) run: i32,
    pub(crate) attempts: u32,
    pub(crate) crashes: u32,
    pub(crate) version: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) checkpoint: Option<String>,
}

/// A job that a worker holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldJob {
    pub(crate) id: Ulid,
    pub(crate) run: i32,
    /// Whether the job is cancelled. The worker holds a cancelled job until the handler has stopped.
    pub(crate) is_cancelled: bool,
}

/// A job that waits or is retried.
pub(crate) struct EnqueuedRow {
    pub(crate) info: JobInfo,
    pub(crate) delay: Duration,
    pub(crate) unique_key: Option<String>,
}

/// The result of a fetch from a queue with limits.
#[derive(Debug, Default)]
pub(crate) struct LimitedFetch {
    pub(crate) jobs: Vec<FetchedJob>,
    /// Whether another fetch may find more jobs immediately.
    pub(crate) has_more: bool,
    /// The time until the rate limit allows another job.
    pub(crate) retry_after: Option<Duration>,
}

/// The database row of a queue with limits.
pub(crate) struct LimitsRow {
    pub(crate) is_paused: bool,
    pub(crate) max_running: Option<i64>,
    pub(crate) max_running_per_key: Option<i64>,
    pub(crate) rate_jobs: Option<f64>,
    pub(crate) rate_seconds: Option<f64>,
    /// The number of jobs that the rate limit allows now.
    pub(crate) allowed: Option<f64>,
    pub(crate) running: i64,
}

impl LimitsRow {
    /// Returns how many jobs can start now. If the rate limit allows no job now, also returns the time until it allows the next job.
    #[expect(clippy::cast_possible_truncation, reason = "limits are 32 bits")]
    pub(crate) fn room(&self, limit: usize) -> (i64, Option<Duration>) {
        if self.is_paused {
            return (0, None);
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let room = limit.min(self.max_running.map_or(limit, |max| max - self.running)).max(0);
        let (Some(allowed), Some(jobs), Some(seconds)) = (self.allowed, self.rate_jobs, self.rate_seconds) else {
            return (room, None);
        };
        let wait = (allowed < 1.0).then(|| Duration::from_secs_f64(((1.0 - allowed) * seconds / jobs).max(0.001)));
        (room.min(allowed as i64), wait)
    }
}

/// The outcome of one run of a job.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) id: Ulid,
    pub(crate) run: i32,
    pub(crate) state: NextState,
    /// Whether the run counts as an attempt.
    pub(crate) is_charged: bool,
    pub(crate) result: Option<String>,
    pub(crate) error: Option<String>,
}

/// The state of a job after a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum NextState {
    Done,
    Dead,
    /// The job goes back into the queue as if it had never been fetched.
    Available,
    /// The job goes back into the queue with a delay.
    Scheduled(Duration),
    /// The job is retried after a delay.
    Retrying(Duration),
}

impl Outcome {
    fn state(&self) -> &'static str {
        match self.state {
            NextState::Done => "done",
            NextState::Dead => "dead",
            NextState::Available | NextState::Scheduled(Duration::ZERO) | NextState::Retrying(Duration::ZERO) => "available",
            NextState::Scheduled(_) => "scheduled",
            NextState::Retrying(_) => "retrying",
        }
    }

    /// Returns the delay of the next attempt. If the result is `None`, the due time of the job does not change.
    fn delay(&self) -> Option<Duration> {
        match self.state {
            NextState::Scheduled(delay) | NextState::Retrying(delay) => Some(delay),
            _ => None,
        }
    }
}

/// The result of committing an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    Yes,
    /// The job was cancelled during the run.
    Cancelled,
    /// The worker no longer held the job.
    Lost,
}

/// Says whether workers can fetch jobs of a queue, and when the next job is due.
#[derive(Clone, Debug)]
pub(crate) struct QueueTick {
    pub(crate) queue: String,
    pub(crate) is_ready: bool,
    /// The time until the next job is due.
    pub(crate) next_due: Option<Duration>,
    pub(crate) is_paused: bool,
    pub(crate) is_limited: bool,
}

/// A worker that is registered in the store. Each heartbeat renews its lease.
#[derive(Clone, Debug)]
pub(crate) struct WorkerLease {
    pub(crate) id: String,
    pub(crate) queue: &'static str,
    pub(crate) lease: Duration,
}

/// A notification about a change that another process has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The queue with this name may have jobs.
    #[cfg(feature = "postgres")]
    Queue(String),
    /// Any queue or job may have changed.
    Any,
    /// No notification arrived within the time limit.
    Nothing,
}

/// The calls that the heartbeat thread makes on its own connection.
pub(crate) trait Heart: Send {
    /// Renews the leases of these workers. If another process has removed a worker because its lease had expired, registers the worker
    /// again. Returns the IDs of the workers that were registered again.
    fn beat<'a>(&'a mut self, workers: &'a [WorkerLease]) -> StoreFuture<'a, Vec<String>>;
    /// Deletes the entries of workers that had already ended when `beat` registered them again.
    fn deregister<'a>(&'a mut self, workers: &'a [String]) -> StoreFuture<'a>;
    /// Puts the jobs of dead workers back into their queues. Returns the number of these jobs.
    fn recover(&mut self) -> StoreFuture<'_, u64>;
    /// Waits for a notification of another process, for at most `limit`.
    fn next_notice(&mut self, limit: Duration, poll_interval: Duration) -> StoreFuture<'_, Notice>;
}

/// A database with the tables of this crate. The trait is object-safe, so that `Durable` needs no type parameter for its store.
pub(crate) trait Store: Send + Sync + 'static {
    /// Fails if the file of the database was deleted or replaced while it was open.
    fn check_available(&self) -> StoreResult {
        Ok(())
    }
    /// Returns the prefix of the tables' names.
    #[expect(clippy::unnecessary_literal_bound, reason = "Postgres returns the name of its schema")]
    fn prefix(&self) -> &str {
        ""
    }
    /// Returns the default of the [poll interval](crate::WorkerOptions::poll_interval).
    fn poll_interval(&self) -> Duration;
    /// Returns the interval at which the engine checks the queues for due jobs. `poll_interval` is the poll interval of the workers.
    fn look_interval(&self, poll_interval: Duration) -> Duration {
        poll_interval
    }

    /// Enqueues all of these jobs or none.
    fn push(&self, spec: JobSpec, payloads: Vec<Vec<u8>>) -> StoreFuture<'_, Pushed>;
    /// Notifies the processes that serve these queues.
    fn notify(&self, _queues: Vec<String>) -> StoreFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn heart(&self) -> StoreFuture<'_, Box<dyn Heart>>;
    fn register<'a>(&'a self, worker: &'a WorkerLease) -> StoreFuture<'a>;
    /// Puts the jobs of these workers back into their queues, and deletes the entries of the workers. A fetch needs the entry of its
    /// worker. If a fetch for a deleted worker is delayed, it therefore finds no jobs.
    fn deregister<'a>(&'a self, workers: &'a [String]) -> StoreFuture<'a>;
    /// Makes the due jobs of these queues available to workers. Returns for each queue whether workers can fetch jobs, and when the next
    /// job is due.
    fn tick<'a>(&'a self, queues: &'a [&'static str]) -> StoreFuture<'a, Vec<QueueTick>>;
    /// Fetches jobs in the order in which they run. The caller must not pass two requests for the same queue. If a queue is paused or has
    /// limits, the call fetches none of its jobs.
    fn fetch<'a>(&'a self, requests: &'a [FetchRequest]) -> StoreFuture<'a, Vec<FetchedJob>>;
    /// Fetches jobs like `fetch`, but from a queue with limits.
    fn fetch_limited<'a>(&'a self, request: &'a FetchRequest) -> StoreFuture<'a, LimitedFetch>;
    /// Commits outcomes. A blocked job is a due job that waits because of the limit of its key. If a job with the same key has ended, the
    /// call makes as many blocked jobs available as the limit allows.
    fn commit<'a>(&'a self, outcomes: &'a [Outcome]) -> StoreFuture<'a, Vec<Committed>>;
    /// Returns the jobs that these workers hold.
    fn held<'a>(&'a self, workers: &'a [String]) -> StoreFuture<'a, Vec<HeldJob>>;
    /// Makes jobs available again that were fetched, but that no worker has started.
    fn give_back<'a>(&'a self, jobs: &'a [HeldJob]) -> StoreFuture<'a>;
    /// Deletes some of the jobs whose retention has expired. Returns the number of deleted jobs.
    fn prune<'a>(&'a self, queue: &'a str, retention: Duration, dead_retention: Duration) -> StoreFuture<'a, u64>;
    /// For each limit key, makes as many blocked jobs available as the limit allows. Usually `commit`, `cancel`, `discard` and `set_limits`
    /// do this. This call is needed if a process died before it could do it.
    fn unblock<'a>(&'a self, queue: &'a str) -> StoreFuture<'a>;
    /// Returns the last tick of a schedule that was stored before this call. If `tick` is given, and is later than the stored tick or is
    /// the first tick, stores `tick` as the last tick.
    #[cfg(feature = "cron")]
    fn last_tick<'a>(&'a self, queue: &'a str, schedule: &'a str, tick: Option<i64>) -> StoreFuture<'a, Option<i64>>;
    fn save_checkpoint<'a>(&'a self, id: Ulid, run: i32, checkpoint: &'a str) -> StoreFuture<'a, bool>;

    /// Finds a job in this queue. If no name is given, finds the job in any queue.
    fn info<'a>(&'a self, queue: Option<&'a str>, id: Ulid) -> StoreFuture<'a, Option<JobInfo>>;
    /// Returns the statuses of these jobs. Skips jobs that do not exist.
    fn statuses<'a>(&'a self, ids: &'a [Ulid]) -> StoreFuture<'a, Vec<(Ulid, JobStatus)>>;
    /// Returns jobs in this state, which is one of [`STATES`].
    fn jobs<'a>(
        &'a self,
        queue: &'a str,
        state: &'static str,
        order: Order,
        after: Option<&'a JobInfo>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<JobInfo>>;
    /// Makes the dead job with this ID available. If no ID is given, reads up to `MAX_ROWS` dead jobs, and makes one job of each unique key
    /// and all jobs without a key available. Returns the number of changed jobs, and whether there may be more dead jobs to read.
    fn retry<'a>(&'a self, queue: &'a str, id: Option<Ulid>) -> StoreFuture<'a, (u64, bool)>;
    /// If the job with this ID does not run and is not done, deletes the job. If no ID is given, deletes up to `MAX_ROWS` dead jobs.
    /// Returns the number of deleted jobs.
    fn discard<'a>(&'a self, queue: &'a str, id: Option<Ulid>) -> StoreFuture<'a, u64>;
    fn cancel<'a>(&'a self, queue: &'a str, id: Ulid) -> StoreFuture<'a, bool>;
    fn counts<'a>(&'a self, queue: &'a str) -> StoreFuture<'a, QueueCounts>;
    /// Returns all queues, with one statement. The duration of the statement does not depend on the number of jobs.
    fn queues(&self) -> StoreFuture<'_, Vec<QueueInfo>>;
    fn pause<'a>(&'a self, queue: &'a str, is_paused: bool) -> StoreFuture<'a>;
    fn set_limits<'a>(&'a self, queue: &'a str, limits: QueueLimits) -> StoreFuture<'a>;
    /// Returns the jobs of a queue that wait or are retried, oldest first.
    fn enqueued<'a>(&'a self, queue: &'a str) -> StoreFuture<'a, Vec<EnqueuedRow>>;
    /// Moves all times of jobs and queues into the past, as if this time had passed. Tests use this call to avoid waits for delays.
    fn advance(&self, by: Duration) -> StoreFuture<'_>;
    #[cfg(feature = "sqlite")]
    fn sqlite(&self) -> Option<&sqlx::SqlitePool> {
        None
    }
    #[cfg(feature = "postgres")]
    fn postgres(&self) -> Option<&sqlx::PgPool> {
        None
    }
}

/// The states of jobs in the store. Jobs in the first three states have the status `Waiting`, and lists show these states in this order.
pub(crate) const STATES: [&str; 8] = ["available", "blocked", "scheduled", "running", "retrying", "done", "dead", "cancelled"];

/// The order of the jobs in a list. The database index for the state of these jobs has the same order, so that the database does not sort
/// the jobs.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// Sorts jobs in the order in which they run.
    Priority,
    /// Sorts jobs by limit key. Jobs with the same key are sorted in the order in which they run.
    LimitKey,
    /// Sorts jobs by due time, earliest first.
    Due,
    /// Sorts jobs by the time at which they ended, latest first.
    Ended,
    /// Sorts jobs by the time at which they ended, earliest first.
    Oldest,
}

impl Order {
    /// Returns the order in which tools list the jobs of this state.
    pub(crate) fn of(state: &str) -> Self {
        match state {
            "available" => Self::Priority,
            "blocked" => Self::LimitKey,
            "done" | "dead" | "cancelled" => Self::Ended,
            _ => Self::Due,
        }
    }

    /// Returns the order of a list, and the condition for the jobs that follow a given job. In both strings, `@id` is the column that sorts
    /// jobs with the same time. In the condition, `@1` to `@4` are the priority, the time, the `@id` and the limit key of the given job.
    fn sql(self) -> (&'static str, &'static str) {
        match self {
            Self::Priority => (
                "jobs.priority DESC, jobs.run_at, jobs.@id",
                "jobs.priority <= @1 AND (jobs.priority < @1 OR (jobs.run_at, jobs.@id) > (@2, @3))",
            ),
            Self::LimitKey => (
                "jobs.limit_key, jobs.priority DESC, jobs.run_at, jobs.@id",
                "jobs.limit_key >= @4 AND (jobs.limit_key > @4 OR jobs.priority < @1 OR (jobs.priority = @1 AND (jobs.run_at, jobs.@id) > (@2, @3)))",
            ),
            Self::Due => ("jobs.run_at, jobs.@id", "(jobs.run_at, jobs.@id) > (@2, @3)"),
            Self::Ended => ("jobs.ended_at DESC, jobs.@id DESC", "(jobs.ended_at, jobs.@id) < (@2, @3)"),
            Self::Oldest => ("jobs.ended_at, jobs.@id", "(jobs.ended_at, jobs.@id) > (@2, @3)"),
        }
    }

    /// Returns the time by which this order sorts a job.
    fn time(self, info: &JobInfo) -> SystemTime {
        match self {
            Self::Ended | Self::Oldest => info.ended().unwrap_or(SystemTime::UNIX_EPOCH),
            _ => info.due(),
        }
    }
}

/// Returns the SQL condition for jobs of a state. The result repeats the condition of a partial index, so that the query planner can use
/// this index.
fn state_condition(state: &str) -> String {
    let index = match state {
        "scheduled" | "retrying" => " AND jobs.state IN ('scheduled', 'retrying')",
        "running" => " AND jobs.worker IS NOT NULL",
        "done" | "dead" | "cancelled" => " AND jobs.state IN ('done', 'dead', 'cancelled')",
        _ => "",
    };
    format!("jobs.state = '{state}'{index}")
}

/// Returns the last part of the name of the index that contains the jobs of a state.
fn index_of(state: &str) -> &str {
    match state {
        "scheduled" | "retrying" => "due",
        "running" => "held",
        "done" | "dead" | "cancelled" => "ended",
        other => other,
    }
}

/// Returns the SQL columns that count the jobs of the queue `names.name`. Each state has a column with the name of the state. `indexed`
/// returns the clause that makes SQLite use an index.
fn count_columns(jobs: &str, indexed: impl Fn(&str) -> String) -> String {
    let column = |state: &&str| {
        format!(
            ", (SELECT count(*) FROM (SELECT 1 FROM {jobs} AS jobs {} WHERE jobs.queue = names.name AND {} LIMIT {}) AS counted) AS {state}",
            indexed(index_of(state)),
            state_condition(state),
            QueueCounts::LIMIT + 1
        )
    };
    // Running jobs are excluded, because their index is not sorted by queue. Another part of the statement counts the running jobs of all
    // queues.
    STATES.iter().filter(|state| **state != "running").map(column).collect()
}

/// The database row of a queue.
struct QueueRow {
    name: String,
    is_paused: bool,
    running: Option<i64>,
    running_per_key: Option<i64>,
    rate_jobs: Option<f64>,
    rate_seconds: Option<f64>,
    /// The age of the oldest job that is due.
    oldest: Option<Duration>,
    workers: i64,
}

impl QueueRow {
    fn info(self, counts: QueueCounts) -> QueueInfo {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "limits are 32 bits")]
        let rate = self
            .rate_jobs
            .zip(self.rate_seconds)
            .map(|(jobs, seconds)| (jobs as u32, Duration::try_from_secs_f64(seconds).unwrap_or_default()));
        let limits = QueueLimits { running: self.running.map(count), running_per_key: self.running_per_key.map(count), rate };
        let workers = count(self.workers);
        QueueInfo { name: self.name, is_paused: self.is_paused, limits, counts, oldest: self.oldest, workers }
    }
}

/// Fails if the tables in a database do not have the newest version that this crate knows. `done` is the version of the tables, or `None`
/// if there are no tables.
fn check_version(all: &[&str], done: Option<i64>) -> StoreResult {
    let Some(done) = done else {
        return Err(Error::Schema("no tables of background-tasks-durable".to_owned()));
    };
    if missing_versions(all, done)?.is_empty() {
        return Ok(());
    }
    Err(Error::Schema(format!(
        "an older version of this crate has created the tables ({done}); a program that uses this version migrates them when it starts"
    )))
}

/// Returns the migrations that were not run in this database yet, oldest first. The number of a migration is the version of the tables that
/// it creates. Each migration runs one time, in a transaction.
fn missing_versions<'a>(all: &[&'a str], done: i64) -> StoreResult<Vec<(i64, &'a str)>> {
    let newest = i64::try_from(all.len()).unwrap_or(i64::MAX);
    if done > newest {
        return Err(Error::Schema(format!("a newer version of this crate has migrated the tables ({done})")));
    }
    Ok((1..).zip(all.iter().copied()).filter(|(version, _)| *version > done).collect())
}

fn parse_id(text: &str) -> StoreResult<Ulid> {
    text.parse().map_err(|_| Error::Schema(format!("invalid job ID {text}")))
}

fn held_job((id, run, is_cancelled): (String, i32, bool)) -> StoreResult<HeldJob> {
    Ok(HeldJob { id: parse_id(&id)?, run, is_cancelled })
}

fn count(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(if number < 0 { 0 } else { u32::MAX })
}

/// Returns IDs that increase even within a millisecond. The jobs of one `enqueue_all` therefore run in order. The database also inserts
/// them in the order of its index.
fn new_ids(count: usize) -> Vec<Ulid> {
    static GENERATOR: Mutex<Generator> = Mutex::new(Generator::new());
    let mut generator = lock(&GENERATOR);
    (0..count).map(|_| generator.generate().unwrap_or_else(Overflow::commit_overflow_random)).collect()
}
