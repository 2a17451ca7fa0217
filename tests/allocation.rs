//! H1, H4 and type sizes: a task needs no allocation beyond the executor's own, and tracking adds two machine words to a future.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

#[path = "it/common/mod.rs"]
mod common;

use allocation_counter::{AllocationInfo, measure};
use async_executor::Executor;
use background_tasks::{CompletionGuard, DynSpawner, Guard, Registry, ShutdownSignal, Tracked};
use common::poll_once;
use std::future::{Ready, pending};
use std::mem::size_of;

const TASKS: u64 = 1000;

/// Returns what the second run of `f` allocates on this thread. The first run lets slabs and queues grow.
fn measure_warm(mut f: impl FnMut()) -> AllocationInfo {
    f();
    measure(f)
}

#[test]
fn guard_does_not_allocate() {
    let registry = Registry::new(());
    assert_eq!(measure_warm(|| drop(registry.guard())).count_total, 0);
}

/// H4
#[test]
fn slot_reuse_does_not_allocate() {
    struct NoopObserver;
    impl background_tasks::Observer for NoopObserver {}

    for builder in
        [Registry::builder(()).inspect(), Registry::builder(()).observer(NoopObserver), Registry::builder(()).max_in_flight(9)]
    {
        let registry = builder.build();
        let use_slots = || drop((registry.guard(), registry.named("n").guard(), registry.critical().guard()));
        assert_eq!(measure_warm(|| (0..TASKS).for_each(|_| use_slots())).count_total, 0);
    }
}

#[test]
fn signal_clone_poll_and_drop_do_not_allocate() {
    let registry = Registry::new(());
    let signal = registry.signal();
    assert_eq!(measure_warm(|| assert!(poll_once(&mut signal.clone()).is_pending())).count_total, 0);
}

#[test]
fn async_executor_task_needs_no_extra_allocation() {
    fn run_all(executor: &'static Executor<'static>, spawn: impl Fn()) -> AllocationInfo {
        measure_warm(|| {
            (0..TASKS).for_each(|_| spawn());
            while executor.try_tick() {}
        })
    }
    static EXECUTOR: Executor<'static> = Executor::new();
    let registry = Registry::new(&EXECUTOR);
    let direct = run_all(&EXECUTOR, || EXECUTOR.spawn(async {}).detach());
    let registered = run_all(&EXECUTOR, || registry.run(async {}));
    // The executor's queue grows by blocks of many tasks. The division ignores the allocations of a few blocks.
    assert_eq!((direct.count_total / TASKS, registered.count_total / TASKS), (1, 1));
    let dyn_registry = registry.with_spawner(DynSpawner::without_blocking(&EXECUTOR));
    let erased = run_all(&EXECUTOR, || dyn_registry.run(async {}));
    assert_eq!(erased.count_total / TASKS, 2, "`DynSpawner` boxes each task");
    let extra_bytes = registered.bytes_total - direct.bytes_total;
    let two_words_each = 2 * size_of::<usize>() as u64 * TASKS;
    assert!(
        extra_bytes.abs_diff(two_words_each) < TASKS,
        "a task must grow by its shard and call site only, not {extra_bytes} bytes"
    );
}

#[test]
fn tokio_task_needs_no_extra_allocation() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let run_all = |spawn: &dyn Fn()| {
        measure_warm(|| {
            runtime.block_on(async {
                (0..TASKS).for_each(|_| spawn());
                while runtime.metrics().num_alive_tasks() > 0 {
                    tokio::task::yield_now().await;
                }
            });
        })
    };
    let registry = Registry::new(runtime.handle().clone());
    let direct = run_all(&|| drop(runtime.spawn(async {})));
    let registered = run_all(&|| registry.run(async {}));
    assert!(direct.count_total >= TASKS);
    assert_eq!(registered.count_total, direct.count_total);
}

/// H1: the memory that the task and its handle share.
#[test]
fn spawn_allocates_once_more_than_run() {
    static EXECUTOR: Executor<'static> = Executor::new();
    let count = |registry: &Registry<&'static Executor<'static>>, wait: bool| {
        measure_warm(|| {
            for _ in 0..TASKS {
                let mut handle = registry.spawn(async move {
                    if wait {
                        futures_lite::future::yield_now().await;
                    }
                });
                assert!(poll_once(&mut handle).is_pending());
                while EXECUTOR.try_tick() {}
                assert!(poll_once(&mut handle).is_ready());
            }
        })
        .count_total
    };
    for wait in [false, true] {
        assert_eq!(count(&Registry::new(&EXECUTOR), wait) / TASKS, 2, "the executor's and one more");
        assert_eq!(count(&Registry::builder(&EXECUTOR).inspect().build(), wait) / TASKS, 2);
    }
    let drained = Registry::new(&EXECUTOR);
    drained.start_shutdown();
    assert_eq!(measure_warm(|| drop(drained.spawn(async {}))).count_total, 0, "a rejected task allocates nothing");
}

#[test]
fn run_until_shutdown_does_not_allocate_per_task() {
    static EXECUTOR: Executor<'static> = Executor::new();
    let count_allocations = |wait: bool| {
        let registry = Registry::new(&EXECUTOR);
        let info = measure(|| {
            for _ in 0..TASKS {
                let signal = registry.signal();
                registry.run(async move {
                    let until_shutdown = signal.run_until_shutdown(pending::<()>());
                    if wait {
                        until_shutdown.await;
                    }
                });
            }
            while EXECUTOR.try_tick() {}
            if wait {
                assert_eq!(registry.in_flight() as u64, TASKS);
            }
        });
        registry.start_shutdown();
        while EXECUTOR.try_tick() {}
        info.count_total
    };
    count_allocations(true);
    let (without, with) = (count_allocations(false), count_allocations(true));
    // Each registry's slab doubles a few times while a thousand tasks wait simultaneously.
    assert!(with <= without + 16, "{with} allocations, {without} without waiting");
}

#[test]
fn waiters_reuse_a_grown_slab_without_allocating() {
    let registry = Registry::new(());
    let wait_all = || {
        let mut signals = [(); 100].map(|()| registry.signal());
        assert!(signals.iter_mut().all(|signal| poll_once(signal).is_pending()));
    };
    assert_eq!(measure_warm(wait_all).count_total, 0);
}

#[test]
fn tracked_future_is_two_words_larger() {
    const WORDS: usize = 2 * size_of::<usize>();
    const WORD: usize = size_of::<usize>();
    assert_eq!(size_of::<Tracked<Ready<()>>>(), size_of::<Ready<()>>().next_multiple_of(WORD) + WORDS);
    assert_eq!(size_of::<Tracked<()>>(), WORDS);
    assert_eq!(size_of::<Tracked<[u8; 1]>>(), WORD + WORDS);
    assert_eq!(size_of::<Tracked<[u8; 24]>>(), 24 + WORDS);
    assert_eq!(size_of::<Tracked<Box<()>>>(), WORD + WORDS);
    assert_eq!(size_of::<Guard>(), WORDS);
    assert_eq!(size_of::<CompletionGuard>(), WORDS);
    assert_eq!(size_of::<ShutdownSignal>(), 2 * WORDS);
}

/// A child is small enough for one per connection.
#[test]
fn child_takes_at_most_512_bytes() {
    const CHILDREN: u64 = 100;
    let registry = Registry::new(());
    drop(registry.child());
    let mut open = Vec::with_capacity(200);
    let use_child = |open: &mut Vec<_>| {
        let child = registry.child();
        drop([(); 4].map(|()| child.guard().unwrap()));
        let mut signal = child.signal();
        assert!(poll_once(&mut signal).is_pending());
        open.push((child, signal));
    };
    let info = measure(|| (0..CHILDREN).for_each(|_| use_child(&mut open)));
    // The numbers include the growth of the parent's list.
    let size = info.bytes_total / CHILDREN;
    assert!(size <= 512, "a child takes {size} bytes");
    open.clear();
    let reused = measure(|| (0..CHILDREN).for_each(|_| drop(registry.child().guard())));
    assert_eq!(reused.count_total, 0, "the states of drained children are reused");
}

/// The waiters of other registries must not make a child expensive, because each request may have a child.
#[test]
fn child_among_many_waiters_does_not_allocate() {
    let registry = Registry::builder(DynSpawner::<()>::from_fn(drop)).max_in_flight(1).build();
    let _permit = registry.guard().unwrap();
    let mut waiters = [(); 100].map(|()| Box::pin(registry.run_when_ready(async {})));
    assert!(waiters.iter_mut().all(|waiter| poll_once(waiter).is_pending()));
    assert_eq!(measure_warm(|| drop(registry.child())).count_total, 0);
}
