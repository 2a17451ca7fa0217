//! The accepted count of a gate wraps around. In the models, the count has two bits, so it wraps at four.

use crate::common::{Registry, check, counts, spawn_on_shard};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Invariant S5: Two threads start and end tasks while the count wraps. A live summary never shows too many completed tasks, and
/// the final summary is exact.
#[test]
fn summary_across_a_wrap_never_overstates() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        let leaving = Arc::new(AtomicU64::new(1));
        drop(registry.guard());
        let workers = [(); 2].map(|()| {
            let (registry, leaving) = (registry.clone(), leaving.clone());
            spawn_on_shard(0, move || {
                for _ in 0..2 {
                    let guard = registry.guard();
                    leaving.fetch_add(1, Ordering::Relaxed);
                    drop(guard);
                }
            })
        });
        let completed = registry.summary().completed;
        assert!(completed <= leaving.load(Ordering::Relaxed), "the summary overstates the completed tasks");
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(counts(registry.shutdown().wait()), [5, 0, 0, 0]);
    });
}

/// Invariant S5: Another thread has flipped the top bit and has not yet counted the wrap. The summary still counts the task that
/// this thread has ended.
#[test]
fn summary_during_a_wrap_includes_own_task() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        drop(registry.guard());
        let worker = spawn_on_shard(0, {
            let registry = registry.clone();
            move || drop(registry.guard())
        });
        let completed = registry.summary().completed;
        assert!((1..=2).contains(&completed));
        worker.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [2, 0, 0, 0]);
    });
}

/// Invariant S5: Tasks that are lost while the count wraps never count as completed.
#[test]
fn losses_across_a_wrap_are_never_completed() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        let worker = spawn_on_shard(0, {
            let registry = registry.clone();
            move || {
                for _ in 0..2 {
                    drop(registry.track(core::future::pending::<()>()));
                }
            }
        });
        assert_eq!(registry.summary().completed, 0);
        worker.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [0, 0, 2, 0]);
    });
}
