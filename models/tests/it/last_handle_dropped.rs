//! The handles of a registry are dropped while its last tasks end.
//!
//! The function `check` requires that each registry state is put back into the pool exactly once.

use crate::common::{Effect, Polled, Registry, check, counts, spawn_on_shard};

/// Invariant L1: The drop of the last handle triggers the signal, whether the last task ends before or after the drop.
#[test]
fn last_handle_racing_last_task_triggers_signal() {
    check(2, || {
        let registry = Registry::new(());
        let mut signal = Polled::new(registry.signal());
        assert!(signal.poll().is_pending());
        let guard = registry.guard().unwrap();
        let worker = spawn_on_shard(1, move || drop(guard));
        drop(registry);
        assert!(signal.is_woken());
        worker.join().unwrap();
        assert!(signal.poll().is_ready());
        assert_eq!(counts(Registry::new(()).shutdown().wait()), [0; 4]);
        assert!(signal.poll().is_ready(), "the signal must stay triggered when the next registry uses the state");
    });
}

/// Invariant L1: Two threads drop the last two handles. When the signal is triggered, the effects of both threads before their
/// drops are visible.
#[test]
fn two_handles_dropped_concurrently_show_effects() {
    check(1, || {
        let registry = Registry::new(());
        let [one, other] = [Effect::new(), Effect::new()];
        let signal = registry.signal();
        let dropper = spawn_on_shard(0, {
            let (registry, one) = (registry.clone(), one.clone());
            move || {
                one.perform();
                drop(registry);
            }
        });
        let reader = spawn_on_shard(0, {
            let (one, other, signal) = (one.clone(), other.clone(), signal.clone());
            move || {
                if signal.is_triggered() {
                    one.observe();
                    other.observe();
                }
            }
        });
        other.perform();
        drop(registry);
        dropper.join().unwrap();
        reader.join().unwrap();
        assert!(signal.is_triggered());
    });
}

/// Invariant S3: A `Shutdown` future outlives the handles while another registry starts. The future returns the counts of its own
/// registry.
#[test]
fn shutdown_future_outliving_handles_reads_own_registry() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        let mut shutdown = Polled::new(registry.shutdown());
        drop(registry);
        let worker = spawn_on_shard(0, move || {
            drop(guard);
            let next = Registry::new(());
            let guard = next.guard().unwrap();
            (next, guard)
        });
        let polled = shutdown.poll();
        let next = worker.join().unwrap();
        assert_eq!(counts(shutdown.finish(polled)), [1, 0, 0, 0]);
        drop(next);
    });
}
