//! One thread aborts work while another thread starts the work.

use crate::common::{Closure, ManualSpawner, Polled, check, manual_builder, race, spawn_on_shard};
use core::future::{pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Registry = background_tasks::Registry<ManualSpawner>;

/// Starts a blocking closure. The returned flag says whether the closure has run. The flag is an atomic of `std`, so it does not
/// affect the orders that loom explores.
fn start_closure() -> (Arc<Registry>, Closure, Arc<AtomicBool>) {
    let (registry, has_run) = (Arc::new(manual_builder().inspect().build()), Arc::new(AtomicBool::new(false)));
    let flag = has_run.clone();
    registry.run_blocking(move || flag.store(true, Ordering::Relaxed));
    let closure = registry.spawner().take_closure();
    (registry, closure, has_run)
}

/// Invariants L3 and S5: If an abort reports a closure as aborted, the closure does not run, and is counted as aborted.
#[test]
fn aborted_closure_never_starts() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, closure, has_run) = start_closure();
            let aborter = registry.clone();
            let (report, ()) = race(swapped, move || aborter.abort(), closure);
            let summary = registry.shutdown().wait();
            // If the closure has ended before the abort, the abort finds no task.
            assert!(report.aborted + report.not_abortable <= 1);
            assert_eq!((summary.aborted, summary.completed), (report.aborted as u64, 1 - report.aborted as u64));
            assert_eq!(has_run.load(Ordering::Relaxed), report.aborted == 0);
        });
    }
}

/// Invariants L3 and S5: If an abort reports a closure as aborted and the executor drops the closure, the closure counts as
/// aborted.
#[test]
fn dropped_closure_counts_as_reported() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, closure, has_run) = start_closure();
            let aborter = registry.clone();
            let (report, ()) = race(swapped, move || aborter.abort(), move || drop(closure));
            let summary = registry.shutdown().wait();
            assert_eq!((summary.aborted, summary.abandoned), (report.aborted as u64, 1 - report.aborted as u64));
            assert!(!has_run.load(Ordering::Relaxed));
        });
    }
}

/// Invariants L3 and S5: Two threads abort one closure. If one of them reports the closure as aborted, the closure does not run.
/// Otherwise the closure runs.
#[test]
fn two_aborts_report_the_same_closure_alike() {
    check(1, || {
        let (registry, closure, has_run) = start_closure();
        let (worker, other) = (spawn_on_shard(0, closure), registry.clone());
        let other = spawn_on_shard(0, move || other.abort().aborted);
        let aborted = registry.abort().aborted.max(other.join().unwrap());
        worker.join().unwrap();
        assert_eq!(has_run.load(Ordering::Relaxed), aborted == 0);
        assert_eq!(registry.shutdown().wait().aborted, aborted as u64);
    });
}

/// Invariant L3: If a task starts while `or_abort` aborts all tasks, the task is aborted, whichever comes first.
#[test]
fn task_that_starts_during_or_abort_is_aborted() {
    for swapped in [false, true] {
        check(1, move || {
            let registry = Arc::new(manual_builder().inspect().build());
            let guard = registry.guard().unwrap();
            let mut wait = Polled::new(registry.shutdown().or_abort(ready(()), pending::<()>));
            let abort = move || {
                let polled = wait.poll();
                (wait, polled)
            };
            let start = move || {
                registry.run(pending::<()>());
                registry.spawner().take()
            };
            let ((wait, polled), mut task) = race(swapped, abort, start);
            assert!(task.poll().is_ready(), "the task waits although `or_abort` has aborted");
            drop(guard);
            let Ok(summary) = wait.finish(polled) else { panic!("the registry must drain") };
            assert_eq!(summary.aborted, 1);
        });
    }
}

/// Invariant L3: After `or_abort` has aborted the tasks of a registry, the next registry with the same state aborts no task.
#[test]
fn next_registry_after_or_abort_aborts_no_task() {
    check(1, || {
        let registry = manual_builder().inspect().build();
        let guard = registry.guard().unwrap();
        let mut wait = Polled::new(registry.shutdown().or_abort(ready(()), pending::<()>));
        assert!(wait.poll().is_pending());
        let late = spawn_on_shard(0, move || drop(guard));
        drop((wait, registry));
        let registry = manual_builder().inspect().build();
        registry.run(pending::<()>());
        let mut task = registry.spawner().take();
        assert!(task.poll().is_pending());
        late.join().unwrap();
        drop(task);
    });
}
