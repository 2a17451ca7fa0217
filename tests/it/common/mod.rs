//! Provides helpers for the tests: a spawner whose tasks the test polls, wakers, futures, values, and all supported runtimes. The module
//! `runtimes` needs the feature `async-executor`. All other helpers also compile without the feature `std` of the crate.
#![allow(dead_code, unused_imports, reason = "each test file uses only some of the helpers")]

#[cfg(feature = "async-executor")]
#[macro_use]
mod runtimes;

#[cfg(feature = "async-executor")]
pub(crate) use runtimes::*;

use background_tasks::{Registry, RegistryBuilder, Restart, Spawner, Summary, Timer};
use std::future::{Future, ready};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// The time limit of each blocking wait. It expires only if the test hangs.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A boxed task, which a spawner has received.
pub(crate) type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The outcome of a task. The variants have the same order as the fields of [`Summary`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Panicked,
    Abandoned,
    Aborted,
    Rejected,
}

/// The number of tasks for each [`Outcome`].
pub(crate) type Counts = [u64; 6];

/// Returns the fields of a summary as an array. Tests compare arrays, because only the library can create a [`Summary`].
pub(crate) fn counts(summary: Summary) -> Counts {
    let Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } = summary;
    [completed, failed, panicked, abandoned, aborted, rejected]
}

/// Panics without a call to the panic hook, because the hook would print a message.
pub(crate) fn panic_quietly(message: &'static str) -> ! {
    resume_unwind(Box::new(message))
}

/// A spawner that stores each task until the test polls or drops the task.
#[derive(Default)]
pub(crate) struct TaskQueue(pub(crate) Mutex<Vec<BoxFuture>>);

/// A shared [`TaskQueue`].
pub(crate) type Manual = Arc<TaskQueue>;

impl Spawner for TaskQueue {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.lock().unwrap().push(Box::pin(task));
    }
}

/// Returns an inspected registry, and the spawner that polls its tasks.
pub(crate) fn inspected() -> (Manual, Registry<Manual>) {
    let spawner = Manual::default();
    (spawner.clone(), Registry::builder(spawner).inspect().build())
}

impl TaskQueue {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Removes and returns the oldest task.
    pub(crate) fn take(&self) -> BoxFuture {
        self.0.lock().unwrap().remove(0)
    }

    /// Polls each task one time, and keeps the tasks that are still pending.
    pub(crate) fn poll_all(&self) {
        self.poll_all_with(Waker::noop());
    }

    /// Does the same as [`poll_all`](Self::poll_all), but with the given waker.
    pub(crate) fn poll_all_with(&self, waker: &Waker) {
        let mut tasks = std::mem::take(&mut *self.0.lock().unwrap());
        tasks.retain_mut(|task| poll(task, waker).is_pending());
        self.0.lock().unwrap().extend(tasks);
    }
}

/// A timer whose time changes only when the test calls `advance`.
#[derive(Clone, Default)]
pub(crate) struct FakeTimer(Arc<Mutex<FakeTime>>);

#[derive(Default)]
struct FakeTime {
    now: Duration,
    /// The durations of all calls to `sleep`.
    durations: Vec<Duration>,
    wakers: Vec<Waker>,
}

/// A future that resolves when the time of its [`FakeTimer`] reaches the deadline.
pub(crate) struct FakeSleep {
    timer: FakeTimer,
    deadline: Duration,
}

impl FakeTimer {
    /// Advances the time by `duration`, and wakes all tasks that sleep.
    pub(crate) fn advance(&self, duration: Duration) {
        let mut time = self.0.lock().unwrap();
        time.now += duration;
        let wakers = std::mem::take(&mut time.wakers);
        drop(time);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Returns the durations of all calls to `sleep` since the last call to this method.
    pub(crate) fn take_durations(&self) -> Vec<Duration> {
        std::mem::take(&mut self.0.lock().unwrap().durations)
    }
}

impl Timer for FakeTimer {
    type Sleep = FakeSleep;

    fn sleep(&self, duration: Duration) -> FakeSleep {
        let mut time = self.0.lock().unwrap();
        time.durations.push(duration);
        FakeSleep { timer: self.clone(), deadline: time.now.saturating_add(duration) }
    }
}

impl Future for FakeSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut time = self.timer.0.lock().unwrap();
        if time.now >= self.deadline {
            return Poll::Ready(());
        }
        time.wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

/// A spawner whose tasks and time the test controls.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) tasks: Manual,
    pub(crate) timer: FakeTimer,
    is_clone: bool,
}

impl Clone for Fake {
    fn clone(&self) -> Self {
        Self { tasks: self.tasks.clone(), timer: self.timer.clone(), is_clone: true }
    }
}

/// The task of a service owns a clone of its spawner, which owns the queue of this task. The spawner of the test breaks this cycle:
/// otherwise Miri reports a leak.
impl Drop for Fake {
    fn drop(&mut self) {
        if !self.is_clone {
            let tasks = std::mem::take(&mut *self.tasks.0.lock().unwrap_or_else(PoisonError::into_inner));
            drop(tasks);
        }
    }
}

impl Spawner for Fake {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.tasks.spawn(task);
    }
}

impl Timer for Fake {
    type Sleep = <FakeTimer as Timer>::Sleep;

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.timer.sleep(duration)
    }
}

impl Fake {
    pub(crate) fn registry(&self) -> Registry<Self> {
        Registry::new(self.clone())
    }

    pub(crate) fn builder(&self) -> RegistryBuilder<Self> {
        Registry::builder(self.clone())
    }

    /// Advances the time by `duration`, and then polls all tasks.
    pub(crate) fn advance(&self, duration: Duration) {
        self.timer.advance(duration);
        self.tasks.poll_all();
    }

    /// Starts the service `outbox`, which restarts one second after the end of each run, and advances the time by three seconds. The
    /// first run fails, and all later runs complete.
    pub(crate) fn run_outbox<S: Spawner + Timer<Sleep: Send> + Clone + Send + 'static>(&self, registry: &Registry<S>) {
        let second = Duration::from_secs(1);
        let mut runs = 0;
        registry.named("outbox").service(Restart::always().backoff(second, second), move || {
            runs += 1;
            ready(if runs == 1 { Err("intentional failure") } else { Ok(()) })
        });
        for _ in 0..3 {
            self.advance(second);
        }
    }
}

pub(crate) fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Polls a future once, with a waker that does nothing.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll(future, Waker::noop())
}

/// Counts how often its waker has been called.
#[derive(Default)]
pub(crate) struct WakeCounter(AtomicUsize);

impl WakeCounter {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns a waker, and a counter of the calls to this waker.
pub(crate) fn counting_waker() -> (Arc<WakeCounter>, Waker) {
    let wake_count = Arc::<WakeCounter>::default();
    (wake_count.clone(), wake_count.into())
}

/// A waker that calls a function at each wake-up. [`waker_fn`] creates this waker.
pub(crate) struct FnWaker<F>(pub(crate) F);

impl<F: Fn() + Send + Sync> Wake for FnWaker<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

/// Returns a waker that calls `f` at each wake-up.
pub(crate) fn waker_fn(f: impl Fn() + Send + Sync + 'static) -> Waker {
    Arc::new(FnWaker(f)).into()
}

/// A value whose destructor sends a message at its start, and then blocks until the test resumes it.
pub(crate) struct SlowDrop {
    started: Sender<()>,
    resumed: Receiver<()>,
    dropped: Arc<Mutex<bool>>,
}

/// Controls the destructor of a [`SlowDrop`] in a test.
pub(crate) struct SlowDropControl {
    pub(crate) started: Receiver<()>,
    pub(crate) resume: Sender<()>,
    dropped: Arc<Mutex<bool>>,
}

impl SlowDrop {
    pub(crate) fn new() -> (Self, SlowDropControl) {
        let (start, started) = channel();
        let (resume, resumed) = channel();
        let dropped = Arc::new(Mutex::new(false));
        (Self { started: start, resumed, dropped: dropped.clone() }, SlowDropControl { started, resume, dropped })
    }
}

impl Drop for SlowDrop {
    fn drop(&mut self) {
        self.started.send(()).unwrap();
        self.resumed.recv_timeout(HANG).unwrap();
        *self.dropped.lock().unwrap() = true;
    }
}

impl SlowDropControl {
    /// Returns whether the destructor has finished.
    pub(crate) fn is_dropped(&self) -> bool {
        *self.dropped.lock().unwrap()
    }
}

/// A value whose destructor panics.
pub(crate) struct PanicDrop;

impl Drop for PanicDrop {
    fn drop(&mut self) {
        panic!("intentional panic in a destructor");
    }
}

/// Returns a waker whose destructor panics.
pub(crate) fn panic_waker() -> Waker {
    let panics_on_drop = PanicDrop;
    waker_fn(move || {
        let _ = &panics_on_drop;
    })
}

/// A future that panics when it is polled. Its `poll` has no local variables, so the unwinding drops nothing. The field is dropped after
/// the unwinding.
pub(crate) struct PanicPoll<T>(pub(crate) T);

impl<T: Unpin> Future for PanicPoll<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        panic!("intentional panic in a task");
    }
}

/// A future that owns a value and polls another future. The value is dropped when this future is dropped, not when it finishes.
pub(crate) struct Owns<T, F>(pub(crate) T, pub(crate) F);

impl<T: Unpin, F: Future + Unpin> Future for Owns<T, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.1).poll(cx)
    }
}
