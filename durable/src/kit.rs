//! Implements the functions of the module `testing`.

use crate::durable::Durable;
use crate::error::Error;
use crate::job::{Job, JobId, JobInfo, JobStatus};
use crate::options::{MAX_DURATION, WorkerOptions};
use crate::queue::Queue;
use crate::store::EnqueuedRow;
use crate::worker;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::time::Duration;

/// Runs the due jobs of a queue until no job is due. The jobs run one at a time, in the order in which a worker would start them. Returns
/// one [`JobInfo`] for each attempt, which contains the state of the job after the attempt.
///
/// Each attempt runs as in a worker with these options. The function handles backoffs, timeouts, panics, upgrades, checkpoints, limits and
/// [`on_dead`](WorkerOptions::on_dead) as a worker does. As in a worker, a failed attempt ends when the last clone of its [`Job`] is
/// dropped.
///
/// If a handler enqueues another due job in the queue, the function also runs this job. If every job enqueues another due job, the function
/// never returns. A failed job is not due again before its backoff has expired. To make it due, call [`advance`]. If the queue is paused,
/// or if its limits allow no further job, the function leaves the remaining jobs in the queue.
///
/// If a payload cannot be deserialized as a `T`, the job is [dead](JobStatus::Dead), and [`JobInfo::error`] names the type and the cause.
/// Assert the status of each attempt, because `drain` returns `Ok` even if attempts fail.
///
/// # Errors
///
/// Errors of the store.
///
/// # Cancel safety
///
/// If the future is dropped during an attempt, the job stays [`Running`](JobStatus::Running) until its lease of 24 hours expires.
pub async fn drain<T, H, F, R, E>(queue: &Queue<T>, options: WorkerOptions, handler: H) -> Result<Vec<JobInfo>, Error>
where
    T: DeserializeOwned + Send + 'static,
    H: Fn(Job<T>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    R: Serialize + Send + 'static,
    E: Display + Send + 'static,
{
    queue.durable.runtime.enter(worker::drain(queue, options, handler)).await
}

/// Moves the clock of the store forward by the time `by`. Delays, backoffs, retentions and the periods of unique keys end earlier by this
/// time. To do this, the function moves the stored times of all jobs, and of all [rate limits](crate::QueueLimits::rate), into the past.
///
/// Use this function only in tests, because it changes every job of the store. The clock of the program does not move. [`JobInfo::due`] and
/// [`JobInfo::ended`] return the moved times. The leases of workers and the schedules of `Queue::cron` do not change.
///
/// # Errors
///
/// Errors of the store.
pub async fn advance(durable: &Durable, by: Duration) -> Result<(), Error> {
    durable.runtime.enter(durable.engine.store.advance(by.min(MAX_DURATION))).await?;
    durable.engine.look_in(Duration::ZERO);
    Ok(())
}

/// Returns the jobs of a queue that have the status [`Waiting`](JobStatus::Waiting) or [`Retrying`](JobStatus::Retrying), oldest first. The
/// length of the list is not limited.
///
/// # Errors
///
/// [`Error::Decode`] if a payload cannot be deserialized as a `T`. The message names the job and the type. Errors of the store.
pub async fn enqueued<T: DeserializeOwned>(queue: &Queue<T>) -> Result<Vec<EnqueuedJob<T>>, Error> {
    let rows = queue.durable.runtime.enter(queue.durable.engine.store.enqueued(queue.name)).await?;
    let job = |row: EnqueuedRow| {
        let EnqueuedRow { info, delay, unique_key } = row;
        let (priority, limit_key) = (u16::try_from(info.position.priority).unwrap_or(u16::MAX), info.position.limit_key.clone());
        let (id, status, attempts) = (info.id(), info.status(), info.attempts());
        let payload = queue.read(info.version(), info.payload_text());
        let payload = payload.map_err(|error| Error::Decode(serde::de::Error::custom(format_args!("job {id}: {error}"))))?;
        Ok(EnqueuedJob { id, payload, delay, priority, unique_key, limit_key, status, attempts })
    };
    rows.into_iter().map(job).collect()
}

/// A job that waits to run or to be retried. [`enqueued`] returns a list of these jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EnqueuedJob<T> {
    /// The ID of the job.
    pub id: JobId,
    /// The payload of the job, as a handler would receive it.
    pub payload: T,
    /// The time from the enqueue until the job is due.
    pub delay: Duration,
    /// The [priority](crate::Enqueue::priority).
    pub priority: u16,
    /// The [unique key](crate::Enqueue::unique_key).
    pub unique_key: Option<String>,
    /// The [limit key](crate::Enqueue::limit_key).
    pub limit_key: Option<String>,
    /// [`Waiting`](JobStatus::Waiting) or [`Retrying`](JobStatus::Retrying).
    pub status: JobStatus,
    /// The number of finished attempts, including crashes.
    pub attempts: u32,
}
