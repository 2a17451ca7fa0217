//! `is_drained` alone, as a summary acquires every word and would hide what is missing here.

mod common;

use common::{Effect, Registry, check, counts, on_shard};
use std::sync::Arc;

/// S2, S3: the last one passes on what those before it did.
#[test]
fn two_leave_one_shard() {
    two_leave([0, 0]);
}

/// S2, S3: so does the last shard.
#[test]
fn two_leave_two_shards() {
    two_leave([0, 1]);
}

fn two_leave(shards: [usize; 2]) {
    check(1 + shards[1], move || {
        let registry = Registry::new(());
        let workers = shards.map(|shard| {
            let effect = Effect::new();
            let guard = on_shard(shard, {
                let registry = registry.clone();
                move || registry.guard().unwrap()
            });
            (shard, effect, guard.join().unwrap())
        });
        registry.shutdown();
        let workers = workers.map(|(shard, effect, guard)| {
            let worker = on_shard(shard, {
                let effect = effect.clone();
                move || {
                    effect.happen();
                    drop(guard);
                }
            });
            (effect, worker)
        });
        if registry.is_drained() {
            workers.iter().for_each(|(effect, _)| effect.see());
        }
        for (_, worker) in workers {
            worker.join().unwrap();
        }
    });
}

/// S2, S3: when the closer finds nobody, it passes on what those did who have left; and when the last one finds the gate closed, what
/// the closer did: who sees it drained sees that the shutdown has begun, and what came before that.
#[test]
fn leave_against_close() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        let [left, closed] = [Effect::new(), Effect::new()];
        let guard = registry.guard().unwrap();
        let worker = on_shard(0, {
            let left = left.clone();
            move || {
                left.happen();
                drop(guard);
            }
        });
        let closer = on_shard(0, {
            let (registry, closed) = (registry.clone(), closed.clone());
            move || {
                closed.happen();
                registry.shutdown();
            }
        });
        if registry.is_drained() {
            left.see();
            closed.see();
            assert!(registry.is_shutting_down());
        }
        worker.join().unwrap();
        closer.join().unwrap();
    });
}

/// S3, S5: how those ended who have left is in the summary of whoever sees it drained, though another was the last.
#[test]
fn the_summary_is_exact() {
    check(1, || {
        let registry = Registry::new(());
        let task = registry.track(core::future::pending::<()>()).unwrap();
        let guard = registry.guard().unwrap();
        registry.shutdown();
        let dropper = on_shard(0, move || drop(task));
        drop(guard);
        if registry.is_drained() {
            assert_eq!(counts(registry.summary()), [1, 0, 1, 0]);
        }
        dropper.join().unwrap();
    });
}
