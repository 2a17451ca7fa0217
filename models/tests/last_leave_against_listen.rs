//! The last one leaves while somebody begins to wait for the drain.

mod common;

use common::{Effect, Polled, Registry, check, counts, on_shard};

/// S2, S3, L2: a wait that is polled while the last task ends is over at once or woken, and then all that the task did is seen.
#[test]
fn polled() {
    check(2, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let task = registry.track({
            let effect = effect.clone();
            async move { effect.happen() }
        });
        let mut task = Polled::new(task.unwrap());
        let mut shutdown = Polled::new(registry.shutdown());
        let worker = on_shard(1, move || assert!(task.poll().is_ready()));
        let polled = shutdown.poll();
        if polled.is_ready() {
            effect.see();
        }
        worker.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}

/// L2: a wait that is polled again with another waker wakes that one.
#[test]
fn polled_with_another_waker() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut shutdown = Polled::new(registry.shutdown());
        assert!(shutdown.poll().is_pending());
        let leaver = on_shard(0, move || drop(guard));
        let polled = shutdown.poll_anew();
        leaver.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
    });
}

/// S2, S3, L2: a thread that blocks goes on, and sees what the task did. Here nobody joins the worker first.
#[test]
fn blocked() {
    check(2, || {
        let (registry, effect) = (Registry::new(()), Effect::new());
        let guard = registry.guard().unwrap();
        let shutdown = registry.shutdown();
        let worker = on_shard(1, {
            let effect = effect.clone();
            move || {
                effect.happen();
                drop(guard);
            }
        });
        assert_eq!(counts(shutdown.wait()), [1, 0, 0, 0]);
        effect.see();
        worker.join().unwrap();
    });
}
