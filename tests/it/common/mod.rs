//! Shared test helpers: a spawner that the test drives, every supported runtime, and ways to wait for an event without sleeping.
#![allow(dead_code, reason = "each test file uses only some of the helpers")]

use background_tasks::{Registry, Spawner, Summary};
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

/// The timeout of each blocking wait. Only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A task as a spawner receives it.
pub(crate) type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a task ended, in the order of the fields of [`Summary`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Panicked,
    Abandoned,
    Aborted,
    Rejected,
}

/// The number of tasks with each [`Outcome`].
pub(crate) type Counts = [u64; 6];

/// Returns the fields of a summary as an array. Only the library can make a [`Summary`], so tests compare arrays.
pub(crate) fn counts(summary: Summary) -> Counts {
    let Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } = summary;
    [completed, failed, panicked, abandoned, aborted, rejected]
}

/// Panics without calling the panic hook, because the hook would print each panic.
pub(crate) fn panic_quietly(message: &'static str) -> ! {
    resume_unwind(Box::new(message))
}

/// A spawner that stores each task until the test polls or drops the task.
#[derive(Clone, Default)]
pub(crate) struct Manual(pub(crate) Arc<Mutex<Vec<BoxFuture>>>);

impl Spawner for Manual {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.lock().unwrap().push(Box::pin(task));
    }
}

/// Returns an inspected registry and the spawner that drives its tasks.
pub(crate) fn inspected() -> (Manual, Registry<Manual>) {
    let spawner = Manual::default();
    (spawner.clone(), Registry::builder(spawner).inspect().build())
}

impl Manual {
    /// Removes and returns the oldest task.
    pub(crate) fn take(&self) -> BoxFuture {
        self.0.lock().unwrap().remove(0)
    }

    /// Polls each task once and keeps the tasks that are pending.
    pub(crate) fn poll_all(&self) {
        let tasks = std::mem::take(&mut *self.0.lock().unwrap());
        let pending = tasks.into_iter().filter_map(|mut task| poll_once(&mut task).is_pending().then_some(task));
        let pending: Vec<_> = pending.collect();
        self.0.lock().unwrap().extend(pending);
    }
}

/// Polls a future once, with a waker that does nothing.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Calls its function at each wake-up; see [`waker_fn`].
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

/// A value whose destructor reports its start, then blocks until the test resumes it.
pub(crate) struct SlowDrop {
    started: Sender<()>,
    resumed: Receiver<()>,
    dropped: Arc<Mutex<bool>>,
}

/// The test's handle to a [`SlowDrop`].
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

/// A future that panics when it is polled. It has no locals, so its field is dropped after the unwinding, not during it.
pub(crate) struct PanicPoll<T>(pub(crate) T);

impl<T: Unpin> Future for PanicPoll<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        panic!("intentional panic in a task");
    }
}

/// A future that owns a value and polls another future. The value is dropped with the future, not when the future finishes.
pub(crate) struct Owns<T, F>(pub(crate) T, pub(crate) F);

impl<T: Unpin, F: Future + Unpin> Future for Owns<T, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.1).poll(cx)
    }
}

/// Runs `f`, outside the runtime, with the handle of a tokio runtime that has two worker threads.
#[cfg(feature = "tokio")]
pub(crate) fn tokio_multi_thread(f: impl FnOnce(tokio::runtime::Handle)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    f(runtime.handle().clone());
    runtime.shutdown_background();
}

/// Runs `f`, outside the runtime, with the handle of a current-thread tokio runtime that another thread drives.
#[cfg(feature = "tokio")]
pub(crate) fn tokio_current_thread(f: impl FnOnce(tokio::runtime::Handle)) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let handle = runtime.handle().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = thread::spawn(move || runtime.block_on(stopped).unwrap());
    f(handle);
    stop.send(()).unwrap();
    driver.join().expect("the executor's thread must not panic");
}

/// Runs `f` with smol's global executor.
#[cfg(feature = "smol")]
pub(crate) fn smol(f: impl FnOnce(background_tasks::SmolSpawner)) {
    f(background_tasks::SmolSpawner);
}

/// Runs `f` with async-std's global executor.
#[cfg(feature = "async-std")]
pub(crate) fn async_std(f: impl FnOnce(background_tasks::AsyncStdSpawner)) {
    f(background_tasks::AsyncStdSpawner);
}

/// Runs `f` with an async-executor on one thread. A panic that leaves a task ends that thread, and the join reports it.
pub(crate) fn async_executor(f: impl FnOnce(Arc<async_executor::Executor<'static>>)) {
    let executor = Arc::new(async_executor::Executor::new());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let background = executor.clone();
    let driver = thread::spawn(move || futures_lite::future::block_on(background.run(stopped)).unwrap());
    f(executor);
    stop.send(()).unwrap();
    driver.join().expect("the executor's thread must not panic");
}

/// Runs `f` with a `ThreadsSpawner` of two threads.
pub(crate) fn threads(f: impl FnOnce(background_tasks::ThreadsSpawner)) {
    f(background_tasks::ThreadsSpawner::new(2).unwrap());
}

/// Generates one test for each scenario on each runtime that the features select, and on those of `async-executor`, which this module needs.
///
/// A scenario is a generic function: `fn name<S: Spawner>(registry: &Registry<S>)`. The optional expression after `with` makes the registry
/// from a spawner. Default: `Registry::new`.
///
/// The scenarios are compiled for two spawners only, `ThreadsSpawner` and `DynSpawner`, because compiling them for each runtime takes twice
/// as long. `spawners` and `conformance` test the type of each spawner.
#[macro_export]
macro_rules! on_every_runtime {
    (with $make:expr; $($scenario:ident),* $(,)?) => {
        #[cfg(feature = "tokio")]
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::new] tokio_multi_thread }
        #[cfg(feature = "tokio")]
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::new] tokio_current_thread }
        #[cfg(feature = "smol")]
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::new] smol }
        #[cfg(feature = "async-std")]
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::new] async_std }
                $crate::on_every_runtime! { @each [$($scenario)*] [$make] [background_tasks::DynSpawner::new] async_executor }
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] [std::convert::identity] threads }
    };
    (@each [$($scenario:ident)*] [$make:expr] [$wrap:expr] $runtime:ident) => {
        mod $runtime {
            use background_tasks::Registry;

            $(
                #[test]
                fn $scenario() {
                    $crate::common::$runtime(|spawner| super::$scenario(&$make($wrap(spawner))));
                }
            )*
        }
    };
    ($($scenario:ident),* $(,)?) => {
        $crate::on_every_runtime! { with Registry::new; $($scenario),* }
    };
}
