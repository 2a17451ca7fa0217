//! The gates of two shards close while others enter through them.

mod common;

use common::{Registry, check, counts, on_shard};
use std::sync::Arc;

/// S3, S4, S5: each is accepted and keeps it from draining, or refused and counted.
#[test]
fn each_on_its_own_shard() {
    two_enter([0, 1]);
}

#[test]
fn two_on_one_shard() {
    two_enter([0, 0]);
}

fn two_enter(shards: [usize; 2]) {
    check(1 + shards[1], move || {
        let registry = Arc::new(Registry::new(()));
        let newcomers = shards.map(|shard| {
            let registry = registry.clone();
            on_shard(shard, move || {
                let guard = registry.guard();
                assert!(guard.is_err() || !registry.is_drained());
                u64::from(guard.is_ok())
            })
        });
        registry.shutdown();
        let accepted: u64 = newcomers.into_iter().map(|newcomer| newcomer.join().unwrap()).sum();
        assert!(registry.is_drained());
        assert!(registry.guard().is_err());
        assert_eq!(counts(registry.summary()), [accepted, 0, 0, 3 - accepted]);
    });
}

/// S4: while something is in flight on any shard, everybody is accepted, also one whose own shard has drained.
#[test]
fn one_shard_is_in_use() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let guard = registry.guard().unwrap();
        let newcomer = on_shard(1, {
            let registry = registry.clone();
            move || drop(registry.guard().unwrap())
        });
        registry.shutdown();
        newcomer.join().unwrap();
        assert!(!registry.is_drained());
        drop(guard);
        assert_eq!(counts(registry.shutdown().wait()), [2, 0, 0, 0]);
    });
}
