//! A thread waits for an instant with nothing in flight while tasks start and end.

use crate::common::{Polled, Registry, check, check_with_bound, spawn_on_shard};
use background_tasks::Guard;
use loom::thread::JoinHandle;
use std::sync::Arc;

/// L2: The wait is ready, or the last task to leave wakes it.
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

/// L2: The wait is ready or woken, whichever shard becomes idle last.
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

/// L2: The wake-up is not lost when another task starts and ends during the check.
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

/// L2: The first idle instant wakes both waiters, although one of them starts to wait during the check of the other.
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

/// L2: A child task that starts before its parent leaves delays the idle instant. The check reads the child's shard last.
#[test]
fn child_on_later_shard_delays_idle() {
    parent_hands_over_to_child([0, 1]);
}

/// L2: The same holds when the check reads the child's shard first.
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

/// L2: The same holds when so many children start that the accepted count wraps back to its old value. The count of wraps differs.
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

/// L2: The same holds while no task that has counted a wrap has left, so the check may miss the count of wraps.
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
