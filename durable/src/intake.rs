//! The engine fetches; what it fetched becomes a task of the registry at once, and is none of its business any more.
//!
//! Its own shutdown freezes its poll loop, and with it its heartbeats and its acknowledgements, while a fetch that is half done holds a
//! transaction. So neither is left to it: heartbeats and outcomes are the worker's, and at the signal the engine is dropped.

use crate::Error;
use crate::store::{RawTask, engine_failed};
use crate::worker::said;
use apalis_core::backend::ext::poll_strategy::{PollSnapshot, PollStrategy, PollWith};
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::error::BoxDynError;
use apalis_core::worker::Worker;
use apalis_core::worker::context::WorkerContext;
use event_listener::{Event, EventListener};
use futures_timer::Delay;
use futures_util::future::{BoxFuture, FutureExt};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tower_layer::Identity;
use tower_service::Service;

/// Makes a task of a job; the future ends when the registry has it.
pub(crate) type Start = dyn Fn(RawTask, Permit) -> BoxFuture<'static, ()> + Send + Sync;

/// How many jobs may run at once, which the engine does not bound.
#[derive(Debug)]
pub(crate) struct Gate {
    places: Mutex<(usize, Option<Waker>)>,
    shy: Mutex<Option<Instant>>,
}

impl Gate {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { places: Mutex::new((most, None)), shy: Mutex::default() })
    }

    fn poll(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Permit> {
        let mut places = lock(&self.places);
        let (free, waker) = &mut *places;
        if *free > 0 {
            *free -= 1;
            return Poll::Ready(Permit(self.clone()));
        }
        *waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Until when the engine leaves it to others to be the first to look: there are jobs that it can do nothing with, and as they become due in
    /// whole seconds it might be ahead of the others each time.
    pub(crate) fn be_shy(&self, until: Instant) {
        let mut shy = lock(&self.shy);
        *shy = (*shy).max(Some(until));
    }

    fn is_shy(&self) -> bool {
        lock(&self.shy).is_some_and(|until| Instant::now() < until)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(crate) struct Permit(pub(crate) Arc<Gate>);

impl Drop for Permit {
    fn drop(&mut self) {
        let waker = {
            let mut places = lock(&self.0.places);
            places.0 += 1;
            places.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The innermost service of the engine. Once it has said that it is ready it stays so: it holds the permit.
pub(crate) struct Intake {
    gate: Arc<Gate>,
    permit: Option<Permit>,
    start: Arc<Start>,
}

impl Service<RawTask> for Intake {
    type Response = ();
    type Error = BoxDynError;
    type Future = Pin<Box<dyn Future<Output = Result<(), BoxDynError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxDynError>> {
        if self.permit.is_none() {
            self.permit = Some(ready!(self.gate.poll(cx)));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, task: RawTask) -> Self::Future {
        let permit = self.permit.take().expect("it was ready");
        let started = (self.start)(task, permit);
        Box::pin(async move {
            started.await;
            Ok(())
        })
    }
}

/// When the engine looks for jobs beside its heartbeats: at an interval, and when this process has enqueued one.
pub(crate) struct Polls {
    pub(crate) every: Duration,
    pub(crate) rung: Arc<Event>,
    pub(crate) gate: Arc<Gate>,
    state: Option<(Delay, EventListener)>,
}

impl Polls {
    pub(crate) fn new(every: Duration, rung: Arc<Event>, gate: Arc<Gate>) -> Self {
        Self { every, rung, gate, state: None }
    }
}

impl fmt::Debug for Polls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Polls").field("every", &self.every).finish_non_exhaustive()
    }
}

impl PollStrategy for Polls {
    /// Asked before each look. One that is under way may have missed what is rung for, so there is another soon after.
    fn poll_drive(&mut self, cx: &mut Context<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        let (delay, listener) = self.state.get_or_insert_with(|| (Delay::new(self.every), self.rung.listen()));
        while Pin::new(&mut *listener).poll(cx).is_ready() {
            *listener = self.rung.listen();
            delay.reset(self.every.min(SOON));
        }
        while Pin::new(&mut *delay).poll(cx).is_ready() {
            delay.reset(pause(self.every, self.gate.is_shy()));
        }
        Poll::Pending
    }
}

/// Who is shy looks seldom, and at no certain place in a second.
fn pause(every: Duration, shy: bool) -> Duration {
    if shy { every.max(SELDOM.mul_f64(fastrand::f64() + 0.5)) } else { every }
}

/// Ten times as long as workers wait as a rule.
const SELDOM: Duration = Duration::from_secs(1);

/// Longer than most looks take.
const SOON: Duration = Duration::from_millis(50);

/// Runs until it fails, which it should not: the store ends it by dropping it.
pub(crate) async fn engine<B>(backend: B, name: String, polls: Polls, start: Arc<Start>) -> Error
where
    B: Backend<Task = RawTask> + BackendConfig<Args = Vec<u8>> + Send + Unpin + 'static,
    B::Layer: tower_layer::Layer<apalis_core::worker::lifecycle::LifecycleService<Intake>>,
    <B::Layer as tower_layer::Layer<apalis_core::worker::lifecycle::LifecycleService<Intake>>>::Service:
        Service<RawTask, Response = (), Error = BoxDynError, Future: Send> + Send + 'static,
    PollWith<B, Polls>: Backend<Task = RawTask, Error: Into<BoxDynError>> + BackendConfig<Args = Vec<u8>, Layer = B::Layer>,
{
    let service = Intake { gate: polls.gate.clone(), permit: None, start };
    let backend = PollWith::new(backend, polls);
    let worker: Worker<Vec<u8>, _, _, _> = Worker::new(WorkerContext::new(&name), backend, service, Identity::new());
    match AssertUnwindSafe(worker.run()).catch_unwind().await {
        Ok(Ok(())) => engine_failed("it ended by itself"),
        Ok(Err(error)) => engine_failed(error),
        Err(payload) => engine_failed(format_args!("it panicked: {}", said(&*payload))),
    }
}
