//! Runs jobs as tasks of the registry.

use super::in_flight::{InFlightJobs, JobEvent};
use super::lease::{JobLease, LeaseState};
use crate::engine::{Permit, RawTask, StartJob, job_id};
use crate::job::{Failure, Job, JobId};
use crate::options::WorkerOptions;
use crate::panics;
use crate::queue::Queue;
use crate::store::VERSION;
use background_tasks::{Registry, Spawner};
use futures_timer::Delay;
use futures_util::future::{Either, FutureExt, ready, select};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest time for which a worker that has met an unknown version lets other workers fetch first.
const MAX_BACK_OFF: Duration = Duration::from_mins(5);

/// What all jobs of a worker share.
pub(super) struct Executor<T, S, H> {
    pub(super) queue: Queue<T>,
    pub(super) options: WorkerOptions,
    pub(super) handler: H,
    pub(super) in_flight: Arc<InFlightJobs>,
    pub(super) registry: Registry<S>,
    pub(super) location: &'static Location<'static>,
}

enum AttemptError {
    Failed(Failure),
    /// Another worker may know the payload's version.
    UnknownVersion(String),
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
    /// Returns a function that starts the jobs fetched by this engine.
    pub(super) fn start_jobs(self: &Arc<Self>, engine: Arc<str>) -> Arc<StartJob> {
        let this = self.clone();
        Arc::new(move |task: RawTask, permit: Permit| {
            let id = job_id(&task);
            let Some(run) = this.in_flight.add(id, engine.clone()) else { return ready(()).boxed() };
            let attempt = u32::try_from(task.attempt()).unwrap_or(u32::MAX).saturating_add(1);
            let lease = JobLease {
                in_flight: this.in_flight.clone(),
                id,
                run,
                attempt,
                is_last_attempt: attempt >= this.options.max_attempts,
                state: LeaseState::Fetched,
                signal: this.registry.signal(),
                retry_delay: this.options.retry_delay(attempt),
            };
            let this = this.clone();
            async move {
                if !lease.signal.is_triggered() {
                    let job = this.clone().run(lease, task, permit);
                    // A rejection drops the lease, which returns the job to the queue.
                    let _ = this.registry.named(this.queue.name).location(this.location).run_when_ready(job).await;
                }
            }
            .boxed()
        })
    }

    /// The task of a job. It ends when the outcome is committed.
    async fn run(self: Arc<Self>, mut lease: JobLease, task: RawTask, permit: Permit) -> Result<(), Failure> {
        lease.start();
        let result = panics::catch(self.attempt(&lease, &task)).await;
        let delay = self.options.unknown_version_delay;
        if let Ok(Err(AttemptError::UnknownVersion(_))) = result {
            permit.back_off(Instant::now() + (delay * 2).min(MAX_BACK_OFF));
        }
        drop(permit);
        let (event, outcome) = match result {
            Ok(Ok(value)) => (lease.completed(value), Ok(Ok(()))),
            Ok(Err(AttemptError::Failed(failure))) => (lease.failed(&failure), Ok(Err(failure))),
            Ok(Err(AttemptError::UnknownVersion(text))) => (JobEvent::Deferred(delay, text.clone()), Ok(Err(Failure::dead(text)))),
            Err(payload) => {
                let failure = Failure::retry(format_args!("panicked: {}", panics::message(&*payload)));
                (lease.failed(&failure), Err(payload))
            }
        };
        let is_committed = lease.end(event).await;
        match outcome {
            Err(payload) => resume_unwind(payload),
            Ok(_) if !is_committed => Err(Failure::dead("the outcome is not committed: the worker was dropped")),
            Ok(outcome) => outcome,
        }
    }

    async fn attempt(&self, lease: &JobLease, task: &RawTask) -> Result<Value, AttemptError> {
        let options = &self.options;
        if lease.attempt > options.max_attempts.saturating_add(options.crashes) {
            let crashes = lease.attempt - 1;
            return Err(AttemptError::Failed(Failure::dead(format_args!("gave up after the process died {crashes} times"))));
        }
        let payload = read_payload(&self.queue, task)?;
        let work = (self.handler)(Job { payload, id: JobId(lease.id), attempt: lease.attempt });
        let result = match options.timeout {
            None => work.await,
            Some(limit) => match select(pin!(work), Delay::new(limit)).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => {
                    return Err(AttemptError::Failed(Failure::retry(format_args!("timed out after {limit:?}"))));
                }
            },
        };
        let value = result.map_err(|error| AttemptError::Failed(Failure::of(&error)))?;
        // The work is done. To repeat it would not improve the result.
        let serialized = catch_unwind(AssertUnwindSafe(|| serde_json::to_value(value)));
        let cause = match serialized {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error.to_string(),
            Err(payload) => format!("panicked: {}", panics::message(&*payload)),
        };
        Ok(Value::String(format!("cannot serialize the result as JSON: {cause}")))
    }
}

fn read_payload<T: DeserializeOwned>(queue: &Queue<T>, task: &RawTask) -> Result<T, AttemptError> {
    let version = task.metadata().get(VERSION).map_or(Ok(1), str::parse).unwrap_or(u32::MAX);
    let payload = match queue.upgrades.get(&version) {
        _ if version == queue.version => serde_json::from_slice(&task.args),
        Some(upgrade) => serde_json::from_slice(&task.args).and_then(|payload| upgrade(payload)),
        None => {
            let known: Vec<_> = queue.upgrades.keys().chain([&queue.version]).map(u32::to_string).collect();
            let text = format!("unknown payload version {version}: this worker knows {}", known.join(", "));
            return Err(AttemptError::UnknownVersion(text));
        }
    };
    payload.map_err(|error| AttemptError::Failed(Failure::dead(format_args!("cannot deserialize the payload: {error}"))))
}
