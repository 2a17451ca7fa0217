//! A service ends one run and starts the next. Other threads read the counts, shut down the registry, abort the service, or wait
//! for idleness.

use crate::common::{ManualSpawner, Polled, check, check_with_bound, counts, manual_builder, race, spawn_on_shard};
use background_tasks::{Registry, Restart};
use core::future::{Future, pending};
use core::pin::Pin;
use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Run = Pin<Box<dyn Future<Output = Result<(), &'static str>> + Send>>;

/// Returns a closure that creates the runs of a service. The first `ended` runs return `output`. The closure `last` creates the
/// next run. Also returns the number of started runs.
fn runs(
    ended: u64,
    output: Result<(), &'static str>,
    last: impl Fn() -> Run + Send + 'static,
) -> (impl FnMut() -> Run + Send + 'static, Arc<AtomicU64>) {
    let started = Arc::new(AtomicU64::new(0));
    let count = started.clone();
    let make = move || if count.fetch_add(1, Ordering::Relaxed) < ended { Box::pin(async move { output }) as Run } else { last() };
    (make, started)
}

fn forever() -> Run {
    Box::pin(pending())
}

/// Invariant S5: Runs that are lost while the accepted count wraps never count as completed.
#[test]
fn lost_runs_across_a_wrap_are_never_completed() {
    check(1, || {
        let registry = Arc::new(manual_builder().build());
        registry.service(Restart::on_failure().unlimited(), runs(3, Err("lost"), forever).0);
        let mut task = registry.spawner().take();
        let worker = spawn_on_shard(0, move || assert!(task.poll().is_pending()));
        assert_eq!(registry.summary().completed, 0);
        worker.join().unwrap();
        let summary = registry.shutdown().wait();
        assert_eq!((summary.failed, counts(summary)), (3, [0, 0, 1, 0]));
    });
}

/// Invariant S5: While the accepted count wraps, a live summary never shows more completed runs than have started.
#[test]
fn completed_runs_across_a_wrap_are_never_overstated() {
    check(1, || {
        let registry = Arc::new(manual_builder().build());
        let (make, started) = runs(3, Ok(()), forever);
        registry.service(Restart::always().unlimited(), make);
        let mut task = registry.spawner().take();
        let worker = spawn_on_shard(0, move || assert!(task.poll().is_pending()));
        let completed = registry.summary().completed;
        assert!(completed <= started.load(Ordering::Relaxed), "the summary overstates the completed runs");
        worker.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [3, 0, 1, 0]);
    });
}

/// Invariants S3, S5 and L1: A shutdown during the runs ends the service, and each run has one outcome.
#[test]
fn shutdown_races_runs() {
    for swapped in [false, true] {
        check_with_bound(2, 1, move || {
            let registry = Arc::new(manual_builder().build());
            let signal = registry.signal();
            let until_shutdown = move || -> Run {
                let signal = signal.clone();
                Box::pin(async move {
                    signal.await;
                    Ok(())
                })
            };
            let (make, started) = runs(1, Err("lost"), until_shutdown);
            registry.service(Restart::on_failure().unlimited(), make);
            let mut task = registry.spawner().take();
            let other = registry.clone();
            let poll = move || {
                let polled = task.poll();
                (task, polled)
            };
            let ((), (task, polled)) = race(swapped, move || other.start_shutdown(), poll);
            task.finish(polled);
            assert!(registry.is_drained());
            let (summary, started) = (registry.summary(), started.load(Ordering::Relaxed));
            assert_eq!(summary.failed, started.min(1));
            // A service that ends before its first run, or between two runs, counts as completed.
            assert!(summary.completed == 1 || (summary.completed == 0 && started == 1));
        });
    }
}

/// Invariants L3 and S5: An abort during the runs ends the service, and the service counts as aborted once. All completed runs are
/// counted.
#[test]
fn abort_races_runs() {
    for swapped in [false, true] {
        check_with_bound(2, 1, move || {
            let registry = Arc::new(manual_builder().inspect().build());
            let (make, started) = runs(2, Ok(()), forever);
            registry.service(Restart::always().unlimited(), make);
            let mut task = registry.spawner().take();
            let other = registry.clone();
            let poll = move || {
                let polled = task.poll();
                (task, polled)
            };
            let (aborted, (task, polled)) = race(swapped, move || other.abort().aborted, poll);
            task.finish(polled);
            assert_eq!(aborted, 1);
            let summary = registry.shutdown().wait();
            let completed = started.load(Ordering::Relaxed).saturating_sub(1);
            assert_eq!((summary.aborted, summary.completed), (1, completed));
        });
    }
}

fn start_service(registry: &Registry<ManualSpawner>) -> crate::common::Task {
    registry.every(Duration::ZERO, pending::<()>);
    registry.spawner().take()
}

/// Invariant L2: The end of the last task wakes a waiter for idleness, although a service stays in flight.
#[test]
fn leave_wakes_waiter_beside_a_service() {
    check(1, || {
        let registry = Arc::new(manual_builder().build());
        let service = start_service(&registry);
        let guard = registry.guard().unwrap();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        leaver.join().unwrap();
        idle.finish(polled);
        drop(service);
    });
}

/// Invariant L2: A service starts while the last task ends and a waiter for idleness begins to wait. The waiter is woken.
#[test]
fn start_of_service_races_last_leave_and_waiter() {
    check_with_bound(2, 1, || {
        let registry = Arc::new(manual_builder().build());
        let guard = registry.guard().unwrap();
        let leaver = spawn_on_shard(0, move || drop(guard));
        let starter = spawn_on_shard(0, {
            let registry = registry.clone();
            move || start_service(&registry)
        });
        let mut idle = Polled::new(registry.wait_idle());
        let polled = idle.poll();
        leaver.join().unwrap();
        let service = starter.join().unwrap();
        idle.finish(polled);
        drop(service);
    });
}

/// Invariant L2: While a task is in flight, the registry is not idle, even if one service ends and another service starts.
#[test]
fn task_delays_idle_while_services_change() {
    for shards in [1, 2] {
        check_with_bound(2, shards, move || {
            let registry = Arc::new(manual_builder().build());
            let guard = registry.guard().unwrap();
            let ending = start_service(&registry);
            let changer = spawn_on_shard(shards - 1, {
                let registry = registry.clone();
                move || {
                    drop(ending);
                    start_service(&registry)
                }
            });
            assert!(!registry.is_idle());
            let service = changer.join().unwrap();
            assert!(!registry.is_idle());
            drop(guard);
            assert!(registry.is_idle());
            drop(service);
        });
    }
}
