//! The shutdown closes the gates of one or two shards while other threads enter these gates.

use crate::common::{Registry, check, counts, spawn_on_shard};
use std::sync::Arc;

/// Invariants S3, S4 and S5: Two threads with different shards start a task. Each task is accepted and delays the drain, or is
/// rejected and counted.
#[test]
fn entries_on_two_shards_are_accepted_or_rejected() {
    close_races_two_entries([0, 1]);
}

/// Invariants S3, S4 and S5: Two threads with the same shard start a task. Each task is accepted and delays the drain, or is
/// rejected and counted.
#[test]
fn entries_on_one_shard_are_accepted_or_rejected() {
    close_races_two_entries([0, 0]);
}

fn close_races_two_entries(shards: [usize; 2]) {
    check(1 + shards[1], move || {
        let registry = Arc::new(Registry::new(()));
        let entrants = shards.map(|shard| {
            let registry = registry.clone();
            spawn_on_shard(shard, move || {
                let guard = registry.guard();
                assert!(guard.is_err() || !registry.is_drained());
                u64::from(guard.is_ok())
            })
        });
        registry.start_shutdown();
        let accepted: u64 = entrants.into_iter().map(|entrant| entrant.join().unwrap()).sum();
        assert!(registry.is_drained());
        assert!(registry.guard().is_err());
        assert_eq!(counts(registry.summary()), [accepted, 0, 0, 3 - accepted]);
    });
}

/// Invariant S4: While a task is in flight on any shard, every new task is accepted, even if the thread's own shard has drained.
#[test]
fn entry_on_drained_shard_is_accepted_while_another_shard_is_busy() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let guard = registry.guard().unwrap();
        let entrant = spawn_on_shard(1, {
            let registry = registry.clone();
            move || drop(registry.guard().unwrap())
        });
        registry.start_shutdown();
        entrant.join().unwrap();
        assert!(!registry.is_drained());
        drop(guard);
        assert_eq!(counts(registry.shutdown().wait()), [2, 0, 0, 0]);
    });
}
