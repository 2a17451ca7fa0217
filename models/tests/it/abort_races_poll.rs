//! One thread aborts a task while another thread polls the task.

use crate::common::{check, manual_builder, race, spawn_on_shard};
use core::future::pending;
use std::sync::Arc;

/// Invariants S3 and S5: A task finishes in a poll that races an abort. The task is counted once, as completed or as aborted, and
/// the registry drains.
#[test]
fn finishing_task_is_counted_once() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = Arc::new(manual_builder().inspect().build());
            registry.run(async {});
            let mut task = registry.spawner().take();
            let aborter = registry.clone();
            let (aborted, polled) = race(swapped, move || aborter.abort().aborted, move || task.poll());
            assert!(polled.is_ready());
            assert!(registry.tasks().is_empty());
            assert_eq!(registry.abort().aborted, 0);
            let summary = registry.shutdown().wait();
            assert!(summary.aborted <= aborted as u64);
            assert_eq!((summary.completed + summary.aborted, summary.abandoned), (1, 0));
        });
    }
}

/// Invariant L3: The first poll of a task races an abort. The poll ends the task, or the abort wakes the task.
#[test]
fn parking_task_is_woken() {
    abort_races_park(false);
}

/// Invariant L3: A waiting task is polled with another waker while it is aborted. The poll ends the task, or the abort calls the
/// new waker.
#[test]
fn repolled_task_wakes_latest_waker() {
    abort_races_park(true);
}

fn abort_races_park(already_parked: bool) {
    for swapped in [false, true] {
        check(1, move || {
            let registry = Arc::new(manual_builder().inspect().build());
            registry.run(pending::<()>());
            let mut task = registry.spawner().take();
            if already_parked {
                assert!(task.poll().is_pending());
            }
            let aborter = registry.clone();
            let abort = move || assert_eq!(aborter.abort().aborted, 1);
            let poll = move || {
                let polled = task.poll_with_new_waker();
                (task, polled)
            };
            let ((), (task, polled)) = race(swapped, abort, poll);
            task.finish(polled);
            assert_eq!(registry.shutdown().wait().aborted, 1);
        });
    }
}

/// Invariant L3: Two threads abort a task during its first poll. The poll ends the task, or the task is woken. The task counts as
/// aborted once.
#[test]
fn parking_task_aborted_by_two_threads_is_woken() {
    two_aborts_race_park(false);
}

/// Invariant L3: Two threads abort a waiting task while it is polled with another waker. The poll ends the task, or the new waker
/// is called.
#[test]
fn repolled_task_aborted_by_two_threads_wakes_latest_waker() {
    two_aborts_race_park(true);
}

fn two_aborts_race_park(already_parked: bool) {
    check(1, move || {
        let registry = Arc::new(manual_builder().inspect().build());
        registry.run(pending::<()>());
        let mut task = registry.spawner().take();
        if already_parked {
            assert!(task.poll().is_pending());
        }
        let worker = spawn_on_shard(0, move || {
            let polled = task.poll_with_new_waker();
            (task, polled)
        });
        let other = spawn_on_shard(0, {
            let registry = registry.clone();
            move || registry.abort()
        });
        registry.abort();
        other.join().unwrap();
        let (task, polled) = worker.join().unwrap();
        task.finish(polled);
        assert_eq!(registry.shutdown().wait().aborted, 1);
    });
}
