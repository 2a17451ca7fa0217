//! Somebody waits for an instant with nothing in flight while tasks come and go.

mod common;

use background_tasks::Guard;
use common::{Polled, Registry, check, check_within, on_shard};
use loom::thread::JoinHandle;
use std::sync::Arc;

/// L2: the wait is over, or woken by who leaves.
#[test]
fn one_leaves() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let guard = enter(1, &registry).join().unwrap();
        let leaver = on_shard(1, move || drop(guard));
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        leaver.join().unwrap();
        idle.finish(polled);
    });
}

/// L2: whichever shard becomes idle last, the wait is over or woken.
#[test]
fn one_leaves_each_shard() {
    check_within(2, 2, || {
        let registry = Arc::new(Registry::new(()));
        let leavers = [0, 1].map(|shard| {
            let guard = enter(shard, &registry).join().unwrap();
            on_shard(shard, move || drop(guard))
        });
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        for leaver in leavers {
            leaver.join().unwrap();
        }
        idle.finish(polled);
    });
}

/// L2: nor is it lost on those who come and go while it looks.
#[test]
fn one_leaves_and_one_passes() {
    check_within(2, 1, || {
        let registry = Arc::new(Registry::new(()));
        let guard = registry.guard().unwrap();
        let leaver = on_shard(0, move || drop(guard));
        let passer = on_shard(0, {
            let registry = registry.clone();
            move || drop(registry.guard())
        });
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        leaver.join().unwrap();
        passer.join().unwrap();
        idle.finish(polled);
    });
}

/// L2: whoever waits is told of the first instant, though another waits too and asked in between.
#[test]
fn two_wait() {
    check_within(2, 1, || {
        let registry = Arc::new(Registry::new(()));
        let guard = registry.guard().unwrap();
        let leaver = on_shard(0, move || drop(guard));
        let other = on_shard(0, {
            let mut idle = Polled::new(registry.wait_idle());
            move || {
                let polled = idle.poll();
                (idle, polled)
            }
        });
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        leaver.join().unwrap();
        let (other, polled_too) = other.join().unwrap();
        idle.finish(polled);
        other.finish(polled_too);
    });
}

/// A child that is started before its parent leaves is waited for, whichever of their shards is looked at first.
#[test]
fn a_child_on_a_later_shard() {
    handed_over([0, 1]);
}

#[test]
fn a_child_on_an_earlier_shard() {
    handed_over([1, 0]);
}

fn enter(shard: usize, registry: &Arc<Registry>) -> JoinHandle<Guard> {
    let registry = registry.clone();
    on_shard(shard, move || registry.guard().unwrap())
}

fn handed_over([parent, child]: [usize; 2]) {
    check(2, move || {
        let registry = Arc::new(Registry::new(()));
        let guard = enter(parent, &registry).join().unwrap();
        let parent = on_shard(child, {
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

/// The same when so many are started meanwhile that *accepted* comes full circle: the flips tell.
#[test]
fn a_child_after_a_full_circle() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let guard = enter(1, &registry).join().unwrap();
        let parent = on_shard(0, {
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

/// The same when nobody who has counted a flip has left yet, so that the flips need not be seen.
#[test]
fn a_child_after_a_full_circle_not_seen() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        drop(registry.guard());
        let guard = enter(1, &registry).join().unwrap();
        let others = on_shard(0, {
            let registry = registry.clone();
            move || [(); 3].map(|()| registry.guard())
        });
        let parent = on_shard(0, {
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
