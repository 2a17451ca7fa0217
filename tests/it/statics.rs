//! Tests registries in statics, which a `const fn` creates. Most of these tests also run without `std`. `tests/it/bare.rs` tests other
//! registries without `std`.

use crate::common::{TaskQueue, counting_waker, poll, poll_once};
use background_tasks::{Registry, RegistryState, RejectReason, ShutdownSignal};
use std::future::pending;
use std::task::Poll;

#[test]
fn static_registry_signals_drains_and_counts_its_tasks() {
    static STATE: RegistryState = RegistryState::new();
    static QUEUE: TaskQueue = TaskQueue::new();
    static TASKS: Registry<&TaskQueue> = Registry::in_static(&STATE, &QUEUE);
    let (wake_count, waker) = counting_waker();

    TASKS.run(async {});
    TASKS.run(async { Err::<(), _>("intentional failure") });
    TASKS.run(async {
        TASKS.signal().await;
        TASKS.run(async {}); // The registry drains, but still accepts work.
    });
    let abandoned = TASKS.track(pending::<()>()).unwrap();
    let guard = TASKS.guard().unwrap();
    QUEUE.poll_all_with(&waker);
    assert_eq!((TASKS.in_flight(), TASKS.is_shutting_down(), wake_count.get()), (3, false, 0));

    let mut shutdown = TASKS.shutdown();
    assert_eq!(wake_count.get(), 1, "the shutdown wakes the task that awaits the signal");
    assert!(poll(&mut shutdown, &waker).is_pending());
    drop((abandoned, guard));
    QUEUE.poll_all_with(&waker);
    assert_eq!((TASKS.in_flight(), wake_count.get()), (1, 1), "the task that was started during the drain is in flight");
    QUEUE.poll_all_with(&waker);
    assert_eq!(wake_count.get(), 2, "the end of the drain wakes the waiter");

    let Poll::Ready(summary) = poll(&mut shutdown, &waker) else { panic!("the registry has drained") };
    assert_eq!((summary.completed, summary.failed, summary.abandoned, summary.rejected), (4, 1, 1, 0));
    assert_eq!(TASKS.try_run(async {}).unwrap_err().reason(), RejectReason::Drained);
    TASKS.run(async { unreachable!("the registry has drained") });
    assert_eq!(TASKS.summary().rejected, 2);
}

/// Checks invariant L1 of `docs/invariants.md`.
#[test]
fn shutdown_wakes_the_last_waker_of_each_signal_once() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<()> = Registry::in_static(&STATE, ());
    let ((first_wake_count, first), (last_wake_count, last)) = (counting_waker(), counting_waker());
    let mut signals: Vec<ShutdownSignal> = (0..20).map(|_| TASKS.signal()).collect();
    for signal in &mut signals {
        assert!(poll(signal, &first).is_pending());
        assert!(poll(signal, &last).is_pending());
    }
    signals.truncate(15);
    TASKS.start_shutdown();
    assert_eq!((first_wake_count.get(), last_wake_count.get()), (0, 15));
    assert!(signals.iter_mut().all(|signal| poll_once(signal).is_ready()));
    assert!(poll_once(&mut TASKS.signal()).is_ready());
}

/// Checks invariant L2 of `docs/invariants.md`.
#[test]
fn wait_idle_is_woken_after_the_last_task_and_not_before() {
    static STATE: RegistryState = RegistryState::new();
    static QUEUE: TaskQueue = TaskQueue::new();
    static TASKS: Registry<&TaskQueue> = Registry::in_static(&STATE, &QUEUE);
    let (wake_count, waker) = counting_waker();
    TASKS.run(async { TASKS.run(async {}) });
    let mut idle = TASKS.wait_idle();
    assert!(poll(&mut idle, &waker).is_pending());
    QUEUE.poll_all();
    assert_eq!(wake_count.get(), 0, "the first task has started a second task");
    QUEUE.poll_all();
    assert_eq!(wake_count.get(), 1);
    assert!(poll(&mut idle, &waker).is_ready());
    assert!(!TASKS.is_shutting_down());
}

#[test]
fn many_threads_share_one_static_registry() {
    static STATE: RegistryState = RegistryState::new();
    static QUEUE: TaskQueue = TaskQueue::new();
    static TASKS: Registry<&TaskQueue> = Registry::in_static(&STATE, &QUEUE);
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
        QUEUE.poll_all();
    });
    let mut shutdown = TASKS.shutdown();
    QUEUE.poll_all();
    let Poll::Ready(summary) = poll_once(&mut shutdown) else { panic!("the registry has drained") };
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
        TASKS.run(async { Err::<(), _>("intentional failure") });
        TASKS.run(async { panic!("intentional panic") });
        TASKS.shutdown().await
    });
    assert_eq!((summary.completed, summary.failed, summary.panicked), (20, 1, 1));
    TASKS.try_run(async {}).unwrap_err();
    drop(runtime);
    assert_eq!(TASKS.summary().rejected, 1);
}
