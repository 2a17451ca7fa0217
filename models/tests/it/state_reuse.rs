//! A new registry reuses a pooled state while a thread still finishes an operation on the previous registry.

use crate::common::{Effect, Polled, Registry, check, counts, manual_builder, spawn_on_shard};
use background_tasks::{Loss, Observer, TaskInfo};
use core::future::pending;
use core::task::Poll;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Invariant L2: A task of the previous registry notifies the waiters for idleness late, after the state is reused. A waiter of the
/// next registry is still woken.
#[test]
fn late_idle_notification_loses_no_waiter() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut idle = Polled::new(registry.wait_idle());
        assert!(idle.poll().is_pending());
        drop(idle);
        let late = spawn_on_shard(0, move || drop(guard));
        drop(registry);
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut idle = Polled::new(registry.wait_idle());
        assert!(idle.poll().is_pending());
        drop(guard);
        late.join().unwrap();
        idle.finish(Poll::Pending);
    });
}

/// Invariant S3: A task of the previous registry finds its gate closed and empty. However, this task drains the gate late, after
/// the state is reused.
///
/// In this case, the task drains the gate of the next registry, in place of the thread that closes this gate. The next registry
/// still drains once.
#[test]
fn late_leaver_drains_next_registry_once() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        registry.start_shutdown();
        let late = spawn_on_shard(0, move || drop(guard));
        drop(registry.guard());
        drop(registry);
        let registry = Registry::new(());
        drop(registry.guard().unwrap());
        let mut shutdown = Polled::new(registry.shutdown());
        let polled = shutdown.poll();
        late.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}

/// Invariant L1: A signal of the previous registry is dropped after the next registry has taken the state. The drop removes no
/// waker of the next registry.
#[test]
fn stale_signal_drop_removes_no_waker() {
    check(1, || {
        let registry = Registry::new(());
        let mut stale = Polled::new(registry.signal());
        assert!(stale.poll().is_pending());
        let dropper = spawn_on_shard(0, move || drop(stale));
        drop(registry);
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        assert!(signal.poll().is_pending());
        registry.start_shutdown();
        dropper.join().unwrap();
        signal.finish(Poll::Pending);
    });
}

/// Invariant L1: A signal of the previous registry is polled with another waker after the next registry has taken the state. The
/// poll replaces no waker of the next registry.
#[test]
fn stale_signal_poll_replaces_no_waker() {
    check(1, || {
        let registry = Registry::new(());
        let mut stale = Polled::new(registry.signal());
        assert!(stale.poll().is_pending());
        let poller = spawn_on_shard(0, move || {
            let polled = stale.poll_with_new_waker();
            (stale, polled)
        });
        drop(registry);
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        assert!(signal.poll().is_pending());
        let (stale, polled) = poller.join().unwrap();
        stale.finish(polled);
        registry.start_shutdown();
        signal.finish(Poll::Pending);
    });
}

/// Invariant L1: A signal of the previous registry is first polled after the next registry has taken the state. The signal is
/// triggered, and everything that happened before the shutdown of its registry is visible.
///
/// One thread puts the state back into the pool, and another thread takes it from the pool.
#[test]
fn stale_signal_first_polled_after_reuse_is_triggered() {
    check(1, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let mut stale = Polled::new(registry.signal());
        let guard = registry.guard().unwrap();
        let poller = spawn_on_shard(0, {
            let effect = effect.clone();
            move || {
                let polled = stale.poll();
                if polled.is_ready() {
                    effect.observe();
                }
                (stale, polled)
            }
        });
        let leaver = spawn_on_shard(0, move || drop(guard));
        effect.perform();
        drop(registry);
        let registry = Registry::new(());
        let (stale, polled) = poller.join().unwrap();
        stale.finish(polled);
        leaver.join().unwrap();
        drop(registry);
    });
}

/// Invariants S3 and S5: The next registry counts only its own tasks.
#[test]
fn next_registry_counts_from_zero() {
    check(2, || {
        let registry = Registry::new(());
        let previous = spawn_on_shard(1, {
            let registry = registry.clone();
            move || drop(registry.track(pending::<()>()).unwrap())
        });
        drop(registry);
        let registry = Registry::new(());
        drop(registry.guard().unwrap());
        assert_eq!(counts(registry.summary()), [1, 0, 0, 0]);
        previous.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [1, 0, 0, 0]);
    });
}

/// Invariants S3 and S5: The reuse of a state resets the counts. The end of every task of the previous registry happens before this
/// reset.
#[test]
fn every_leave_happens_before_reuse() {
    check(2, || {
        let registry = Registry::new(());
        let leavers = [0, 1].map(|shard| {
            let registry = registry.clone();
            let task = spawn_on_shard(shard, move || registry.track(pending::<()>()).unwrap());
            let task = task.join().unwrap();
            spawn_on_shard(shard, move || drop(task))
        });
        drop(registry);
        let registry = Registry::new(());
        assert_eq!(counts(registry.summary()), [0; 4]);
        for leaver in leavers {
            leaver.join().unwrap();
        }
        assert_eq!(counts(registry.shutdown().wait()), [0; 4]);
    });
}

/// Invariant S3: The drop of a `Shutdown` future happens before another registry reuses the state.
#[test]
fn shutdown_future_drop_happens_before_reuse() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let shutdown = registry.shutdown();
        drop(registry);
        let leaver = spawn_on_shard(0, move || {
            drop(guard);
            drop(Registry::new(()));
        });
        drop(shutdown);
        leaver.join().unwrap();
    });
}

/// Invariant S4: The drop of the last handle after a shutdown happens before another registry reuses the state.
#[test]
fn last_handle_drop_happens_before_reuse() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        registry.start_shutdown();
        let leaver = spawn_on_shard(0, move || {
            drop(guard);
            let next = Registry::new(());
            assert!(next.guard().is_ok());
            assert!(!next.is_shutting_down());
        });
        drop(registry);
        leaver.join().unwrap();
    });
}

/// Invariants S8 and S10: The next registry does not use the settings of the previous registry, and reports nothing to the previous
/// observers.
#[test]
fn next_registry_has_default_settings() {
    struct Losses(Arc<AtomicUsize>);

    impl Observer for Losses {
        fn lost(&self, _: &TaskInfo, _: &Loss<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    check(1, || {
        let losses = Arc::new(AtomicUsize::new(0));
        let registry = Registry::builder(()).inspect().max_in_flight(1).observer(Losses(losses.clone())).build();
        let task = registry.track(pending::<()>()).unwrap();
        let dropper = spawn_on_shard(0, move || drop(task));
        drop(registry);
        let registry = Registry::new(());
        let tasks = [(); 2].map(|()| registry.track(pending::<()>()).unwrap());
        assert!(registry.tasks().is_empty());
        drop(tasks);
        dropper.join().unwrap();
        assert_eq!(losses.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&losses), 1, "the registry must have dropped its observer");
    });
}

/// Invariant L4: A task of the previous registry wakes a waiter for a permit late, after the state is reused. A waiter of the next
/// registry is still woken.
#[test]
fn late_permit_notification_loses_no_waiter() {
    check(1, || {
        let registry = manual_builder().max_in_flight(2).build();
        let [late, last] = [(); 2].map(|()| registry.guard().unwrap());
        let mut waiter = Polled::new({
            let registry = registry.clone();
            async move { registry.run_when_ready(async {}).await.is_ok() }
        });
        assert!(waiter.poll().is_pending());
        let late = spawn_on_shard(0, move || drop(late));
        drop((waiter, last, registry));
        let registry = Arc::new(manual_builder().max_in_flight(1).build());
        let guard = registry.guard().unwrap();
        let mut waiter = Polled::new({
            let registry = registry.clone();
            async move { registry.run_when_ready(async {}).await.is_ok() }
        });
        assert!(waiter.poll().is_pending());
        drop(guard);
        late.join().unwrap();
        assert!(waiter.finish(Poll::Pending));
    });
}
