//! The last task ends while another thread starts to wait for the drain.

use crate::common::{Effect, Polled, Registry, check, counts, spawn_on_shard};

/// Invariants S2, S3 and L2: If a `Shutdown` future is polled while the last task ends, the future is ready, or it is woken later.
/// When the future is ready, the task's effects are visible.
#[test]
fn polled_shutdown_is_ready_or_woken() {
    check(2, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let task = registry.track({
            let effect = effect.clone();
            async move { effect.perform() }
        });
        let mut task = Polled::new(task.unwrap());
        let mut shutdown = Polled::new(registry.shutdown());
        let worker = spawn_on_shard(1, move || assert!(task.poll().is_ready()));
        let polled = shutdown.poll();
        if polled.is_ready() {
            effect.observe();
        }
        worker.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}

/// Invariant L2: If a pending `Shutdown` future is polled again with another waker, the end of the last task calls the new waker.
#[test]
fn repolled_shutdown_wakes_latest_waker() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut shutdown = Polled::new(registry.shutdown());
        assert!(shutdown.poll().is_pending());
        let leaver = spawn_on_shard(0, move || drop(guard));
        let polled = shutdown.poll_with_new_waker();
        leaver.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}

/// Invariants S2, S3 and L2: A thread that waits for the drain is unblocked. The task's effects are visible to this thread even
/// before it joins the worker thread.
#[test]
fn blocked_thread_is_unblocked() {
    check(2, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let guard = registry.guard().unwrap();
        let shutdown = registry.shutdown();
        let worker = spawn_on_shard(1, {
            let effect = effect.clone();
            move || {
                effect.perform();
                drop(guard);
            }
        });
        assert_eq!(counts(shutdown.wait()), [1, 0, 0, 0]);
        effect.observe();
        worker.join().unwrap();
    });
}
