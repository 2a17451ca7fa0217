//! If `is_drained` returns true, the calling thread observes everything that the tasks did.
//!
//! Most of these models call only `is_drained`. A summary reads every word with Acquire, and would hide a missing Acquire
//! elsewhere.

use crate::common::{Effect, Registry, check, counts, spawn_on_shard};
use std::sync::Arc;

/// Invariants S2 and S3: Two tasks on one shard end. If `is_drained` returns true, the effects of both tasks are visible.
#[test]
fn drained_shows_effects_of_two_tasks_on_one_shard() {
    two_leaves([0, 0]);
}

/// Invariants S2 and S3: Two tasks on different shards end. If `is_drained` returns true, the effects of both tasks are visible.
#[test]
fn drained_shows_effects_of_tasks_on_two_shards() {
    two_leaves([0, 1]);
}

fn two_leaves(shards: [usize; 2]) {
    check(1 + shards[1], move || {
        let registry = Registry::new(());
        let workers = shards.map(|shard| {
            let effect = Effect::new();
            let guard = spawn_on_shard(shard, {
                let registry = registry.clone();
                move || registry.guard().unwrap()
            });
            (shard, effect, guard.join().unwrap())
        });
        registry.start_shutdown();
        let workers = workers.map(|(shard, effect, guard)| {
            let worker = spawn_on_shard(shard, {
                let effect = effect.clone();
                move || {
                    effect.perform();
                    drop(guard);
                }
            });
            (effect, worker)
        });
        if registry.is_drained() {
            workers.iter().for_each(|(effect, _)| effect.observe());
        }
        for (_, worker) in workers {
            worker.join().unwrap();
        }
    });
}

/// Invariants S2 and S3: A task leaves a gate while another thread closes the gate. Either thread may drain the gate.
///
/// If the closing thread drains the gate, the effects of the task must be visible. If the task drains the gate, the start of the
/// shutdown and everything that happened before it must be visible.
#[test]
fn drained_shows_effects_of_task_and_closer() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        let [of_task, of_closer] = [Effect::new(), Effect::new()];
        let guard = registry.guard().unwrap();
        let worker = spawn_on_shard(0, {
            let of_task = of_task.clone();
            move || {
                of_task.perform();
                drop(guard);
            }
        });
        let closer = spawn_on_shard(0, {
            let (registry, of_closer) = (registry.clone(), of_closer.clone());
            move || {
                of_closer.perform();
                registry.start_shutdown();
            }
        });
        if registry.is_drained() {
            of_task.observe();
            of_closer.observe();
            assert!(registry.is_shutting_down());
        }
        worker.join().unwrap();
        closer.join().unwrap();
    });
}

/// Invariants S3 and S5: If `is_drained` returns true, the summary is exact, whichever task ended last.
#[test]
fn summary_once_drained_is_exact() {
    check(1, || {
        let registry = Registry::new(());
        let task = registry.track(core::future::pending::<()>()).unwrap();
        let guard = registry.guard().unwrap();
        registry.start_shutdown();
        let worker = spawn_on_shard(0, move || drop(task));
        drop(guard);
        if registry.is_drained() {
            assert_eq!(counts(registry.summary()), [1, 0, 1, 0]);
        }
        worker.join().unwrap();
    });
}
