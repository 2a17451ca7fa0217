//! A thread waits until no task is in flight, while other threads start and end tasks.

use crate::common::{Polled, Registry, check, check_with_bound, spawn_on_shard};
use background_tasks::Guard;
use loom::thread::JoinHandle;
use std::sync::Arc;

/// Invariant L2: The poll of a `wait_idle` future is ready, or the last task that ends wakes this future.
#[test]
fn leave_wakes_waiter() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let guard = enter(1, &registry).join().unwrap();
        let leaver = spawn_on_shard(1, move || drop(guard));
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        leaver.join().unwrap();
        idle.finish(polled);
    });
}

/// Invariant L2: Two tasks end on two shards. The waiter is woken or ready, whichever shard becomes idle last.
#[test]
fn leaves_on_two_shards_wake_waiter() {
    check_with_bound(2, 2, || {
        let registry = Arc::new(Registry::new(()));
        let leavers = [0, 1].map(|shard| {
            let guard = enter(shard, &registry).join().unwrap();
            spawn_on_shard(shard, move || drop(guard))
        });
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        for leaver in leavers {
            leaver.join().unwrap();
        }
        idle.finish(polled);
    });
}

/// Invariant L2: Another task starts and ends while the waiter checks the counts. The waiter is still woken.
#[test]
fn leave_wakes_waiter_as_another_task_starts_and_ends() {
    check_with_bound(2, 1, || {
        let registry = Arc::new(Registry::new(()));
        let guard = registry.guard().unwrap();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let worker = spawn_on_shard(0, {
            let registry = registry.clone();
            move || drop(registry.guard())
        });
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        leaver.join().unwrap();
        worker.join().unwrap();
        idle.finish(polled);
    });
}

/// Invariant L2: Two waiters start to wait at the same time. The first instant without a task in flight wakes both waiters.
#[test]
fn leave_wakes_two_waiters() {
    check_with_bound(2, 1, || {
        let registry = Arc::new(Registry::new(()));
        let guard = registry.guard().unwrap();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let other = spawn_on_shard(0, {
            let mut idle = Polled::new(registry.wait_idle());
            move || {
                let polled = idle.poll();
                (idle, polled)
            }
        });
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        leaver.join().unwrap();
        let (other, polled_other) = other.join().unwrap();
        idle.finish(polled);
        other.finish(polled_other);
    });
}

/// Invariant L2: A parent task starts a child task and then ends. The registry is not idle until the child task has ended. The
/// check reads the shard of the child task last.
#[test]
fn child_on_later_shard_delays_idle() {
    parent_hands_over_to_child([0, 1]);
}

/// Invariant L2: A parent task starts a child task and then ends. The registry is not idle until the child task has ended. The
/// check reads the shard of the child task first.
#[test]
fn child_on_earlier_shard_delays_idle() {
    parent_hands_over_to_child([1, 0]);
}

fn enter(shard: usize, registry: &Arc<Registry>) -> JoinHandle<Guard> {
    let registry = registry.clone();
    spawn_on_shard(shard, move || registry.guard().unwrap())
}

fn parent_hands_over_to_child([parent, child]: [usize; 2]) {
    check(2, move || {
        let registry = Arc::new(Registry::new(()));
        let guard = enter(parent, &registry).join().unwrap();
        let parent = spawn_on_shard(child, {
            let registry = registry.clone();
            move || {
                let child = registry.guard().unwrap();
                drop(guard);
                child
            }
        });
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        assert!(polled.is_pending());
        drop(parent.join().unwrap());
        idle.finish(polled);
    });
}

/// Invariant L2: So many child tasks start that the accepted count wraps back to its old value. The check detects the wrap, because
/// the word `wraps` has changed.
#[test]
fn children_delay_idle_across_a_wrap() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let guard = enter(1, &registry).join().unwrap();
        let parent = spawn_on_shard(0, {
            let registry = registry.clone();
            move || {
                let children = [(); 4].map(|()| registry.guard());
                drop(guard);
                children
            }
        });
        assert!(!registry.is_idle());
        drop(parent.join().unwrap());
        assert!(registry.is_idle());
    });
}

/// Invariant L2: The accepted count wraps, but the check may not see the new value of `wraps`. The task that counts the wrap is
/// still in flight, so the registry is not idle.
#[test]
fn child_delays_idle_across_an_unseen_wrap() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        drop(registry.guard());
        let guard = enter(1, &registry).join().unwrap();
        let others = spawn_on_shard(0, {
            let registry = registry.clone();
            move || [(); 3].map(|()| registry.guard())
        });
        let parent = spawn_on_shard(0, {
            let registry = registry.clone();
            move || {
                let child = registry.guard();
                drop(guard);
                child
            }
        });
        assert!(!registry.is_idle());
        drop((others.join(), parent.join()));
        assert!(registry.is_idle());
    });
}
