//! The last task of a draining registry ends while another thread starts a task.

use crate::common::{Polled, Registry, check, counts, spawn_on_shard};
use background_tasks::RejectReason;
use std::sync::Arc;

/// Invariants S3, S4 and S5: The new task is accepted and delays the drain, or the registry rejects the new task and every later
/// task.
#[test]
fn entry_is_accepted_or_rejected() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        registry.start_shutdown();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let accepted = match registry.guard() {
            Ok(guard) => {
                assert!(!registry.is_drained());
                drop(guard);
                1
            }
            Err(rejected) => {
                assert_eq!(rejected.reason(), RejectReason::Drained);
                0
            }
        };
        assert!(accepted == 1 || registry.guard().is_err());
        leaver.join().unwrap();
        assert!(registry.is_drained());
        assert!(registry.guard().is_err());
        let rejected = if accepted == 1 { 1 } else { 3 };
        assert_eq!(counts(registry.summary()), [1 + accepted, 0, 0, rejected]);
    });
}

/// Invariant S3: After `is_drained` has returned true, it always returns true. In the summary, only the number of rejected tasks
/// still changes.
#[test]
fn drained_is_final() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let guard = registry.guard().unwrap();
        registry.start_shutdown();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let entrant = spawn_on_shard(1, {
            let registry = registry.clone();
            move || u64::from(registry.guard().is_ok())
        });
        let drained = registry.is_drained().then(|| {
            assert!(registry.guard().is_err());
            registry.summary()
        });
        leaver.join().unwrap();
        let accepted = entrant.join().unwrap();
        assert!(registry.is_drained());
        assert_eq!(registry.summary().completed, 1 + accepted);
        assert!(drained.is_none_or(|drained| drained.completed == 1 + accepted));
    });
}

/// Invariant S4: A rejected task is never visible, not even before the gate has undone its addition.
///
/// The rejected entry is the second addition. Until the gate undoes this addition, the top bit of the accepted count is flipped.
#[test]
fn rejected_entry_is_never_visible() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        drop(registry.guard().unwrap());
        registry.start_shutdown();
        let entrant = spawn_on_shard(0, {
            let registry = registry.clone();
            move || assert!(registry.guard().is_err())
        });
        let summary = registry.summary();
        assert_eq!((summary.completed, registry.in_flight()), (1, 0));
        assert!(Polled::new(registry.wait_idle()).poll().is_ready());
        entrant.join().unwrap();
        assert_eq!(counts(registry.summary()), [1, 0, 0, 1]);
    });
}
