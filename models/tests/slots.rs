//! Tasks of one call come and go on one shard, and use one another's slots.

mod common;

use background_tasks::{AbortError, Guard, TaskId, TaskInfo};
use common::{ByHand, Effect, Task, by_hand, check, on_shard, race};
use core::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Registry = background_tasks::Registry<ByHand>;

fn inspected() -> Arc<Registry> {
    Arc::new(by_hand().inspect().build())
}

/// The one call, so that all have one label.
fn enter(registry: &Registry) -> Guard {
    registry.guard().unwrap()
}

fn start(registry: &Registry) -> Task {
    registry.run(pending::<()>());
    registry.spawner().take()
}

fn only(registry: &Registry) -> TaskId {
    let tasks = registry.tasks();
    assert_eq!(tasks.len(), 1);
    tasks[0].id().unwrap()
}

/// S9: all that are in flight are listed, each in a slot of its own.
fn assert_listed(registry: &Registry, count: usize) {
    let mut ids: Vec<_> = registry.tasks().iter().map(TaskInfo::id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), registry.in_flight()), (count, count));
}

/// S9: a slot is taken by one.
#[test]
fn two_take_one() {
    check(1, || {
        let registry = inspected();
        drop(enter(&registry));
        let other = on_shard(0, {
            let registry = registry.clone();
            move || enter(&registry)
        });
        let guards = [enter(&registry), other.join().unwrap()];
        assert_listed(&registry, 2);
        drop(guards);
        assert_listed(&registry, 0);
    });
}

/// S9: nor does who left it last end the turn of who takes it.
#[test]
fn one_is_taken_as_it_is_left() {
    check(1, || {
        let registry = inspected();
        let guard = enter(&registry);
        let leaver = on_shard(0, move || drop(guard));
        let guard = enter(&registry);
        leaver.join().unwrap();
        assert_listed(&registry, 1);
        drop(guard);
    });
}

/// S9: also when there is none, and both make some.
#[test]
fn two_grow() {
    check(1, || {
        let registry = inspected();
        let first = enter(&registry);
        let other = on_shard(0, {
            let registry = registry.clone();
            move || [enter(&registry), enter(&registry)]
        });
        let guards = [enter(&registry), enter(&registry)];
        let others = other.join().unwrap();
        assert_listed(&registry, 5);
        drop((first, guards, others));
        assert_listed(&registry, 0);
    });
}

/// S9: and when what was the top comes back while another takes it.
#[test]
fn the_top_comes_back() {
    check(1, || {
        let registry = inspected();
        drop([enter(&registry), enter(&registry)]);
        let other = on_shard(0, {
            let registry = registry.clone();
            move || {
                let top = enter(&registry);
                let next = enter(&registry);
                drop(top);
                next
            }
        });
        let guard = enter(&registry);
        let other = other.join().unwrap();
        let last = enter(&registry);
        assert_listed(&registry, 3);
        drop((guard, other, last));
    });
}

/// S9: and when one comes back while the top is taken.
#[test]
fn one_comes_back_on_the_top() {
    check(1, || {
        let registry = inspected();
        drop([enter(&registry), enter(&registry)]);
        let guard = enter(&registry);
        let leaver = on_shard(0, move || drop(guard));
        let guard = enter(&registry);
        leaver.join().unwrap();
        let others = [enter(&registry), enter(&registry)];
        assert_listed(&registry, 3);
        drop((guard, others));
    });
}

/// S9: and when two come back at once.
#[test]
fn two_come_back() {
    check(1, || {
        let registry = inspected();
        let [one, two] = [enter(&registry), enter(&registry)];
        let other = on_shard(0, {
            let registry = registry.clone();
            move || {
                drop(one);
                enter(&registry)
            }
        });
        drop(two);
        let guards = [other.join().unwrap(), enter(&registry), enter(&registry)];
        assert_listed(&registry, 3);
        drop(guards);
    });
}

/// S9: an id is of one task for good: who has its slot now is not aborted in its stead.
#[test]
fn a_stale_id() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = inspected();
            let task = start(&registry);
            let id = only(&registry);
            let aborter = registry.clone();
            let abort = move || aborter.abort_task(id);
            let restart = {
                let registry = registry.clone();
                move || {
                    drop(task);
                    let mut next = start(&registry);
                    assert!(next.poll().is_pending());
                    next
                }
            };
            let (_, mut next) = race(swapped, abort, restart);
            assert!(next.poll().is_pending());
            assert_ne!(only(&registry), id);
            assert!(!registry.tasks()[0].abort_requested());
            assert_eq!(registry.abort_task(id), Err(AbortError::NotInFlight));
            drop(next);
            let summary = registry.shutdown().wait();
            assert_eq!((summary.abandoned, summary.aborted), (2, 0));
        });
    }
}

/// L3: nor does a late abort of its last task take the waker from who has the slot now and is aborted too.
#[test]
fn a_late_abort() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = inspected();
            let mut task = start(&registry);
            assert!(task.poll().is_pending());
            let id = only(&registry);
            let aborter = registry.clone();
            let abort = move || aborter.abort_task(id);
            let restart = {
                let registry = registry.clone();
                move || {
                    drop(task);
                    let mut next = start(&registry);
                    let polled = next.poll();
                    let polled = if next.is_woken() { next.poll() } else { polled };
                    registry.abort();
                    (next, polled)
                }
            };
            let (_, (next, polled)) = race(swapped, abort, restart);
            next.finish(polled);
            assert_eq!(registry.shutdown().wait().aborted, 1);
        });
    }
}

/// S2: whoever is told that a task is not in flight any more sees what it did, whoever has its slot by then.
#[test]
fn not_in_flight_shows_effects() {
    check(1, || {
        let (registry, effect) = (inspected(), Effect::new());
        // Both slots are there already, as loom does not see the lock that a new one is found through.
        drop([enter(&registry), enter(&registry)]);
        let guard = enter(&registry);
        let id = only(&registry);
        let leaver = on_shard(0, {
            let effect = effect.clone();
            move || {
                effect.happen();
                drop(guard);
            }
        });
        let next = on_shard(0, {
            let registry = registry.clone();
            move || enter(&registry)
        });
        // Started last, as loom runs those first that were started first: it tries too few orders of those who read and then write.
        let asker = on_shard(0, {
            let registry = registry.clone();
            move || {
                if registry.abort_task(id) == Err(AbortError::NotInFlight) {
                    effect.see();
                }
            }
        });
        leaver.join().unwrap();
        drop(next.join().unwrap());
        asker.join().unwrap();
    });
}

/// S9: nobody is listed with the age of who had the slot before, or has it since.
#[test]
fn one_is_listed_as_it_is_used_again() {
    check(1, || {
        let registry = inspected();
        let guard = enter(&registry);
        let first = only(&registry);
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(1) {}
        let lister = on_shard(0, {
            let registry = registry.clone();
            move || {
                let at_least = began.elapsed();
                (at_least, registry.tasks(), Instant::now())
            }
        });
        drop(guard);
        let not_before = Instant::now();
        let guard = enter(&registry);
        let (at_least, tasks, listed) = lister.join().unwrap();
        assert!(tasks.len() <= 1);
        for task in tasks {
            let age = task.age().unwrap();
            if task.id() == Some(first) {
                assert!(age >= at_least, "the age of the next");
            } else {
                assert!(age <= listed - not_before, "the age of the last");
            }
        }
        drop(guard);
    });
}
