//! What the scenarios share: a spawner that is driven by hand, every runtime, and ways to know what happened without sleeping.
#![allow(dead_code, reason = "each test file uses its part")]

use background_tasks::{Registry, Spawner, Summary};
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

/// Long enough that only a hang gets there.
pub(crate) const HANG: Duration = Duration::from_secs(60);

pub(crate) type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a piece of work ended, in the order of a summary's fields.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    Completed,
    Failed,
    Panicked,
    Abandoned,
    Aborted,
    Rejected,
}

/// How many ended by each [`Outcome`].
pub(crate) type Counts = [u64; 6];

/// A summary's fields, which cannot be set here.
pub(crate) fn counts(summary: Summary) -> Counts {
    let Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } = summary;
    [completed, failed, panicked, abandoned, aborted, rejected]
}

/// Panics past the hook, which would print each.
pub(crate) fn panic_quietly(message: &'static str) -> ! {
    resume_unwind(Box::new(message))
}

/// Keeps what it is given until the test polls or drops it.
#[derive(Clone, Default)]
pub(crate) struct Manual(pub(crate) Arc<Mutex<Vec<BoxFuture>>>);

impl Spawner for Manual {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.lock().unwrap().push(Box::pin(task));
    }
}

/// An inspected registry that is driven by hand.
pub(crate) fn inspected() -> (Manual, Registry<Manual>) {
    let spawner = Manual::default();
    (spawner.clone(), Registry::builder(spawner).inspect().build())
}

impl Manual {
    pub(crate) fn take(&self) -> BoxFuture {
        self.0.lock().unwrap().remove(0)
    }

    /// Polls each task once; those that are pending stay.
    pub(crate) fn poll_all(&self) {
        let tasks = std::mem::take(&mut *self.0.lock().unwrap());
        let pending = tasks.into_iter().filter_map(|mut task| poll_once(&mut task).is_pending().then_some(task));
        let pending: Vec<_> = pending.collect();
        self.0.lock().unwrap().extend(pending);
    }
}

pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// A waker that does what it is told.
pub(crate) struct FnWaker<F>(pub(crate) F);

impl<F: Fn() + Send + Sync> Wake for FnWaker<F> {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

pub(crate) fn waker_fn(f: impl Fn() + Send + Sync + 'static) -> Waker {
    Arc::new(FnWaker(f)).into()
}

/// Says when it is being dropped, and stays there until it may go on.
pub(crate) struct SlowDrop {
    dropping: Sender<()>,
    resume: Receiver<()>,
    dropped: Arc<Mutex<bool>>,
}

/// The test's side of a [`SlowDrop`].
pub(crate) struct SlowDropControl {
    pub(crate) started: Receiver<()>,
    pub(crate) resume: Sender<()>,
    dropped: Arc<Mutex<bool>>,
}

impl SlowDrop {
    pub(crate) fn new() -> (Self, SlowDropControl) {
        let (dropping, is_dropping) = channel();
        let (may_go_on, resume) = channel();
        let dropped = Arc::new(Mutex::new(false));
        (Self { dropping, resume, dropped: dropped.clone() }, SlowDropControl { started: is_dropping, resume: may_go_on, dropped })
    }
}

impl Drop for SlowDrop {
    fn drop(&mut self) {
        self.dropping.send(()).unwrap();
        self.resume.recv_timeout(HANG).unwrap();
        *self.dropped.lock().unwrap() = true;
    }
}

impl SlowDropControl {
    pub(crate) fn is_dropped(&self) -> bool {
        *self.dropped.lock().unwrap()
    }
}

/// Panics when it is dropped.
pub(crate) struct PanicDrop;

impl Drop for PanicDrop {
    fn drop(&mut self) {
        panic!("intentional panic in a destructor");
    }
}

/// A waker whose destructor panics.
pub(crate) fn panic_waker() -> Waker {
    let owned = PanicDrop;
    waker_fn(move || {
        let _ = &owned;
    })
}

/// A future that panics when it is polled and has no locals, so that what it owns is dropped afterwards, not while unwinding.
pub(crate) struct PanicPoll<T>(pub(crate) T);

impl<T: Unpin> Future for PanicPoll<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        panic!("intentional panic in a task");
    }
}

/// A future that owns something until it is dropped.
pub(crate) struct Owns<T, F>(pub(crate) T, pub(crate) F);

impl<T: Unpin, F: Future + Unpin> Future for Owns<T, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        Pin::new(&mut self.1).poll(cx)
    }
}

/// Runs `f` with the handle of a runtime of `threads` workers, or of one thread that runs it, from outside that runtime.
pub(crate) fn tokio_multi_thread(f: impl FnOnce(tokio::runtime::Handle)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    f(runtime.handle().clone());
    runtime.shutdown_background();
}

pub(crate) fn tokio_current_thread(f: impl FnOnce(tokio::runtime::Handle)) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let handle = runtime.handle().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = thread::spawn(move || runtime.block_on(stopped).unwrap());
    f(handle);
    stop.send(()).unwrap();
    driver.join().expect("the runtime's thread lives on");
}

pub(crate) fn smol(f: impl FnOnce(background_tasks::SmolSpawner)) {
    f(background_tasks::SmolSpawner);
}

pub(crate) fn async_std(f: impl FnOnce(background_tasks::AsyncStdSpawner)) {
    f(background_tasks::AsyncStdSpawner);
}

/// An executor on one bare thread, which a panic that got out of a task would end.
pub(crate) fn async_executor(f: impl FnOnce(Arc<async_executor::Executor<'static>>)) {
    let executor = Arc::new(async_executor::Executor::new());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let own = executor.clone();
    let driver = thread::spawn(move || futures_lite::future::block_on(own.run(stopped)).unwrap());
    f(executor);
    stop.send(()).unwrap();
    driver.join().expect("the executor's thread lives on");
}

pub(crate) fn threads(f: impl FnOnce(background_tasks::ThreadsSpawner)) {
    f(background_tasks::ThreadsSpawner::new(2).unwrap());
}

/// Makes a test of each scenario for each runtime. A scenario is generic: `fn name<S: Spawner>(registry: &Registry<S>)`. What stands after
/// `with` makes its registry.
#[macro_export]
macro_rules! on_every_runtime {
    (with $make:expr; $($scenario:ident),* $(,)?) => {
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] tokio_multi_thread }
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] tokio_current_thread }
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] smol }
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] async_std }
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] async_executor }
        $crate::on_every_runtime! { @each [$($scenario)*] [$make] threads }
    };
    (@each [$($scenario:ident)*] [$make:expr] $runtime:ident) => {
        mod $runtime {
            use background_tasks::Registry;

            $(
                #[test]
                fn $scenario() {
                    $crate::common::$runtime(|spawner| super::$scenario(&$make(spawner)));
                }
            )*
        }
    };
    ($($scenario:ident),* $(,)?) => {
        $crate::on_every_runtime! { with Registry::new; $($scenario),* }
    };
}
