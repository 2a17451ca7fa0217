//! Requests without a permit start and end in a registry with a limit. Other threads take permits, wait for idleness, or start the
//! shutdown.

use crate::common::{Effect, Polled, Registry, check, check_with_bound, counts, race, spawn_on_shard};
use background_tasks::RejectReason;
use core::task::Poll;
use std::sync::Arc;

fn limited() -> Arc<Registry> {
    Arc::new(background_tasks::Registry::builder(()).max_in_flight(1).build())
}

/// Invariants S3 and S4: While a request without a permit is in flight, a draining registry accepts the tasks of this request.
#[test]
fn request_without_permit_keeps_registry_open() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = limited();
            let request = registry.without_permit().guard().unwrap();
            let (handle, closer) = (registry.clone(), registry.clone());
            let start_tasks = move || {
                for _ in 0..2 {
                    drop(handle.guard().expect("the request is in flight"));
                }
                drop(request);
            };
            race(swapped, start_tasks, move || drop(closer.shutdown()));
            assert!(registry.is_drained());
            assert_eq!(counts(registry.summary()), [3, 0, 0, 0]);
        });
    }
}

/// Invariants S3 and S4: The last request without a permit ends while another thread starts a task with a permit and a third thread
/// starts the shutdown.
#[test]
fn last_request_leaves_as_task_enters() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, effect) = (limited(), Effect::new());
            let request = registry.without_permit().guard().unwrap();
            let (handle, performed) = (registry.clone(), effect.clone());
            let closer = spawn_on_shard(0, move || drop(handle.shutdown()));
            let leave = move || {
                performed.perform();
                drop(request);
            };
            let handle = registry.clone();
            let start_task = move || {
                let started = handle.guard().map_err(|rejected| assert_eq!(rejected.reason(), RejectReason::Drained));
                if handle.is_drained() {
                    effect.observe();
                }
                started.is_ok()
            };
            let ((), accepted) = race(swapped, leave, start_task);
            closer.join().unwrap();
            assert!(registry.is_drained());
            assert_eq!(counts(registry.summary()), if accepted { [2, 0, 0, 0] } else { [1, 0, 0, 1] });
        });
    }
}

/// Invariant S10: Requests without a permit start and end while two threads try to take the only permit. Exactly one of the two
/// threads gets the permit.
#[test]
fn permits_are_exact_as_requests_come_and_go() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = limited();
            let request = registry.without_permit().guard().unwrap();
            let leaver = spawn_on_shard(0, move || drop(request));
            let (one, other) = (registry.clone(), registry.clone());
            let enter = move || (one.without_permit().guard().unwrap(), one.guard());
            let ((request, other), guard) = race(swapped, enter, move || other.guard());
            leaver.join().unwrap();
            assert_eq!([&guard, &other].iter().filter(|guard| guard.is_ok()).count(), 1, "one permit is taken once");
            assert_eq!(registry.in_flight(), 2);
            drop((guard, other, request));
            assert_eq!(registry.in_flight(), 0);
        });
    }
}

/// Invariant L2: The end of the last request without a permit wakes a waiter for idleness.
#[test]
fn last_request_wakes_idle_waiter() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = limited();
            let request = registry.without_permit().guard().unwrap();
            let mut idle = Polled::new(registry.wait_idle());
            let poll = move || {
                let polled = idle.poll();
                (idle, polled)
            };
            let ((idle, polled), ()) = race(swapped, poll, move || drop(request));
            idle.finish(polled);
        });
    }
}

/// Invariants S9 and S10: A request without a permit ends, and a task with a permit reuses its slot and ends. Both counts are
/// released correctly.
#[test]
fn slot_of_request_is_reused_by_task_with_permit() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = limited();
            let request = registry.without_permit().guard().unwrap();
            let handle = registry.clone();
            race(swapped, move || drop(request), move || drop(handle.critical().guard().unwrap()));
            assert_eq!(registry.in_flight(), 0);
            drop(registry.guard().unwrap());
            assert_eq!(counts(registry.shutdown().wait()), [3, 0, 0, 0]);
        });
    }
}

/// Invariants S3 and L4: A follow-up waits while the last request and the last task end. The drain wakes and rejects the follow-up.
#[test]
fn last_request_leaves_as_follow_up_waits() {
    for swapped in [false, true] {
        check_with_bound(2, 1, move || {
            let registry = Arc::new(crate::common::manual_builder().max_in_flight(1).build());
            let (request, task) = (registry.without_permit().guard().unwrap(), registry.guard().unwrap());
            let mut waiter = Polled::new({
                let registry = registry.clone();
                async move { registry.follow_up().run_when_ready(core::future::ready(())).await.is_ok() }
            });
            assert!(waiter.poll().is_pending());
            let handle = registry.clone();
            let closer = spawn_on_shard(0, move || drop(handle.shutdown()));
            race(swapped, move || drop(request), move || drop(task));
            closer.join().unwrap();
            assert!(registry.is_drained());
            assert!(!waiter.finish(Poll::Pending));
        });
    }
}
