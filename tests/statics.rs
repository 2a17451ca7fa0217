//! Registries in statics, made by a `const fn`: all that there is without `std`, so most of this runs without it too.

use background_tasks::{Registry, RegistryState, RejectReason, ShutdownSignal, Spawner};
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A user's spawner without a value: what it is given waits in a static.
struct Queue<const Q: usize>;

static QUEUES: [Mutex<Vec<Task>>; 3] = [const { Mutex::new(Vec::new()) }; 3];

impl<const Q: usize> Spawner for Queue<Q> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        QUEUES[Q].lock().unwrap().push(Box::pin(task));
    }
}

impl<const Q: usize> Queue<Q> {
    /// Polls each task once, with a waker that counts; those that are pending stay.
    fn poll_all(waker: &Waker) {
        let mut tasks = std::mem::take(&mut *QUEUES[Q].lock().unwrap());
        tasks.retain_mut(|task| poll(task, waker).is_pending());
        QUEUES[Q].lock().unwrap().extend(tasks);
    }
}

fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn tasks_of_each_fate_are_told_drained_and_accounted_for() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<Queue<0>> = Registry::in_static(&STATE, Queue);
    let count = Arc::<Count>::default();
    let waker = Waker::from(count.clone());

    TASKS.run(async {});
    TASKS.run(async { Err("a failure, as planned") });
    TASKS.run(async {
        TASKS.signal().await;
        TASKS.run(async {}); // while it drains
    });
    let abandoned = TASKS.track(pending::<()>()).unwrap();
    let guard = TASKS.guard().unwrap();
    Queue::<0>::poll_all(&waker);
    assert_eq!((TASKS.in_flight(), TASKS.is_shutting_down(), count.0.load(Ordering::Relaxed)), (3, false, 0));

    let mut shutdown = TASKS.shutdown();
    assert_eq!(count.0.load(Ordering::Relaxed), 1, "the task that waits for the signal is woken");
    assert!(poll(&mut shutdown, &waker).is_pending());
    drop((abandoned, guard));
    Queue::<0>::poll_all(&waker);
    assert_eq!((TASKS.in_flight(), count.0.load(Ordering::Relaxed)), (1, 1), "what it owed is not done yet");
    Queue::<0>::poll_all(&waker);
    assert_eq!(count.0.load(Ordering::Relaxed), 2, "who waits for the drain is woken");

    let Poll::Ready(summary) = poll(&mut shutdown, &waker) else { panic!("it has drained") };
    assert_eq!((summary.completed, summary.failed, summary.abandoned, summary.rejected), (4, 1, 1, 0));
    assert_eq!(TASKS.try_run(async {}).unwrap_err().reason(), RejectReason::Drained);
    TASKS.run(async { unreachable!("the registry has drained") });
    assert_eq!(TASKS.summary().rejected, 2);
}

#[test]
fn every_waiting_signal_is_woken_once_and_by_its_last_waker() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<()> = Registry::in_static(&STATE, ());
    let (first, last) = (Arc::<Count>::default(), Arc::<Count>::default());
    let mut signals: Vec<ShutdownSignal> = (0..20).map(|_| TASKS.signal()).collect();
    for signal in &mut signals {
        assert!(poll(signal, &Waker::from(first.clone())).is_pending());
        assert!(poll(signal, &Waker::from(last.clone())).is_pending());
    }
    signals.truncate(15);
    TASKS.shutdown();
    assert_eq!((first.0.load(Ordering::Relaxed), last.0.load(Ordering::Relaxed)), (0, 15));
    assert!(signals.iter_mut().all(|signal| poll(signal, Waker::noop()).is_ready()));
    assert!(poll(&mut TASKS.signal(), Waker::noop()).is_ready());
}

#[test]
fn who_waits_for_idle_is_woken() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<Queue<1>> = Registry::in_static(&STATE, Queue);
    let count = Arc::<Count>::default();
    let waker = Waker::from(count.clone());
    TASKS.run(async { TASKS.run(async {}) });
    let mut idle = TASKS.wait_idle();
    assert!(poll(&mut idle, &waker).is_pending());
    Queue::<1>::poll_all(Waker::noop());
    assert_eq!(count.0.load(Ordering::Relaxed), 0, "the first has started a second");
    Queue::<1>::poll_all(Waker::noop());
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(poll(&mut idle, &waker).is_ready());
    assert!(!TASKS.is_shutting_down());
}

#[test]
fn many_threads_on_one_static() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<Queue<2>> = Registry::in_static(&STATE, Queue);
    let each = if cfg!(miri) { 20 } else { 1000 }; // Miri is slow
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..each {
                    drop(TASKS.guard());
                    TASKS.run(async { TASKS.signal().await });
                }
            });
        }
        Queue::<2>::poll_all(Waker::noop());
    });
    let mut shutdown = TASKS.shutdown();
    Queue::<2>::poll_all(Waker::noop());
    let Poll::Ready(summary) = poll(&mut shutdown, Waker::noop()) else { panic!("it has drained") };
    assert_eq!((summary.completed, summary.is_clean()), (8 * each, true));
}

#[cfg(feature = "tokio")]
#[test]
fn tokio_s_spawner_in_a_static() {
    use background_tasks::TokioSpawner;

    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<TokioSpawner> = Registry::in_static(&STATE, TokioSpawner);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let summary = runtime.block_on(async {
        for _ in 0..10 {
            TASKS.run(async {
                TASKS.signal().await;
                TASKS.run(async { tokio::task::yield_now().await });
            });
        }
        TASKS.run(async { Err("a failure, as planned") });
        TASKS.run(async { panic!("a panic, as planned") });
        TASKS.shutdown().await
    });
    assert_eq!((summary.completed, summary.failed, summary.panicked), (20, 1, 1));
    TASKS.try_run(async {}).unwrap_err();
    drop(runtime);
    assert_eq!(TASKS.summary().rejected, 1);
}
