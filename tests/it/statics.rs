//! Registries in statics, made by a `const fn`. Most of these tests also run without `std`; `tests/it/bare.rs` tests pooled registries there.

use background_tasks::{Registry, RegistryState, RejectReason, ShutdownSignal, Spawner};
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

type BoxTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A spawner without fields: it stores its tasks in the static queue number `Q` until the test polls them.
struct StaticQueue<const Q: usize>;

static QUEUES: [Mutex<Vec<BoxTask>>; 3] = [const { Mutex::new(Vec::new()) }; 3];

impl<const Q: usize> Spawner for StaticQueue<Q> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        QUEUES[Q].lock().unwrap().push(Box::pin(task));
    }
}

impl<const Q: usize> StaticQueue<Q> {
    /// Polls each task once with the given waker and keeps the tasks that are pending.
    fn poll_all(waker: &Waker) {
        let mut tasks = std::mem::take(&mut *QUEUES[Q].lock().unwrap());
        tasks.retain_mut(|task| poll(task, waker).is_pending());
        QUEUES[Q].lock().unwrap().extend(tasks);
    }
}

fn poll<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(waker))
}

/// Counts the wake-ups of its waker.
#[derive(Default)]
struct WakeCounter(AtomicUsize);

impl WakeCounter {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn static_registry_signals_drains_and_counts_its_tasks() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<StaticQueue<0>> = Registry::in_static(&STATE, StaticQueue);
    let wake_count = Arc::<WakeCounter>::default();
    let waker = Waker::from(wake_count.clone());

    TASKS.run(async {});
    TASKS.run(async { Err("intentional failure") });
    TASKS.run(async {
        TASKS.signal().await;
        TASKS.run(async {}); // The registry drains, but still accepts work.
    });
    let abandoned = TASKS.track(pending::<()>()).unwrap();
    let guard = TASKS.guard().unwrap();
    StaticQueue::<0>::poll_all(&waker);
    assert_eq!((TASKS.in_flight(), TASKS.is_shutting_down(), wake_count.get()), (3, false, 0));

    let mut shutdown = TASKS.shutdown();
    assert_eq!(wake_count.get(), 1, "the shutdown wakes the task that awaits the signal");
    assert!(poll(&mut shutdown, &waker).is_pending());
    drop((abandoned, guard));
    StaticQueue::<0>::poll_all(&waker);
    assert_eq!((TASKS.in_flight(), wake_count.get()), (1, 1), "the task that was started during the drain is in flight");
    StaticQueue::<0>::poll_all(&waker);
    assert_eq!(wake_count.get(), 2, "the end of the drain wakes the waiter");

    let Poll::Ready(summary) = poll(&mut shutdown, &waker) else { panic!("the registry has drained") };
    assert_eq!((summary.completed, summary.failed, summary.abandoned, summary.rejected), (4, 1, 1, 0));
    assert_eq!(TASKS.try_run(async {}).unwrap_err().reason(), RejectReason::Drained);
    TASKS.run(async { unreachable!("the registry has drained") });
    assert_eq!(TASKS.summary().rejected, 2);
}

/// L1
#[test]
fn shutdown_wakes_the_last_waker_of_each_signal_once() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<()> = Registry::in_static(&STATE, ());
    let (first, last) = (Arc::<WakeCounter>::default(), Arc::<WakeCounter>::default());
    let mut signals: Vec<ShutdownSignal> = (0..20).map(|_| TASKS.signal()).collect();
    for signal in &mut signals {
        assert!(poll(signal, &Waker::from(first.clone())).is_pending());
        assert!(poll(signal, &Waker::from(last.clone())).is_pending());
    }
    signals.truncate(15);
    TASKS.shutdown();
    assert_eq!((first.get(), last.get()), (0, 15));
    assert!(signals.iter_mut().all(|signal| poll(signal, Waker::noop()).is_ready()));
    assert!(poll(&mut TASKS.signal(), Waker::noop()).is_ready());
}

/// L2
#[test]
fn wait_idle_is_woken_after_the_last_task_and_not_before() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<StaticQueue<1>> = Registry::in_static(&STATE, StaticQueue);
    let wake_count = Arc::<WakeCounter>::default();
    let waker = Waker::from(wake_count.clone());
    TASKS.run(async { TASKS.run(async {}) });
    let mut idle = TASKS.wait_idle();
    assert!(poll(&mut idle, &waker).is_pending());
    StaticQueue::<1>::poll_all(Waker::noop());
    assert_eq!(wake_count.get(), 0, "the first task has started a second task");
    StaticQueue::<1>::poll_all(Waker::noop());
    assert_eq!(wake_count.get(), 1);
    assert!(poll(&mut idle, &waker).is_ready());
    assert!(!TASKS.is_shutting_down());
}

#[test]
fn many_threads_share_one_static_registry() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<StaticQueue<2>> = Registry::in_static(&STATE, StaticQueue);
    let per_thread = if cfg!(miri) { 20 } else { 1000 }; // Miri is slow.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..per_thread {
                    drop(TASKS.guard());
                    TASKS.run(async { TASKS.signal().await });
                }
            });
        }
        StaticQueue::<2>::poll_all(Waker::noop());
    });
    let mut shutdown = TASKS.shutdown();
    StaticQueue::<2>::poll_all(Waker::noop());
    let Poll::Ready(summary) = poll(&mut shutdown, Waker::noop()) else { panic!("the registry has drained") };
    assert_eq!((summary.completed, summary.is_clean()), (8 * per_thread, true));
}

#[cfg(feature = "tokio")]
#[test]
fn tokio_spawner_works_in_a_static_registry() {
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
        TASKS.run(async { Err("intentional failure") });
        TASKS.run(async { panic!("intentional panic") });
        TASKS.shutdown().await
    });
    assert_eq!((summary.completed, summary.failed, summary.panicked), (20, 1, 1));
    TASKS.try_run(async {}).unwrap_err();
    drop(runtime);
    assert_eq!(TASKS.summary().rejected, 1);
}
