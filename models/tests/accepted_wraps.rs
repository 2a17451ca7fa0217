//! *Accepted* has two bits here, so it wraps at four.

mod common;

use common::{Registry, check, counts, on_shard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// S5: with entries of two threads across a wrap the summary is exact in the end, and never says too much before.
#[test]
fn two_pass() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        let leaving = Arc::new(AtomicU64::new(1));
        drop(registry.guard());
        let passers = [(); 2].map(|()| {
            let (registry, leaving) = (registry.clone(), leaving.clone());
            on_shard(0, move || {
                for _ in 0..2 {
                    let guard = registry.guard();
                    leaving.fetch_add(1, Ordering::Relaxed);
                    drop(guard);
                }
            })
        });
        let completed = registry.summary().completed;
        assert!(completed <= leaving.load(Ordering::Relaxed), "overstated");
        for passer in passers {
            passer.join().unwrap();
        }
        assert_eq!(counts(registry.shutdown().wait()), [5, 0, 0, 0]);
    });
}

/// S5: what this thread has seen end itself is counted, though another is about to count its flip.
#[test]
fn one_passes() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        drop(registry.guard());
        let passer = on_shard(0, {
            let registry = registry.clone();
            move || drop(registry.guard())
        });
        let completed = registry.summary().completed;
        assert!((1..=2).contains(&completed));
        passer.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [2, 0, 0, 0]);
    });
}

/// S5: what is lost is never taken for completed.
#[test]
fn losses_pass() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        let loser = on_shard(0, {
            let registry = registry.clone();
            move || {
                for _ in 0..2 {
                    drop(registry.track(core::future::pending::<()>()));
                }
            }
        });
        assert_eq!(registry.summary().completed, 0);
        loser.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [0, 0, 2, 0]);
    });
}
