//! Runs jobs as tasks of the registry.

use crate::engine::{JobLease, Permit};
use crate::job::{Failure, Job, JobId, JobInfo, JobRow};
use crate::options::WorkerOptions;
use crate::panics;
use crate::queue::{Queue, ReadError};
use crate::running::JobHandle;
use crate::store::{Committed, FetchedJob, NextState};
use background_tasks::{Registry, Spawner};
use futures_timer::Delay;
use futures_util::future::{Either, select};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant, SystemTime};

/// After a worker has fetched a job with an unknown payload version, it fetches less often, for at most this time. Other workers then
/// usually fetch the job first.
const MAX_BACK_OFF: Duration = Duration::from_mins(5);

/// The size in bytes of the largest result or error that is stored.
pub(crate) const MAX_RESULT_SIZE: usize = 32 << 20;

/// The values that all jobs of a worker share.
pub(super) struct Executor<T, S, H> {
    pub(super) queue: Queue<T>,
    pub(super) options: WorkerOptions,
    pub(super) handler: H,
    pub(super) registry: Registry<S>,
    pub(super) location: &'static Location<'static>,
}

enum AttemptError {
    Failed(Failure),
    /// This worker does not know the version of the payload. Another worker may know it.
    UnknownVersion(String),
    Cancelled,
}

/// If an attempt panics, the error of the job starts with this prefix.
const PANICKED: &str = "panicked: ";

/// How the run of a handler ended.
#[derive(Clone, Copy)]
enum End {
    Completed,
    Failed,
    Panicked,
    Cancelled,
}

impl<T, S, H, F, R, E> Executor<T, S, H>
where
    S: Spawner + Clone + Send + Sync + 'static,
    T: DeserializeOwned + Send + 'static,
    H: Fn(Job<T>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<R, E>> + Send + 'static,
    R: Serialize + Send + 'static,
    E: Display + Send + 'static,
{
    /// Waits until the registry has a permit, and starts the task of a job.
    pub(super) async fn start(self: Arc<Self>, lease: JobLease, job: FetchedJob, permit: Permit) {
        if !lease.is_closing() {
            let task = self.clone().run(lease, job, permit);
            // If the registry rejects the task, the lease is dropped. This puts the job back into the queue.
            let _ = self.registry.named(self.queue.name).location(self.location).run_when_ready(task).await;
        }
    }

    /// Runs a job as a task, which ends when the outcome of the job is committed. The error of the task, or the message of its panic, names
    /// the job, the attempt and the next step. The task has the name of the queue.
    pub(super) async fn run(self: Arc<Self>, mut lease: JobLease, job: FetchedJob, permit: Permit) -> Result<(), String> {
        let handle = lease.start();
        let result = panics::catch(self.attempt(&lease, &job, handle)).await;
        let delay = self.options.unknown_version_delay;
        if let Ok(Err(AttemptError::UnknownVersion(_))) = result {
            permit.worker.back_off(Instant::now() + (delay * 2).min(MAX_BACK_OFF));
        }
        let (state, is_charged, value, error, end) = match result {
            // The handler has called `complete_in`. If its transaction was committed, the store ignores the outcome below, because the job
            // is already done. Otherwise the attempt has failed.
            Ok(Ok(_)) if lease.running.is_completed.load(SeqCst) => {
                let failure = Failure::retry("the transaction that completes the job was not committed");
                (lease.after(&failure), true, None, Some(failure.to_string()), End::Completed)
            }
            Ok(Ok(Ok(value))) => (NextState::Done, true, Some(value), None, End::Completed),
            Ok(Ok(Err(reason))) => (NextState::Done, true, None, Some(reason), End::Completed),
            Ok(Err(AttemptError::Failed(failure))) => {
                (lease.after(&failure), true, None, Some(limited(failure.to_string())), End::Failed)
            }
            Ok(Err(AttemptError::UnknownVersion(text))) => (NextState::Scheduled(delay), false, None, Some(text), End::Failed),
            Ok(Err(AttemptError::Cancelled)) => (NextState::Available, false, None, None, End::Cancelled),
            Err(payload) => {
                let failure = Failure::retry(format_args!("{PANICKED}{}", panics::message(&*payload)));
                (lease.after(&failure), true, None, Some(limited(failure.to_string())), End::Panicked)
            }
        };
        if let NextState::Retrying(_) = state {
            // A blocking closure that owns a clone of the job may still run. The retry must not start before this closure has ended.
            lease.released().await;
        }
        drop(permit);
        let is_completed = lease.running.is_completed.load(SeqCst);
        let committed = lease.end(state, is_charged, value, error.clone()).await;
        let is_success = match committed {
            Some(Committed::Yes) => !is_completed,
            Some(Committed::Lost) => is_completed,
            Some(Committed::Cancelled) => true,
            None => false,
        };
        if is_success && matches!(end, End::Completed | End::Cancelled) {
            return Ok(());
        }
        let (id, attempts) = (lease.running.id, self.options.max_attempts.saturating_add(job.crashes));
        let what = match (&error, end) {
            (Some(error), End::Panicked) => error.strip_prefix(PANICKED).unwrap_or(error), // the observers already see a panic
            (Some(error), _) if state != NextState::Done => error,
            (_, End::Cancelled) => "cancelled",
            _ => "completed",
        };
        let next = match committed {
            Some(Committed::Yes) => next_step(state),
            Some(Committed::Cancelled) => "the job is cancelled".to_owned(),
            Some(Committed::Lost) if is_completed => "the job is done".to_owned(),
            Some(Committed::Lost) => "the outcome is discarded because the lease had expired, and the job runs again".to_owned(),
            None => "the outcome is not stored because the runtime of the worker has shut down, and the job runs again".to_owned(),
        };
        let report = format!("job {id}, attempt {} of {attempts}: {what}; {next}", lease.attempt);
        if committed == Some(Committed::Yes) && state == NextState::Dead {
            self.call_dead_hook(&lease, job, error);
        }
        match end {
            End::Panicked => resume_unwind(Box::new(report)),
            _ => Err(report),
        }
    }

    fn call_dead_hook(&self, lease: &JobLease, job: FetchedJob, error: Option<String>) {
        let Some(hook) = &self.options.on_dead else { return };
        let now = SystemTime::now();
        let info = JobInfo::new(JobRow {
            id: lease.running.id,
            queue: job.queue,
            priority: 0,
            limit_key: None,
            state: "dead",
            attempts: job.attempts.saturating_add(1),
            crashes: job.crashes,
            version: job.version,
            due: now,
            ended: Some(now),
            error,
            result: None,
            payload: job.payload,
        });
        // If the hook panics, the outcome does not change.
        let _ = catch_unwind(AssertUnwindSafe(|| hook(&info)));
    }

    /// Runs an attempt. Returns the result of the handler as JSON, or the reason why the result cannot be stored.
    async fn attempt(
        &self,
        lease: &JobLease,
        job: &FetchedJob,
        handle: Arc<JobHandle>,
    ) -> Result<Result<String, String>, AttemptError> {
        let options = &self.options;
        if job.crashes > options.crashes {
            let text = format!("gave up after the process died {} times", job.crashes);
            return Err(AttemptError::Failed(Failure::dead(text)));
        }
        let payload = self.queue.read(job.version, &job.payload).map_err(|error| match error {
            ReadError::UnknownVersion(text) => AttemptError::UnknownVersion(text),
            ReadError::Invalid(text) => AttemptError::Failed(Failure::dead(text)),
        })?;
        let running = &lease.running;
        let work = async {
            let work = (self.handler)(Job { payload, id: JobId(job.id), attempt: lease.attempt, handle });
            match options.timeout {
                None => Some(work.await),
                Some(limit) => match select(pin!(work), Delay::new(limit)).await {
                    Either::Left((result, _)) => Some(result),
                    Either::Right(_) => None,
                },
            }
        };
        // `select` polls the cancellation first, so that the handler is not called if the job was cancelled before its start.
        let result = match select(pin!(running.cancelled()), pin!(work)).await {
            Either::Left(_) => return Err(AttemptError::Cancelled),
            Either::Right((result, _)) => result,
        };
        let timed_out =
            || AttemptError::Failed(Failure::retry(format_args!("timed out after {:?}", options.timeout.unwrap_or_default())));
        let value = result.ok_or_else(timed_out)?.map_err(|error| AttemptError::Failed(Failure::of(&error)))?;
        // The handler has succeeded, so the job does not run again even if its result cannot be stored.
        Ok(match catch_unwind(AssertUnwindSafe(|| serde_json::to_string(&value))) {
            Ok(Ok(text)) if text.len() > MAX_RESULT_SIZE => Err(format!("cannot store the result: it has {} bytes", text.len())),
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(format!("cannot serialize the result as JSON: {error}")),
            Err(payload) => Err(format!("cannot serialize the result as JSON: panicked: {}", panics::message(&*payload))),
        })
    }
}

fn limited(mut error: String) -> String {
    error.truncate(error.floor_char_boundary(MAX_RESULT_SIZE));
    error
}

/// Describes the state of a job after an attempt.
fn next_step(state: NextState) -> String {
    match state {
        NextState::Done => "the job is done".to_owned(),
        NextState::Dead => "the job is dead".to_owned(),
        NextState::Available | NextState::Scheduled(Duration::ZERO) | NextState::Retrying(Duration::ZERO) => {
            "retried immediately".to_owned()
        }
        NextState::Scheduled(delay) | NextState::Retrying(delay) => format!("retried in {delay:.1?}"),
    }
}
