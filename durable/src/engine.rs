//! The adapter to apalis, the engine: it fetches jobs and passes each one on, and this crate does everything else.
//!
//! The engine's own shutdown stops its poll loop, its heartbeats and its acknowledgements, while a half-finished fetch keeps its transaction
//! open. Therefore the worker sends the heartbeats and commits the outcomes, and drops the engine when shutdown starts.

use crate::error::Error;
use crate::options::WorkerOptions;
use crate::panics;
use crate::sync::lock;
use apalis_core::backend::ext::poll_strategy::{PollSnapshot, PollStrategy, PollWith};
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::error::BoxDynError;
use apalis_core::task::Task;
use apalis_core::task::task_id::TaskId;
use apalis_core::worker::Worker;
use apalis_core::worker::context::WorkerContext;
use event_listener::{Event, EventListener};
use futures_timer::Delay;
use futures_util::future::BoxFuture;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tower_layer::Identity;
use tower_service::Service;
use ulid::Ulid;

/// A job as the engine fetches it.
pub(crate) type RawTask = Task<Vec<u8>>;

/// Starts a task for a job. The future resolves when the registry has the task.
pub(crate) type StartJob = dyn Fn(RawTask, Permit) -> BoxFuture<'static, ()> + Send + Sync;

pub(crate) fn job_id(task: &RawTask) -> Ulid {
    task.task_id().and_then(TaskId::as_ulid).expect("the tables identify jobs by ULIDs")
}

pub(crate) fn engine_error(error: impl fmt::Display) -> Error {
    Error::Engine(error.to_string())
}

/// The engine's settings for fetches and for the recovery of dead workers.
#[derive(Clone, Debug)]
pub(crate) struct FetchConfig {
    pub(crate) queue: &'static str,
    pub(crate) batch_size: usize,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) missed_heartbeats: usize,
    pub(crate) response_timeout: Duration,
}

impl FetchConfig {
    /// Divides the lease into five heartbeats, in whole seconds.
    pub(crate) fn new(queue: &'static str, options: &WorkerOptions) -> Self {
        let lease = options.lease.as_secs() + u64::from(options.lease.subsec_nanos() > 0);
        let heartbeat_interval = (lease / 5).max(1);
        // SQLite records the last heartbeat in whole seconds, so up to a second less may have passed.
        let missed_heartbeats = usize::try_from((lease + 1).div_ceil(heartbeat_interval)).unwrap_or(usize::MAX);
        Self {
            queue,
            batch_size: options.batch_size,
            heartbeat_interval: Duration::from_secs(heartbeat_interval),
            missed_heartbeats,
            response_timeout: options.response_timeout,
        }
    }
}

/// The name under which the current engine of a worker is registered in the store.
pub(crate) struct EngineName {
    queue: &'static str,
    current: Mutex<Arc<str>>,
}

impl EngineName {
    pub(crate) fn new(queue: &'static str) -> Self {
        Self { queue, current: Mutex::new(Self::unique(queue)) }
    }

    pub(crate) fn current(&self) -> Arc<str> {
        lock(&self.current).clone()
    }

    /// Replaces the name for the next engine.
    pub(crate) fn replace(&self) {
        *lock(&self.current) = Self::unique(self.queue);
    }

    /// Returns a new name: the engine rejects names that were used recently.
    fn unique(queue: &str) -> Arc<str> {
        format!("{queue} {} {}", std::process::id(), Ulid::generate()).into()
    }
}

/// Limits how many jobs run at the same time. The engine itself has no limit.
#[derive(Debug)]
pub(crate) struct Semaphore {
    permits: Mutex<(usize, Option<Waker>)>,
    backing_off_until: Mutex<Option<Instant>>,
}

impl Semaphore {
    pub(crate) fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self { permits: Mutex::new((permits, None)), backing_off_until: Mutex::default() })
    }

    fn poll_acquire(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Permit> {
        let mut permits = lock(&self.permits);
        let (free, waker) = &mut *permits;
        if *free > 0 {
            *free -= 1;
            return Poll::Ready(Permit(self.clone()));
        }
        *waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_backing_off(&self) -> bool {
        lock(&self.backing_off_until).is_some_and(|until| Instant::now() < until)
    }
}

#[derive(Debug)]
pub(crate) struct Permit(Arc<Semaphore>);

impl Permit {
    /// Makes the engine poll less often until this time, so that other workers fetch first: this worker cannot run some of the jobs. Jobs
    /// become due in whole seconds, so without a back-off this worker could be the first each time.
    pub(crate) fn back_off(&self, until: Instant) {
        let mut backing_off_until = lock(&self.0.backing_off_until);
        *backing_off_until = (*backing_off_until).max(Some(until));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let waker = {
            let mut permits = lock(&self.0.permits);
            permits.0 += 1;
            permits.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The innermost service of the engine. It acquires a permit in `poll_ready`, and stays ready because it keeps the permit until `call`.
pub(crate) struct JobService {
    semaphore: Arc<Semaphore>,
    permit: Option<Permit>,
    start: Arc<StartJob>,
}

impl Service<RawTask> for JobService {
    type Response = ();
    type Error = BoxDynError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxDynError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxDynError>> {
        if self.permit.is_none() {
            self.permit = Some(ready!(self.semaphore.poll_acquire(cx)));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, task: RawTask) -> Self::Future {
        let permit = self.permit.take().expect("the service is ready");
        let started = (self.start)(task, permit);
        Box::pin(async move {
            started.await;
            Ok(())
        })
    }
}

/// When the engine polls in addition to its heartbeats: at an interval, and after this process has enqueued a job.
pub(crate) struct PollTimer {
    interval: Duration,
    enqueue_event: Arc<Event>,
    semaphore: Arc<Semaphore>,
    state: Option<(Delay, EventListener)>,
}

impl PollTimer {
    pub(crate) fn new(interval: Duration, enqueue_event: Arc<Event>, semaphore: Arc<Semaphore>) -> Self {
        Self { interval, enqueue_event, semaphore, state: None }
    }
}

impl fmt::Debug for PollTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollTimer").field("interval", &self.interval).finish_non_exhaustive()
    }
}

impl PollStrategy for PollTimer {
    /// Runs before each poll. A poll in progress may have missed the enqueued job, so the event shortens the delay to the next poll.
    fn poll_drive(&mut self, cx: &mut Context<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        let (delay, listener) = self.state.get_or_insert_with(|| (Delay::new(self.interval), self.enqueue_event.listen()));
        while Pin::new(&mut *listener).poll(cx).is_ready() {
            *listener = self.enqueue_event.listen();
            delay.reset(self.interval.min(POLL_DURATION));
        }
        while Pin::new(&mut *delay).poll(cx).is_ready() {
            delay.reset(next_poll(self.interval, self.semaphore.is_backing_off()));
        }
        Poll::Pending
    }
}

/// Returns the delay before the next poll. A worker that backs off polls rarely, and at random times within a second.
fn next_poll(interval: Duration, is_backing_off: bool) -> Duration {
    if is_backing_off { interval.max(BACK_OFF_INTERVAL.mul_f64(fastrand::f64() + 0.5)) } else { interval }
}

/// Ten times the default poll interval.
const BACK_OFF_INTERVAL: Duration = Duration::from_secs(1);

/// Longer than most polls take.
const POLL_DURATION: Duration = Duration::from_millis(50);

/// Runs an engine until it fails. The caller stops it by dropping the future.
pub(crate) async fn run_engine<B>(backend: B, name: String, timer: PollTimer, start: Arc<StartJob>) -> Error
where
    B: Backend<Task = RawTask> + BackendConfig<Args = Vec<u8>> + Send + Unpin + 'static,
    B::Layer: tower_layer::Layer<apalis_core::worker::lifecycle::LifecycleService<JobService>>,
    <B::Layer as tower_layer::Layer<apalis_core::worker::lifecycle::LifecycleService<JobService>>>::Service:
        Service<RawTask, Response = (), Error = BoxDynError, Future: Send> + Send + 'static,
    PollWith<B, PollTimer>: Backend<Task = RawTask, Error: Into<BoxDynError>> + BackendConfig<Args = Vec<u8>, Layer = B::Layer>,
{
    let service = JobService { semaphore: timer.semaphore.clone(), permit: None, start };
    let backend = PollWith::new(backend, timer);
    let worker: Worker<Vec<u8>, _, _, _> = Worker::new(WorkerContext::new(&name), backend, service, Identity::new());
    match panics::catch(worker.run()).await {
        Ok(Ok(())) => engine_error("returned unexpectedly"),
        Ok(Err(error)) => engine_error(error),
        Err(payload) => engine_error(format_args!("panicked: {}", panics::message(&*payload))),
    }
}
