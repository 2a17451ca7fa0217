//! A thread that reads `is_drained` as true observes everything that the tasks did.
//!
//! Most of these models read `is_drained` alone, because a summary acquires every word and would hide a missing Acquire.

use crate::common::{Effect, Registry, check, counts, spawn_on_shard};
use std::sync::Arc;

/// S2, S3: The last task of a shard publishes the effects of the tasks that left before.
#[test]
fn drained_shows_effects_of_two_tasks_on_one_shard() {
    two_leaves([0, 0]);
}

/// S2, S3: The last shard publishes the effects of the tasks on the other shard.
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

/// S2, S3: A leave races the close of its gate, so either of them may drain the gate.
///
/// If the close drains the gate, it publishes the effects of the task. If the leave does, it publishes the start of the shutdown and
/// everything that happened before the start.
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

/// S3, S5: A thread that reads `is_drained` as true gets an exact summary, whichever task was the last.
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
