//! The last task leaves while another thread starts to wait for the drain.

use crate::common::{Effect, Polled, Registry, check, counts, spawn_on_shard};

/// S2, S3, L2: A `Shutdown` future that is polled while the last task ends is ready, or is woken. When it is ready, the task's effects
/// are visible.
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

/// L2: A `Shutdown` future that is polled again with another waker wakes the new waker.
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

/// S2, S3, L2: A blocked thread is unblocked, and the task's effects are visible to it before the worker thread is joined.
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
