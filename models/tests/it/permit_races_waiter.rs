//! A task releases its permit while other threads wait for a permit, try to take it, or stop waiting.

use crate::common::{ManualSpawner, Polled, check, manual_builder, race, spawn_on_shard};
use background_tasks::{Guard, RejectReason};
use core::future::{Future, ready};
use core::task::Poll;
use loom::thread::JoinHandle;
use std::sync::Arc;

type Registry = background_tasks::Registry<ManualSpawner>;

/// Returns a registry with a limit of one, and the guard that holds its only permit.
fn full_registry() -> (Arc<Registry>, Guard) {
    let (registry, [guard]) = full_registry_of();
    (registry, guard)
}

/// Returns a registry with a limit of `N`, and guards that hold all permits.
fn full_registry_of<const N: usize>() -> (Arc<Registry>, [Guard; N]) {
    let registry = manual_builder().max_in_flight(N).build();
    let guards = [(); N].map(|()| registry.guard().unwrap());
    (Arc::new(registry), guards)
}

/// Returns a future that waits for a permit. The future resolves to true if its task was started.
fn waiter(registry: &Arc<Registry>) -> Polled<impl Future<Output = bool> + use<>> {
    let registry = registry.clone();
    Polled::new(async move { registry.run_when_ready(ready(())).await.is_ok() })
}

/// Returns a future that waits for a permit as a follow-up. The future resolves to true if its task was started.
fn follow_up(registry: &Arc<Registry>) -> Polled<impl Future<Output = bool> + use<>> {
    let registry = registry.clone();
    Polled::new(async move {
        let started = registry.follow_up().run_when_ready(ready(())).await;
        started.inspect_err(|rejected| assert_eq!(rejected.reason(), RejectReason::Drained)).is_ok()
    })
}

fn spawn_poll<F: Future + 'static>(mut future: Polled<F>) -> JoinHandle<(Polled<F>, Poll<F::Output>)> {
    spawn_on_shard(0, move || {
        let polled = future.poll();
        (future, polled)
    })
}

/// Invariant L4: A new waiter takes the permit, or is woken when the permit is released.
#[test]
fn new_waiter_enters_or_is_woken() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, guard) = full_registry();
            let mut waiter = waiter(&registry);
            let poll = move || {
                let polled = waiter.poll();
                (waiter, polled)
            };
            let ((waiter, polled), ()) = race(swapped, poll, move || drop(guard));
            assert!(waiter.finish(polled));
            assert_eq!(registry.in_flight(), 1);
        });
    }
}

/// Invariant L4: If a queued waiter is polled again with another waker, the release of the permit calls the new waker.
#[test]
fn repolled_waiter_wakes_latest_waker() {
    check(1, || {
        let (registry, guard) = full_registry();
        let mut waiter = waiter(&registry);
        assert!(waiter.poll().is_pending());
        let leaver = spawn_on_shard(0, move || drop(guard));
        let polled = waiter.poll_with_new_waker();
        leaver.join().unwrap();
        assert!(waiter.finish(polled));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// Invariant L4: If a waiter is dropped after it was woken for a permit, the next waiter gets this permit.
#[test]
fn dropped_waiter_passes_permit_to_next() {
    check(1, || {
        let (registry, guard) = full_registry();
        let [mut dropped, mut next] = [(); 2].map(|()| waiter(&registry));
        assert!(dropped.poll().is_pending());
        assert!(next.poll().is_pending());
        let leaver = spawn_on_shard(0, move || drop(guard));
        drop(dropped);
        leaver.join().unwrap();
        assert!(next.finish(Poll::Pending));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// Invariant L4: A waiter joins the queue while the waiter before it is dropped. The new waiter gets the permit.
#[test]
fn new_waiter_is_woken_as_another_is_dropped() {
    check(1, || {
        let (registry, guard) = full_registry();
        let mut dropped = waiter(&registry);
        assert!(dropped.poll().is_pending());
        let leaver = spawn_on_shard(0, move || drop(guard));
        let dropper = spawn_on_shard(0, move || drop(dropped));
        let mut next = waiter(&registry);
        let polled = next.poll();
        leaver.join().unwrap();
        dropper.join().unwrap();
        assert!(next.finish(polled));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// Invariant L4: A new waiter queues behind the first waiter. After the first waiter's task has ended, the new waiter is woken.
#[test]
fn new_waiter_queues_as_first_waiter_enters() {
    check(1, || {
        let (registry, guard) = full_registry();
        let mut first = waiter(&registry);
        assert!(first.poll().is_pending());
        let leaver = spawn_on_shard(0, move || drop(guard));
        let first = spawn_poll(first);
        let mut second = waiter(&registry);
        let polled = second.poll();
        assert!(polled.is_pending());
        leaver.join().unwrap();
        let (first, polled_first) = first.join().unwrap();
        assert!(first.finish(polled_first));
        assert_eq!(registry.in_flight(), 1);
        drop(registry.spawner().take());
        assert!(second.finish(polled));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// Invariant L4: The release of a permit wakes a waiter although another task stays in flight.
#[test]
fn one_of_two_leaves_wakes_waiter() {
    check(1, || {
        let (registry, [leaves, _stays]) = full_registry_of();
        let leaver = spawn_on_shard(0, move || drop(leaves));
        let mut waiter = waiter(&registry);
        let polled = waiter.poll();
        leaver.join().unwrap();
        assert!(waiter.finish(polled));
        assert_eq!(registry.in_flight(), 2);
    });
}

/// Invariant L4: The release of two permits wakes two waiters.
#[test]
fn two_leaves_wake_two_waiters() {
    check(1, || {
        let (registry, guards) = full_registry_of::<2>();
        let mut waiters = [(); 2].map(|()| waiter(&registry));
        assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
        let [one, other] = guards;
        let leaver = spawn_on_shard(0, move || drop(one));
        drop(other);
        leaver.join().unwrap();
        assert!(waiters.into_iter().all(|waiter| waiter.finish(Poll::Pending)));
        assert_eq!(registry.in_flight(), 2);
    });
}

/// Invariant S10: Two threads try to take one released permit. At most one thread succeeds.
#[test]
fn two_tries_never_exceed_limit() {
    check(1, || {
        let (registry, guard) = full_registry();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let other = spawn_on_shard(0, {
            let registry = registry.clone();
            move || registry.guard()
        });
        let guards = [registry.guard(), other.join().unwrap()];
        assert!(guards.iter().filter(|guard| guard.is_ok()).count() <= 1);
        leaver.join().unwrap();
        assert!(registry.in_flight() <= 1);
    });
}

/// Invariant S10: A thread that takes a permit without waiting does not overtake a queued waiter.
#[test]
fn try_never_overtakes_queued_waiter() {
    check(1, || {
        let (registry, guard) = full_registry();
        let mut waiter = waiter(&registry);
        assert!(waiter.poll().is_pending());
        let leaver = spawn_on_shard(0, move || drop(guard));
        let rejected = registry.guard().unwrap_err();
        assert_eq!(rejected.reason(), RejectReason::Full);
        leaver.join().unwrap();
        assert!(waiter.finish(Poll::Pending));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// Invariants L4 and S10: Another thread tries to take the released permit at the same time as a new waiter. The waiter gets the
/// permit at the latest when the other thread has released it.
#[test]
fn new_waiter_is_woken_as_another_thread_tries() {
    check(1, || {
        let (registry, guard) = full_registry();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let trier = spawn_on_shard(0, {
            let registry = registry.clone();
            move || drop(registry.guard())
        });
        let mut waiter = waiter(&registry);
        let polled = waiter.poll();
        leaver.join().unwrap();
        trier.join().unwrap();
        assert!(waiter.finish(polled));
        assert_eq!(registry.in_flight(), 1);
    });
}

/// Invariants L4 and S4: The shutdown rejects a queued waiter and a new waiter. Each of the two is rejected once.
#[test]
fn shutdown_rejects_queued_and_new_waiter_once() {
    check(1, || {
        let (registry, guard) = full_registry();
        let mut queued = waiter(&registry);
        assert!(queued.poll().is_pending());
        let new = spawn_poll(waiter(&registry));
        let shutdown = registry.shutdown();
        let (new, polled) = new.join().unwrap();
        assert!(!new.finish(polled));
        assert!(!queued.finish(Poll::Pending));
        drop(guard);
        assert_eq!(shutdown.wait().rejected, 2);
    });
}

/// Invariants L4 and S3: A new follow-up gets a permit, or the follow-up is woken and rejected when the registry has drained.
#[test]
fn follow_up_enters_or_is_rejected_by_the_drain() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, guard) = full_registry();
            let mut waiter = follow_up(&registry);
            let handle = registry.clone();
            let poll = move || {
                let polled = waiter.poll();
                (waiter, polled)
            };
            let leaver = spawn_on_shard(0, move || drop(guard));
            let ((waiter, polled), ()) = race(swapped, poll, move || drop(handle.shutdown()));
            leaver.join().unwrap();
            let started = waiter.finish(polled);
            assert_eq!(started, !registry.is_drained());
            if started {
                drop(registry.spawner().take());
            }
            assert!(registry.is_drained());
            assert_eq!(registry.summary().rejected, u64::from(!started));
        });
    }
}

/// Invariant L4: Either the last task that ends or the shutdown wakes every queued follow-up.
#[test]
fn every_queued_follow_up_is_woken_by_the_drain() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, guard) = full_registry();
            let mut waiters = [(); 2].map(|()| follow_up(&registry));
            assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
            let handle = registry.clone();
            race(swapped, move || drop(guard), move || drop(handle.shutdown()));
            assert!(registry.is_drained());
            // The second follow-up must be woken even if the first follow-up is not polled.
            let [first, second] = waiters;
            assert!(!second.finish(Poll::Pending));
            assert!(!first.finish(Poll::Pending));
            assert_eq!(registry.summary().rejected, 2);
        });
    }
}

/// Invariant L4: The shutdown removes a waiter that was woken for a permit. The next follow-up gets this permit.
#[test]
fn shutdown_passes_permit_to_follow_up() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, [leaves, _stays]) = full_registry_of();
            let mut removed = waiter(&registry);
            assert!(removed.poll().is_pending());
            let mut kept = follow_up(&registry);
            assert!(kept.poll().is_pending());
            let handle = registry.clone();
            race(swapped, move || drop(leaves), move || drop(handle.shutdown()));
            assert!(kept.finish(Poll::Pending));
            assert!(!removed.finish(Poll::Pending));
            assert_eq!(registry.in_flight(), 2);
        });
    }
}

/// Invariant S10: While the registry drains, a thread that takes a permit without waiting does not overtake a queued follow-up.
#[test]
fn try_never_overtakes_follow_up_of_draining_registry() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, [leaves, _stays]) = full_registry_of();
            let mut waiter = follow_up(&registry);
            assert!(waiter.poll().is_pending());
            let handle = registry.clone();
            let closer = spawn_on_shard(0, move || drop(handle.shutdown()));
            let handle = registry.clone();
            let (rejected, ()) = race(swapped, move || handle.guard().unwrap_err(), move || drop(leaves));
            closer.join().unwrap();
            assert_eq!(rejected.reason(), RejectReason::Full);
            assert!(waiter.finish(Poll::Pending));
            assert_eq!(registry.in_flight(), 2);
        });
    }
}
