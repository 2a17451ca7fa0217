use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::str::FromStr;
use std::time::{Duration, SystemTime};
use ulid::Ulid;

use crate::Error;
use crate::options::EVER;

/// Which job it is, in whichever process: what a status page asks by, and what a handler makes its work idempotent with.
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

/// The text is not that of a [`JobId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseJobIdError(());

impl fmt::Display for ParseJobIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is no identifier of a job")
    }
}

impl std::error::Error for ParseJobIdError {}

impl FromStr for JobId {
    type Err = ParseJobIdError;

    fn from_str(text: &str) -> Result<Self, ParseJobIdError> {
        text.parse().map(Self).map_err(|_| ParseJobIdError(()))
    }
}

/// What a handler is given: the job's payload, and which job it is.
///
/// It is given *at least once*: a process can die between the work and its acknowledgement. What makes that harmless is a key, and the
/// [identifier](Job::id) is one: write with an upsert on it, send it as the idempotency key of a payment or as the message's
/// identifier of a mail.
#[derive(Clone, Debug)]
pub struct Job<T> {
    pub(crate) payload: T,
    pub(crate) id: JobId,
    pub(crate) attempt: u32,
}

impl<T> Job<T> {
    /// The same at every attempt.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// 1 at the first. An attempt that its process did not survive counts.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The payload alone.
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

/// A handler's error that says what comes next. Any other error means: again, with the queue's backoff.
///
/// `?` makes one of any [`std::error::Error`], which this is not itself, so that it can; of what else can be shown, [`Failure::retry`] does.
/// So a handler names those that are not to be tried again, or not so soon.
///
/// ```
/// use background_tasks_durable::{Failure, Job};
/// # use std::time::Duration;
/// # struct Import { path: String }
///
/// async fn import(job: Job<Import>) -> Result<usize, Failure> {
///     let text = std::fs::read_to_string(&job.path)?; // again, after its backoff
///     if text.is_empty() {
///         return Err(Failure::retry_after("it is not written yet", Duration::from_secs(60)));
///     }
///     let first = text.lines().next().unwrap_or_default();
///     first.parse().map_err(|_| Failure::dead(format!("{first} is no number"))) // once and for all
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
    /// To try again would be in vain. The job is dead: [`Queue::dead`](crate::Queue::dead) lists it.
    pub fn dead(error: impl fmt::Display) -> Self {
        Self { text: format!("{error:#}"), next: Next::Dead }
    }

    /// Not before this long from now; to the next whole second on SQLite.
    pub fn retry_after(error: impl fmt::Display, after: Duration) -> Self {
        Self { text: format!("{error:#}"), next: Next::After(after.min(EVER)) }
    }

    /// Of any error of a handler.
    pub(crate) fn of<E: fmt::Display + Any>(error: &E) -> Self {
        let own = (error as &dyn Any).downcast_ref::<Self>();
        own.cloned().unwrap_or_else(|| Self::retry(error))
    }

    /// Again, with the queue's backoff, as any other error.
    pub fn retry(error: impl fmt::Display) -> Self {
        Self { text: format!("{error:#}"), next: Next::Backoff }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What [`Failure::retry`] makes of it.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// It is due, or will be, and no worker has it.
    Waiting,
    /// A worker has it.
    Running,
    /// It failed, and is tried again when its backoff is over.
    Retrying,
    /// It ran to its end.
    Done,
    /// It was given up, and stays until somebody retries it.
    Dead,
}

impl Status {
    /// Nothing more happens by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Dead)
    }

    fn of(engine: &str, over: bool) -> Self {
        match engine {
            "Queued" | "Running" => Self::Running,
            "Done" => Self::Done,
            "Killed" => Self::Dead,
            "Failed" if over => Self::Dead,
            "Failed" => Self::Retrying,
            _ => Self::Waiting,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Done => "done",
            Self::Dead => "dead",
        })
    }
}

/// What the store has of a job.
#[derive(Clone, Debug)]
pub struct Info {
    id: JobId,
    status: Status,
    attempts: u32,
    version: u32,
    due: SystemTime,
    told: Option<String>,
    error: Option<String>,
    payload: Vec<u8>,
}

/// A result as the engine writes it.
#[derive(Deserialize)]
enum Told<R> {
    Ok(R),
    Err(String),
}

impl Info {
    #[expect(clippy::too_many_arguments, reason = "the columns of a row")]
    pub(crate) fn new(
        id: Ulid,
        status: &str,
        attempts: i64,
        most: i64,
        run_at: i64,
        version: Option<&str>,
        result: Option<&str>,
        payload: Vec<u8>,
    ) -> Self {
        let error = result.and_then(|told| match serde_json::from_str(told) {
            Ok(Told::<IgnoredAny>::Err(text)) => Some(text),
            _ => None,
        });
        Self {
            id: JobId(id),
            status: Status::of(status, attempts >= most),
            attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            version: version.and_then(|text| text.parse().ok()).unwrap_or(1),
            due: SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(run_at).unwrap_or(0)),
            told: result.map(str::to_owned),
            error,
            payload,
        }
    }

    /// Which it is.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// How far it is.
    pub fn status(&self) -> Status {
        self.status
    }

    /// How many attempts are over. One that its process did not survive counts, one that a shutdown cut does not.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The version of its payload.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// When it is due, in whole seconds: after a failure, when it is tried again.
    pub fn due(&self) -> SystemTime {
        self.due
    }

    /// What the last attempt failed with, or why it waits.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// What the handler returned, once the job is [done](Status::Done).
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if it is no `R`.
    pub fn result<R: DeserializeOwned>(&self) -> Result<Option<R>, Error> {
        let told = self.told.as_ref().filter(|_| self.status == Status::Done);
        match told.map(|told| serde_json::from_str(told)).transpose().map_err(Error::Decode)? {
            Some(Told::Ok(value)) => Ok(Some(value)),
            Some(Told::Err(_)) | None => Ok(None),
        }
    }

    /// What was enqueued, as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if it is no `T`; that of another [version](Info::version) may be none.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.payload).map_err(Error::Decode)
    }
}

/// How many jobs of a queue are how far. Those that were done are dropped after a while; see
/// [`Options::retain`](crate::Options::retain).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Those that are due or will be.
    pub waiting: u64,
    /// Those that a worker has.
    pub running: u64,
    /// Those that failed and are tried again.
    pub retrying: u64,
    /// Those that ran to their end.
    pub done: u64,
    /// Those that were given up.
    pub dead: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, engine: &str, over: bool, jobs: i64) {
        let count = match Status::of(engine, over) {
            Status::Waiting => &mut self.waiting,
            Status::Running => &mut self.running,
            Status::Retrying => &mut self.retrying,
            Status::Done => &mut self.done,
            Status::Dead => &mut self.dead,
        };
        *count += u64::try_from(jobs).unwrap_or(0);
    }
}
