//! Two threads start the shutdown at the same time.

use crate::common::{Registry, check, counts, race, spawn_on_shard};
use std::sync::Arc;

/// Invariants S3 and S4: When one of the two calls returns, a registry with no task in flight rejects every new task. The registry
/// drains once.
#[test]
fn each_shutdown_closes_every_gate() {
    fn close(registry: &Registry) {
        registry.start_shutdown();
        assert!(registry.is_shutting_down());
        assert!(registry.guard().is_err());
    }
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let other = spawn_on_shard(1, {
            let registry = registry.clone();
            move || close(&registry)
        });
        close(&registry);
        other.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 2]);
    });
}

/// Invariant S8: If a thread has started the shutdown or has seen the start, the thread sees the final cause. No later loss changes
/// the cause.
#[test]
fn cause_is_the_loss_that_started_the_shutdown() {
    check(1, || {
        let registry = Registry::builder(()).max_in_flight(1).build();
        let guard = registry.guard().unwrap();
        let (handle, lost) = (registry.clone(), registry.clone());
        let (cause, ()) = race(
            false,
            move || {
                handle.start_shutdown();
                handle.shutdown_cause()
            },
            move || assert!(lost.critical().guard().is_err()),
        );
        assert_eq!(cause, registry.shutdown_cause());
        drop(guard);
        assert_eq!(counts(registry.shutdown().wait()), [1, 0, 0, 1]);
    });
}
