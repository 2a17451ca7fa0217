//! S5, S6: every task is accounted for, and nothing that one does hurts the host or the others.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{BlockingSpawner, Registry, Spawner};
use common::{HANG, Manual, Owns, PanicDrop, PanicPoll, counts, poll_once};
use std::fmt;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::mpsc::channel;

fn a_task_of_each_kind_is_counted_as_such<S: Spawner>(registry: &Registry<S>) {
    registry.run(async {});
    registry.run(async { Ok::<(), fmt::Error>(()) });
    registry.run(async { Err::<(), _>("a failure, as planned") });
    registry.run(async { panic!("a panic, as planned") });
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    registry.run(async { unreachable!("the registry has drained") });
    assert_eq!(counts(summary), [2, 1, 1, 0, 0, 0]);
    assert_eq!(counts(registry.summary()), [2, 1, 1, 0, 0, 1]);
    assert!(!summary.is_clean());
}

fn a_panic_leaves_the_others_running<S: Spawner>(registry: &Registry<S>) {
    let (before, after) = (channel(), channel());
    registry.run(async move { before.0.send(()).unwrap() });
    before.1.recv_timeout(HANG).unwrap();
    for _ in 0..10 {
        registry.run(async { panic!("a panic, as planned") });
    }
    registry.run(async move { after.0.send(()).unwrap() });
    after.1.recv_timeout(HANG).unwrap();
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [2, 0, 10, 0, 0, 0]);
}

fn a_destructor_that_panics_after_completion_counts_as_panicked<S: Spawner>(registry: &Registry<S>) {
    registry.run(Owns(PanicDrop, ready(())));
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 1, 0, 0, 0]);
}

fn a_destructor_that_panics_after_a_panic_is_one_panic<S: Spawner>(registry: &Registry<S>) {
    registry.run(PanicPoll(PanicDrop));
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 1, 0, 0, 0]);
}

fn a_payload_that_panics_when_dropped_is_one_panic<S: Spawner>(registry: &Registry<S>) {
    registry.run(async { panic_any(PanicDrop) });
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 1, 0, 0, 0]);
}

struct PanicError(PanicDrop);

impl fmt::Display for PanicError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

fn an_error_that_panics_when_dropped_counts_as_panicked<S: Spawner>(registry: &Registry<S>) {
    registry.run(ready(Err::<(), _>(PanicError(PanicDrop))));
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 1, 0, 0, 0]);
}

fn a_thousand_tasks_of_all_fates_add_up<S: Spawner>(registry: &Registry<S>) {
    let quarter = if cfg!(miri) { 5 } else { 250 };
    for n in 0..4 * quarter {
        registry.run(async move {
            futures_lite::future::yield_now().await;
            match n % 4 {
                0 => panic!("a panic, as planned"),
                1 => Err("a failure"),
                _ => Ok(()),
            }
        });
    }
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [2 * quarter, quarter, quarter, 0, 0, 0]);
}

on_every_runtime!(
    a_task_of_each_kind_is_counted_as_such,
    a_panic_leaves_the_others_running,
    a_destructor_that_panics_after_completion_counts_as_panicked,
    a_destructor_that_panics_after_a_panic_is_one_panic,
    a_payload_that_panics_when_dropped_is_one_panic,
    an_error_that_panics_when_dropped_counts_as_panicked,
    a_thousand_tasks_of_all_fates_add_up,
);

fn blocking_work_is_counted_by_its_outcome<S: BlockingSpawner>(registry: &Registry<S>) {
    registry.run_blocking(|| {});
    registry.run_blocking(|| std::fs::remove_file("/nonexistent/file"));
    registry.run_blocking(|| panic!("a panic, as planned"));
    let slow = PanicDrop;
    registry.run_blocking(move || {
        let _slow = &slow;
    });
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [1, 1, 2, 0, 0, 0]);
    let returned = registry.try_run_blocking(|| unreachable!("the registry has drained")).unwrap_err();
    let _: fn() -> _ = returned.into_inner();
    registry.run_blocking(|| unreachable!("the registry has drained"));
    assert_eq!(registry.summary().rejected, 2);
}

#[test]
fn blocking_work_on_tokio() {
    common::tokio_multi_thread(|handle| blocking_work_is_counted_by_its_outcome(&Registry::new(handle)));
}

#[test]
fn blocking_work_on_tokio_ambient() {
    common::tokio_multi_thread(|handle| {
        let _entered = handle.enter();
        blocking_work_is_counted_by_its_outcome(&Registry::new(background_tasks::TokioSpawner));
    });
}

#[test]
fn blocking_work_on_smol() {
    blocking_work_is_counted_by_its_outcome(&Registry::new(background_tasks::SmolSpawner));
}

#[test]
fn blocking_work_on_async_std() {
    blocking_work_is_counted_by_its_outcome(&Registry::new(background_tasks::AsyncStdSpawner));
}

#[test]
fn a_task_dropped_before_its_first_poll_is_abandoned() {
    let (manual, registry) = manual();
    registry.run(async {});
    drop(manual.take());
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn a_task_dropped_half_way_is_abandoned() {
    let (manual, registry) = manual();
    registry.run(pending::<()>());
    manual.poll_all();
    drop(manual.take());
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn a_destructor_that_panics_on_abandonment_is_contained_and_counted_as_panicked() {
    let (manual, registry) = manual();
    registry.run(Owns(PanicDrop, pending::<()>()));
    drop(manual.take());
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn a_tokio_runtime_that_is_dropped_abandons_what_is_in_flight() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let registry = Registry::new(runtime.handle().clone());
    let done = channel();
    for _ in 0..10 {
        registry.run(pending::<()>());
        let done = done.0.clone();
        registry.run(async move { done.send(()).unwrap() });
    }
    for _ in 0..10 {
        done.1.recv_timeout(HANG).unwrap();
    }
    drop(runtime);
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [10, 0, 0, 10, 0, 0]);
}

#[test]
fn what_is_spawned_on_a_tokio_runtime_that_is_gone_is_abandoned() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::new(runtime.handle().clone());
    drop(runtime);
    registry.run(async {});
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn an_async_executor_that_is_dropped_abandons_what_is_in_flight() {
    let executor = std::sync::Arc::new(::async_executor::Executor::new());
    let registry = Registry::new(executor.clone());
    registry.run(pending::<()>());
    let shutdown = registry.shutdown();
    drop((executor, registry));
    assert_eq!(counts(shutdown.wait_timeout(HANG).unwrap()), [0, 0, 0, 1, 0, 0]);
}

struct Panics;

impl Spawner for Panics {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _task: F) {
        panic!("a spawner's panic, as planned");
    }
}

struct Drops;

impl Spawner for Drops {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _task: F) {}
}

#[test]
fn a_spawner_that_panics_tells_the_caller_and_its_task_is_abandoned() {
    let registry = Registry::new(Panics);
    let panic = catch_unwind(AssertUnwindSafe(|| registry.run(async {}))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"a spawner's panic, as planned"));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn a_spawner_that_drops_the_future_abandons_it() {
    let registry = Registry::new(Drops);
    registry.run(async {});
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn a_refused_task_comes_back_and_every_door_counts_its_refusals() {
    let (_manual, registry) = manual();
    registry.shutdown();
    let back = registry.try_run(ready(())).unwrap_err();
    assert_eq!(back.reason(), background_tasks::RejectReason::Drained);
    assert_eq!(back.to_string(), "background work rejected: the registry has shut down and drained");
    assert!(poll_once(&mut back.into_inner()).is_ready());
    registry.run(async {});
    registry.guard().unwrap_err();
    assert!(poll_once(&mut registry.track(ready(())).unwrap_err().into_inner()).is_ready());
    assert_eq!(counts(registry.summary()), [0, 0, 0, 0, 0, 4]);
}

#[test]
fn a_refused_task_whose_destructor_panics_hurts_nobody() {
    let (_manual, registry) = manual();
    registry.shutdown();
    registry.run(Owns(PanicDrop, ready(())));
    assert_eq!(registry.summary().rejected, 1);
}

#[test]
fn what_is_tracked_is_completed_with_any_output() {
    let (_manual, registry) = manual();
    let mut tracked = registry.track(ready(Err::<u8, u8>(7))).unwrap();
    assert_eq!(registry.in_flight(), 1);
    assert_eq!(poll_once(&mut tracked), std::task::Poll::Ready(Err(7)));
    assert_eq!(registry.in_flight(), 0);
    drop(tracked);
    assert_eq!(counts(registry.shutdown().wait()), [1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_panic_in_what_is_tracked_is_counted_and_goes_on() {
    let (_manual, registry) = manual();
    let mut tracked = registry.track(PanicPoll(())).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(&mut tracked))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"intentional panic in a task"));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 0, 0, 0], "before it is dropped");
    drop(tracked);
    assert_eq!(counts(registry.summary()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn a_tracked_future_that_is_dropped_is_abandoned() {
    let (_manual, registry) = manual();
    drop(registry.track(pending::<()>()));
    let panic = catch_unwind(AssertUnwindSafe(|| drop(registry.track(Owns(PanicDrop, pending::<()>())))));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"intentional panic in a destructor"));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 1, 0, 0]);
}

#[test]
fn a_tracked_future_dropped_by_a_panic_is_abandoned_and_its_destructor_panic_contained() {
    let (_manual, registry) = manual();
    let tracked = registry.track(Owns(PanicDrop, pending::<()>())).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _tracked = tracked;
        panic!("the owner's panic, as planned");
    }));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"the owner's panic, as planned"));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn a_guard_is_completed_or_panicked() {
    let (_manual, registry) = manual();
    drop(registry.guard().unwrap());
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _guard = registry.guard().unwrap();
        panic!("the holder's panic, as planned");
    }));
    assert!(panic.is_err());
    assert_eq!(counts(registry.shutdown().wait()), [1, 0, 1, 0, 0, 0]);
}

#[test]
fn the_sum_holds_at_every_step() {
    let (manual, registry) = manual();
    let check = |accepted: u64| {
        let [completed, failed, panicked, abandoned, aborted, _] = counts(registry.summary());
        let in_flight = registry.in_flight() as u64;
        assert_eq!(accepted, in_flight + completed + failed + panicked + abandoned + aborted);
    };
    let mut guards = Vec::new();
    for accepted in 1..=100 {
        match accepted % 5 {
            0 => registry.run(async { panic!("a panic, as planned") }),
            1 => registry.run(pending::<()>()),
            2 => registry.run(ready(Err::<(), _>("a failure"))),
            3 => guards.extend(registry.guard()),
            _ => registry.run(async {}),
        }
        check(accepted);
        if fastrand::bool() {
            manual.poll_all();
            check(accepted);
        } else if fastrand::u8(..) < 40 && !manual.0.lock().unwrap().is_empty() {
            drop(manual.take());
            check(accepted);
        }
    }
    assert!(!registry.summary().is_clean());
}

fn manual() -> (Manual, Registry<Manual>) {
    let manual = Manual::default();
    (manual.clone(), Registry::new(manual))
}

/// A thread remembers the shard that it used last.
#[test]
fn registries_used_in_turn_on_one_thread_count_each_for_itself() {
    let registries = [Registry::new(()), Registry::new(()), Registry::new(())];
    let mut guards = Vec::new();
    for turn in 0..9 {
        guards.extend(registries.iter().take(1 + turn % 3).map(|registry| registry.guard().unwrap()));
    }
    assert_eq!(registries.each_ref().map(Registry::in_flight), [9, 6, 3]);
    drop(guards);
    assert_eq!(registries.map(|registry| registry.shutdown().wait().completed), [9, 6, 3]);
}
