//! The operations of a database that the engine and the queues call. Only the stores contain SQL.
//!
//! Each call of the engine is a single statement where possible. The server, or the thread of the SQLite driver, then executes it to its
//! end, so a handler that blocks the runtime never keeps a lock or a transaction open.

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

/// The most jobs of one fetch, one commit or one statement of a bulk call. Bulk calls repeat their statement.
pub(crate) const MAX_ROWS: usize = 1000;

/// When a job is due.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RunAt {
    Now,
    /// By the clock of the store.
    After(Duration),
    At(SystemTime),
}

/// The common part of the jobs of one `enqueue`: everything but their payloads.
#[derive(Clone, Debug)]
pub struct JobSpec {
    pub(crate) queue: &'static str,
    pub(crate) version: u32,
    pub(crate) run_at: RunAt,
    pub(crate) priority: u16,
    /// For a single job only.
    pub(crate) unique_key: Option<String>,
    /// How long the key stays in use, counted from the enqueue, even if the job has ended.
    pub(crate) unique_for: Option<Duration>,
    pub(crate) limit_key: Option<String>,
}

/// The jobs of one `enqueue`.
#[derive(Debug)]
pub struct Pushed {
    pub(crate) ids: Vec<Ulid>,
    /// False if the key is in use. Then `ids` contains the ID of the job that uses the key.
    pub(crate) is_new: bool,
}

/// A request for jobs.
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
    /// A cancelled job is held until its worker has stopped it.
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
    /// The time until the rate allows another job.
    pub(crate) retry_after: Option<Duration>,
}

/// The row of a queue with limits.
pub(crate) struct LimitsRow {
    pub(crate) is_paused: bool,
    pub(crate) max_running: Option<i64>,
    pub(crate) max_running_per_key: Option<i64>,
    pub(crate) rate_jobs: Option<f64>,
    pub(crate) rate_seconds: Option<f64>,
    /// How many jobs the rate allows now.
    pub(crate) allowed: Option<f64>,
    pub(crate) running: i64,
}

impl LimitsRow {
    /// Returns how many jobs may start now, and after which time the rate allows another one if it allows none.
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

/// The end of one run of a job.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) id: Ulid,
    pub(crate) run: i32,
    pub(crate) state: NextState,
    /// Whether the attempt counts.
    pub(crate) is_charged: bool,
    pub(crate) result: Option<String>,
    pub(crate) error: Option<String>,
}

/// The state of a job after a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum NextState {
    Done,
    Dead,
    /// The job returns to the queue as if it had never been fetched.
    Available,
    /// The job returns to the queue after a delay.
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

    /// The delay of the next attempt. `None` keeps the time at which the job was due.
    fn delay(&self) -> Option<Duration> {
        match self.state {
            NextState::Scheduled(delay) | NextState::Retrying(delay) => Some(delay),
            _ => None,
        }
    }
}

/// The result of the commit of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    Yes,
    /// The job was cancelled during the run.
    Cancelled,
    /// The worker had lost the job.
    Lost,
}

/// The result of a check of a queue.
#[derive(Clone, Debug)]
pub(crate) struct QueueTick {
    pub(crate) queue: String,
    pub(crate) is_ready: bool,
    /// The time until the next job is due.
    pub(crate) next_due: Option<Duration>,
    pub(crate) is_paused: bool,
    pub(crate) is_limited: bool,
}

/// A worker in the store. Each heartbeat renews its lease.
#[derive(Clone, Debug)]
pub(crate) struct WorkerLease {
    pub(crate) id: String,
    pub(crate) queue: &'static str,
    pub(crate) lease: Duration,
}

/// A change that another process has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A queue may have jobs.
    #[cfg(feature = "postgres")]
    Queue(String),
    /// Anything may have changed.
    Any,
    /// Nothing within the time limit.
    Nothing,
}

/// The connection of the heartbeat thread.
pub(crate) trait Heart: Send {
    /// Renews leases. Registers the workers again whose lease had expired and whose jobs were recovered, and returns their IDs.
    fn beat<'a>(&'a mut self, workers: &'a [WorkerLease]) -> StoreFuture<'a, Vec<String>>;
    /// Deletes workers that a heartbeat has registered again after they ended.
    fn deregister<'a>(&'a mut self, workers: &'a [String]) -> StoreFuture<'a>;
    /// Returns the jobs of dead workers to their queues. Returns the number of jobs.
    fn recover(&mut self) -> StoreFuture<'_, u64>;
    /// Waits for a change by another process.
    fn next_notice(&mut self, limit: Duration, poll_interval: Duration) -> StoreFuture<'_, Notice>;
}

/// A database with the tables of this crate. The trait is object-safe, so that `Durable` has no type parameter.
pub(crate) trait Store: Send + Sync + 'static {
    /// Fails if the file was deleted or replaced while it was open.
    fn check_available(&self) -> StoreResult {
        Ok(())
    }
    /// Returns the prefix of the tables' names.
    #[expect(clippy::unnecessary_literal_bound, reason = "Postgres returns the name of its schema")]
    fn prefix(&self) -> &str {
        ""
    }
    /// The default of the [poll interval](crate::WorkerOptions::poll_interval).
    fn poll_interval(&self) -> Duration;
    /// Returns how often the engine checks its queues, for this poll interval.
    fn look_interval(&self, poll_interval: Duration) -> Duration {
        poll_interval
    }

    /// Commits all jobs or none.
    fn push(&self, spec: JobSpec, payloads: Vec<Vec<u8>>) -> StoreFuture<'_, Pushed>;
    /// Notifies the processes that serve these queues.
    fn notify(&self, _queues: Vec<String>) -> StoreFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn heart(&self) -> StoreFuture<'_, Box<dyn Heart>>;
    fn register<'a>(&'a self, worker: &'a WorkerLease) -> StoreFuture<'a>;
    /// Returns the jobs that these workers hold to their queues, and deletes the workers. A later fetch of a deleted worker finds nothing.
    fn deregister<'a>(&'a self, workers: &'a [String]) -> StoreFuture<'a>;
    /// Makes the due jobs of these queues available, and checks the queues.
    fn tick<'a>(&'a self, queues: &'a [&'static str]) -> StoreFuture<'a, Vec<QueueTick>>;
    /// Fetches jobs in order. Each queue occurs once. A queue that is paused or limited has none.
    fn fetch<'a>(&'a self, requests: &'a [FetchRequest]) -> StoreFuture<'a, Vec<FetchedJob>>;
    /// Like `fetch`, for a queue with limits.
    fn fetch_limited<'a>(&'a self, request: &'a FetchRequest) -> StoreFuture<'a, LimitedFetch>;
    /// Commits outcomes, and makes jobs available whose limit key is free again.
    fn commit<'a>(&'a self, outcomes: &'a [Outcome]) -> StoreFuture<'a, Vec<Committed>>;
    /// Returns the jobs that these workers hold.
    fn held<'a>(&'a self, workers: &'a [String]) -> StoreFuture<'a, Vec<HeldJob>>;
    /// Makes jobs available that were fetched but not started.
    fn give_back<'a>(&'a self, jobs: &'a [HeldJob]) -> StoreFuture<'a>;
    /// Deletes some of the jobs whose retention has expired. Returns the number of jobs.
    fn prune<'a>(&'a self, queue: &'a str, retention: Duration, dead_retention: Duration) -> StoreFuture<'a, u64>;
    /// Makes the next job of each limit key available, in case a process died before it did so.
    fn unblock<'a>(&'a self, queue: &'a str) -> StoreFuture<'a>;
    /// Returns the stored tick of a schedule, and replaces it if `tick` is given and later.
    #[cfg(feature = "cron")]
    fn last_tick<'a>(&'a self, queue: &'a str, schedule: &'a str, tick: Option<i64>) -> StoreFuture<'a, Option<i64>>;
    fn save_checkpoint<'a>(&'a self, id: Ulid, run: i32, checkpoint: &'a str) -> StoreFuture<'a, bool>;

    /// Finds a job, in any queue if no name is given.
    fn info<'a>(&'a self, queue: Option<&'a str>, id: Ulid) -> StoreFuture<'a, Option<JobInfo>>;
    /// Returns the status of each of these jobs that exists.
    fn statuses<'a>(&'a self, ids: &'a [Ulid]) -> StoreFuture<'a, Vec<(Ulid, JobStatus)>>;
    /// Returns jobs of one [state of the store](STATES).
    fn jobs<'a>(
        &'a self,
        queue: &'a str,
        state: &'static str,
        order: Order,
        after: Option<&'a JobInfo>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<JobInfo>>;
    /// Makes a dead job available, or up to `MAX_ROWS` dead jobs. Returns the number of jobs.
    fn retry<'a>(&'a self, queue: &'a str, id: Option<Ulid>) -> StoreFuture<'a, u64>;
    /// Deletes a job that does not run and is not done, or up to `MAX_ROWS` dead jobs. Returns the number of jobs.
    fn discard<'a>(&'a self, queue: &'a str, id: Option<Ulid>) -> StoreFuture<'a, u64>;
    fn cancel<'a>(&'a self, queue: &'a str, id: Ulid) -> StoreFuture<'a, bool>;
    fn counts<'a>(&'a self, queue: &'a str) -> StoreFuture<'a, QueueCounts>;
    /// Returns all queues, in one statement. Its time does not depend on the depth of the queues.
    fn queues(&self) -> StoreFuture<'_, Vec<QueueInfo>>;
    fn pause<'a>(&'a self, queue: &'a str, is_paused: bool) -> StoreFuture<'a>;
    fn set_limits<'a>(&'a self, queue: &'a str, limits: QueueLimits) -> StoreFuture<'a>;
    /// Returns the jobs that wait or are retried, oldest first.
    fn enqueued<'a>(&'a self, queue: &'a str) -> StoreFuture<'a, Vec<EnqueuedRow>>;
    /// Moves all times of jobs and queues into the past.
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

/// The states of the store. Jobs of the first three are waiting, in this order.
pub(crate) const STATES: [&str; 8] = ["available", "blocked", "scheduled", "running", "retrying", "done", "dead", "cancelled"];

/// The order of the jobs in a list. It is the order of the index of their state.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// In the order in which they run.
    Priority,
    /// By limit key, and then in the order in which they run.
    LimitKey,
    /// By due time, earliest first.
    Due,
    /// By end, latest first.
    Ended,
    /// By end, earliest first.
    Oldest,
}

impl Order {
    /// Returns the order of a list for an operator.
    pub(crate) fn of(state: &str) -> Self {
        match state {
            "available" => Self::Priority,
            "blocked" => Self::LimitKey,
            "done" | "dead" | "cancelled" => Self::Ended,
            _ => Self::Due,
        }
    }

    /// Returns the order, and the condition of the jobs that follow a job. In both, `@id` is the column that orders jobs with the same
    /// time. In the condition, `@1` to `@4` are the job's priority, its time, its `@id` and its limit key.
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

    /// Returns the time that orders a job.
    fn time(self, info: &JobInfo) -> SystemTime {
        match self {
            Self::Ended | Self::Oldest => info.ended().unwrap_or(SystemTime::UNIX_EPOCH),
            _ => info.due(),
        }
    }
}

/// Returns the condition of a state in the form of the partial indexes' conditions, so that the planner can use them.
fn state_condition(state: &str) -> String {
    let index = match state {
        "scheduled" | "retrying" => " AND jobs.state IN ('scheduled', 'retrying')",
        "running" => " AND jobs.worker IS NOT NULL",
        "done" | "dead" | "cancelled" => " AND jobs.state IN ('done', 'dead', 'cancelled')",
        _ => "",
    };
    format!("jobs.state = '{state}'{index}")
}

/// Returns the end of the name of the index that contains the jobs of a state.
fn index_of(state: &str) -> &str {
    match state {
        "scheduled" | "retrying" => "due",
        "running" => "held",
        "done" | "dead" | "cancelled" => "ended",
        other => other,
    }
}

/// Returns the SQL that counts the jobs of each state of the queue `names.name`, in columns with the names of the states. `indexed` makes
/// SQLite use an index.
fn count_columns(jobs: &str, indexed: impl Fn(&str) -> String) -> String {
    let column = |state: &&str| {
        format!(
            ", (SELECT count(*) FROM (SELECT 1 FROM {jobs} AS jobs {} WHERE jobs.queue = names.name AND {} LIMIT {}) AS counted) AS {state}",
            indexed(index_of(state)),
            state_condition(state),
            QueueCounts::LIMIT + 1
        )
    };
    // The running jobs are counted for all queues together: their index is not sorted by queue.
    STATES.iter().filter(|state| **state != "running").map(column).collect()
}

/// The row of a queue.
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

/// Fails if a database does not contain the tables of this version. `done` is the version of its tables.
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

/// The versions of the tables, oldest first. Each version is applied once, in a transaction.
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

/// Returns increasing IDs, even within a millisecond: jobs of one call run in order, and are inserted in index order.
fn new_ids(count: usize) -> Vec<Ulid> {
    static GENERATOR: Mutex<Generator> = Mutex::new(Generator::new());
    let mut generator = lock(&GENERATOR);
    (0..count).map(|_| generator.generate().unwrap_or_else(Overflow::commit_overflow_random)).collect()
}
