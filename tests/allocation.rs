//! H1 and the sizes: nothing is allocated for a task beyond what its executor does, and little is added to a future.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use allocation_counter::{AllocationInfo, measure};
use async_executor::Executor;
use background_tasks::{DynSpawner, Guard, Registry, ShutdownSignal, Tracked};
use common::poll_once;
use std::future::{Ready, pending};
use std::mem::size_of;

const TASKS: u64 = 1000;

/// What `f` allocates on this thread when it is run again: slabs and queues have grown by then.
fn warm(mut f: impl FnMut()) -> AllocationInfo {
    f();
    measure(f)
}

#[test]
fn a_guard_allocates_nothing() {
    let registry = Registry::new(());
    assert_eq!(warm(|| drop(registry.guard())).count_total, 0);
}

/// H4: slots are used again.
#[test]
fn a_slot_allocates_nothing() {
    struct Nobody;
    impl background_tasks::Observer for Nobody {}

    for builder in [Registry::builder(()).inspect(), Registry::builder(()).observer(Nobody), Registry::builder(()).max_in_flight(9)]
    {
        let registry = builder.build();
        let all = || drop((registry.guard(), registry.named("n").guard(), registry.critical().guard()));
        assert_eq!(warm(|| (0..TASKS).for_each(|_| all())).count_total, 0);
    }
}

#[test]
fn a_signal_cloned_polled_and_dropped_allocates_nothing() {
    let registry = Registry::new(());
    let signal = registry.signal();
    assert_eq!(warm(|| assert!(poll_once(&mut signal.clone()).is_pending())).count_total, 0);
}

#[test]
fn a_task_on_async_executor_costs_what_a_bare_one_does() {
    fn run_all(executor: &'static Executor<'static>, spawn: impl Fn()) -> AllocationInfo {
        warm(|| {
            (0..TASKS).for_each(|_| spawn());
            while executor.try_tick() {}
        })
    }
    static EXECUTOR: Executor<'static> = Executor::new();
    let registry = Registry::new(&EXECUTOR);
    let bare = run_all(&EXECUTOR, || EXECUTOR.spawn(async {}).detach());
    let ours = run_all(&EXECUTOR, || registry.run(async {}));
    // The executor's queue grows by blocks of many tasks: a block more or less is no allocation per task.
    assert_eq!((bare.count_total / TASKS, ours.count_total / TASKS), (1, 1));
    let erased = registry.with_spawner(DynSpawner::new(&EXECUTOR));
    let erased = run_all(&EXECUTOR, || erased.run(async {}));
    assert_eq!(erased.count_total / TASKS, 2, "one box more");
    let token = ours.bytes_total - bare.bytes_total;
    assert!(token.abs_diff(2 * size_of::<usize>() as u64 * TASKS) < TASKS, "the shard and the call site, not {token}");
}

#[test]
fn a_task_on_tokio_costs_what_a_bare_one_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let run_all = |spawn: &dyn Fn()| {
        warm(|| {
            runtime.block_on(async {
                (0..TASKS).for_each(|_| spawn());
                while runtime.metrics().num_alive_tasks() > 0 {
                    tokio::task::yield_now().await;
                }
            });
        })
    };
    let registry = Registry::new(runtime.handle().clone());
    let bare = run_all(&|| drop(runtime.spawn(async {})));
    let ours = run_all(&|| registry.run(async {}));
    assert!(bare.count_total >= TASKS);
    assert_eq!(ours.count_total, bare.count_total);
}

#[test]
fn waiting_through_run_until_shutdown_allocates_nothing() {
    static EXECUTOR: Executor<'static> = Executor::new();
    let waits = |shut_down: bool| {
        let registry = Registry::new(&EXECUTOR);
        let info = measure(|| {
            for _ in 0..TASKS {
                let signal = registry.signal();
                registry.run(async move {
                    let waits = signal.run_until_shutdown(pending::<()>());
                    if shut_down {
                        waits.await;
                    }
                });
            }
            while EXECUTOR.try_tick() {}
            if shut_down {
                assert_eq!(registry.in_flight() as u64, TASKS);
            }
        });
        registry.shutdown();
        while EXECUTOR.try_tick() {}
        info.count_total
    };
    waits(true);
    let (without, with) = (waits(false), waits(true));
    // The slab doubles: a handful of times for a thousand that wait at once, on each of the thread's registries.
    assert!(with <= without + 16, "{with} allocations, {without} without waiting");
}

#[test]
fn a_slab_that_has_grown_serves_those_who_wait_next() {
    let registry = Registry::new(());
    let wait_all = || {
        let mut signals = [(); 100].map(|()| registry.signal());
        assert!(signals.iter_mut().all(|signal| poll_once(signal).is_pending()));
    };
    assert_eq!(warm(wait_all).count_total, 0);
}

#[test]
fn a_tracked_future_is_two_words_larger() {
    const WORDS: usize = 2 * size_of::<usize>();
    const WORD: usize = size_of::<usize>();
    assert_eq!(size_of::<Tracked<Ready<()>>>(), size_of::<Ready<()>>().next_multiple_of(WORD) + WORDS);
    assert_eq!(size_of::<Tracked<()>>(), WORDS);
    assert_eq!(size_of::<Tracked<[u8; 1]>>(), WORD + WORDS);
    assert_eq!(size_of::<Tracked<[u8; 24]>>(), 24 + WORDS);
    assert_eq!(size_of::<Tracked<Box<()>>>(), WORD + WORDS);
    assert_eq!(size_of::<Guard>(), WORDS);
    assert_eq!(size_of::<ShutdownSignal>(), 2 * WORDS);
}
