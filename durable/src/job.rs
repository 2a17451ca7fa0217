use crate::error::Error;
use crate::options::MAX_DURATION;
use crate::running::JobHandle;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use ulid::Ulid;

/// The ID of a job, which is the same in every process. A status page can find the job by this ID, and a handler can use the ID as an
/// idempotency key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub(crate) Ulid);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The error for a string that is not a valid [`JobId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseJobIdError(());

impl fmt::Display for ParseJobIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid job ID")
    }
}

impl std::error::Error for ParseJobIdError {}

impl FromStr for JobId {
    type Err = ParseJobIdError;

    fn from_str(text: &str) -> Result<Self, ParseJobIdError> {
        text.parse().map(Self).map_err(|_| ParseJobIdError(()))
    }
}

/// A `Job` is the argument of a handler. It contains the payload, the [ID](Job::id) and the attempt number, and dereferences to the
/// payload.
///
/// A handler receives a job *at least once*: if a process dies before it has stored the outcome, the job runs again. To make repeated
/// attempts harmless, use the ID as the key of an upsert, as the idempotency key of a payment, or as the `Message-ID` of a mail.
///
/// After a failed attempt, the job is not retried while a clone of its `Job` exists. A [timeout](crate::WorkerOptions::timeout) does not
/// stop a blocking closure that the handler has started. Therefore move a clone of the `Job` into such a closure. The next attempt then
/// starts only after the closure has ended.
#[derive(Clone, Debug)]
pub struct Job<T> {
    pub(crate) payload: T,
    pub(crate) id: JobId,
    pub(crate) attempt: u32,
    pub(crate) handle: Arc<JobHandle>,
}

impl<T> Job<T> {
    /// Returns the ID of the job. The ID is the same at every attempt.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Returns the number of this attempt, starting at 1. The number includes earlier attempts that ended because their worker died.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the payload.
    pub fn into_inner(self) -> T {
        self.payload
    }
}

impl<T> Deref for Job<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.payload
    }
}

impl<T> DerefMut for Job<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.payload
    }
}

/// An error with which a handler determines whether and when its job is retried. After an error of another type, the job is retried with
/// the backoff of the worker. At the [last attempt](crate::WorkerOptions::max_attempts), every error makes the job dead.
///
/// `?` converts any [`std::error::Error`] to a `Failure` that retries with the backoff. `Failure` itself does not implement `Error`,
/// because then this conversion would not be possible. For an error that implements only `Display`, use [`Failure::retry`].
///
/// ```
/// use background_tasks_durable::{Failure, Job};
/// # use std::time::Duration;
/// # struct Import { path: String }
///
/// async fn import(job: Job<Import>) -> Result<usize, Failure> {
///     let text = std::fs::read_to_string(&job.path)?; // retries after the backoff
///     if text.is_empty() {
///         return Err(Failure::retry_after("the file is still empty", Duration::from_secs(60)));
///     }
///     let first = text.lines().next().unwrap_or_default();
///     first.parse().map_err(|_| Failure::dead(format!("invalid number {first}"))) // never retries
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Failure {
    text: String,
    pub(crate) next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next {
    Dead,
    After(Duration),
    Backoff,
}

impl Failure {
    /// Creates a failure that makes the job dead without further attempts. [`Queue::dead`](crate::Queue::dead) lists dead jobs.
    pub fn dead(error: impl fmt::Display) -> Self {
        Self { text: format!("{error:#}"), next: Next::Dead }
    }

    /// Creates a failure that retries the job after this delay.
    pub fn retry_after(error: impl fmt::Display, delay: Duration) -> Self {
        Self { text: format!("{error:#}"), next: Next::After(delay.min(MAX_DURATION)) }
    }

    /// Creates a failure that retries the job with the worker's backoff, as an error of any other type does.
    pub fn retry(error: impl fmt::Display) -> Self {
        Self { text: format!("{error:#}"), next: Next::Backoff }
    }

    /// Converts any error of a handler to a failure.
    pub(crate) fn of<E: fmt::Display + Any>(error: &E) -> Self {
        let failure = (error as &dyn Any).downcast_ref::<Self>();
        failure.cloned().unwrap_or_else(|| Self::retry(error))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Converts an error with [`Failure::retry`].
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

/// The status of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum JobStatus {
    /// The job is due now or later, and no worker holds it.
    Waiting,
    /// A worker holds the job.
    Running,
    /// The last attempt has failed, or its worker died, and the job waits until its backoff expires. A worker of the queue then sets the
    /// status to `Waiting`.
    Retrying,
    /// The job has completed.
    Done,
    /// The job has failed permanently. A dead job stays in the store until it is retried or discarded, or until its
    /// [retention](crate::WorkerOptions::dead_retention) expires.
    Dead,
    /// The job was [cancelled](crate::Queue::cancel).
    Cancelled,
}

impl JobStatus {
    /// Returns whether the job has ended, which means that it is done, dead or cancelled.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Dead | Self::Cancelled)
    }

    /// Converts a state in the store, such as `available`, to a status.
    pub(crate) fn of(state: &str) -> Self {
        match state {
            "running" => Self::Running,
            "retrying" => Self::Retrying,
            "done" => Self::Done,
            "dead" => Self::Dead,
            "cancelled" => Self::Cancelled,
            _ => Self::Waiting,
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        })
    }
}

/// The stored state of a job.
#[derive(Clone, Debug)]
pub struct JobInfo {
    id: JobId,
    queue: String,
    status: JobStatus,
    /// The values that determine the position of the job in a list of jobs.
    pub(crate) position: Position,
    attempts: u32,
    crashes: u32,
    version: u32,
    due: SystemTime,
    ended: Option<SystemTime>,
    result: Option<String>,
    error: Option<String>,
    payload: Vec<u8>,
}

/// Lists of jobs are sorted by these values, and by the times and IDs of the jobs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Position {
    pub(crate) state: String,
    pub(crate) priority: i64,
    pub(crate) limit_key: Option<String>,
}

/// The row of a job in the store.
pub(crate) struct JobRow<'a> {
    pub(crate) id: Ulid,
    pub(crate) queue: String,
    pub(crate) priority: i64,
    pub(crate) limit_key: Option<String>,
    pub(crate) state: &'a str,
    pub(crate) attempts: u32,
    pub(crate) crashes: u32,
    pub(crate) version: u32,
    pub(crate) due: SystemTime,
    pub(crate) ended: Option<SystemTime>,
    pub(crate) error: Option<String>,
    pub(crate) result: Option<String>,
    pub(crate) payload: Vec<u8>,
}

impl JobInfo {
    pub(crate) fn new(row: JobRow<'_>) -> Self {
        Self {
            id: JobId(row.id),
            queue: row.queue,
            status: JobStatus::of(row.state),
            position: Position { state: row.state.to_owned(), priority: row.priority, limit_key: row.limit_key },
            attempts: row.attempts,
            crashes: row.crashes,
            version: row.version,
            due: row.due,
            ended: row.ended,
            result: row.result,
            error: row.error,
            payload: row.payload,
        }
    }

    /// Returns the ID of the job.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Returns the name of the queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Returns the status of the job.
    pub fn status(&self) -> JobStatus {
        self.status
    }

    /// Returns the number of finished attempts, including [crashes](JobInfo::crashes). If a shutdown interrupted an attempt, the attempt is
    /// not counted.
    pub fn attempts(&self) -> u32 {
        self.attempts.saturating_add(self.crashes)
    }

    /// Returns how many attempts ended because the worker died.
    pub fn crashes(&self) -> u32 {
        self.crashes
    }

    /// Returns the version of the payload.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Returns the time at which the job was enqueued, by the clock of the process that enqueued it.
    pub fn enqueued(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.id.0.timestamp_ms())
    }

    /// Returns the time at which the job is due. After a failure, this is the time of the next attempt.
    pub fn due(&self) -> SystemTime {
        self.due
    }

    /// Returns the time at which the job became done, dead or cancelled. Returns `None` if the job has not ended.
    pub fn ended(&self) -> Option<SystemTime> {
        self.ended
    }

    /// Returns the last error of the job. The error says why an attempt failed, or why the result of a done job could not be stored. If a
    /// worker did not know the version of the payload, the error names this version.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Returns the result of the handler if the job is [done](JobStatus::Done), and `None` for any other status. If the result of a done
    /// job could not be stored, returns `None`, and [`error`](JobInfo::error) returns the reason.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the result cannot be deserialized as an `R`.
    pub fn result<R: DeserializeOwned>(&self) -> Result<Option<R>, Error> {
        self.result.as_ref().map(|result| serde_json::from_str(result)).transpose().map_err(Error::Decode)
    }

    pub(crate) fn payload_text(&self) -> &[u8] {
        &self.payload
    }

    /// Returns the payload as it was enqueued.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the payload cannot be deserialized as a `T`, for example because it has another [version](JobInfo::version).
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.payload).map_err(Error::Decode)
    }

    /// Returns the payload as JSON, for programs that do not know the type of the payload.
    pub fn payload_json(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.payload)
    }

    /// Returns the [result](JobInfo::result) as JSON.
    pub fn result_json(&self) -> Option<&str> {
        self.result.as_deref()
    }
}

/// The number of jobs of a queue in each status. Jobs that have ended are deleted after their [retention](crate::WorkerOptions::retention).
/// If a number is above [`LIMIT`](QueueCounts::LIMIT), the real number can be larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct QueueCounts {
    /// The number of jobs that are due now or later, and that no worker holds.
    pub waiting: u64,
    /// The number of jobs that a worker holds.
    pub running: u64,
    /// The number of jobs whose last attempt has failed, or whose worker died, and that wait until their backoff expires.
    pub retrying: u64,
    /// The number of jobs that have completed.
    pub done: u64,
    /// The number of jobs that have failed permanently.
    pub dead: u64,
    /// The number of jobs that were cancelled.
    pub cancelled: u64,
}

impl QueueCounts {
    /// The largest exact count. The store stops counting above this number, so counting is fast even if a queue has millions of jobs.
    pub const LIMIT: u64 = 10_000;

    pub(crate) fn add(&mut self, state: &str, jobs: i64) {
        let count = match JobStatus::of(state) {
            JobStatus::Waiting => &mut self.waiting,
            JobStatus::Running => &mut self.running,
            JobStatus::Retrying => &mut self.retrying,
            JobStatus::Done => &mut self.done,
            JobStatus::Dead => &mut self.dead,
            JobStatus::Cancelled => &mut self.cancelled,
        };
        *count += u64::try_from(jobs).unwrap_or(0);
    }
}
