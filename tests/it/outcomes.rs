//! Checks the invariants S4, S5 and S6. A registry counts the outcome of each task. A panic of a task does not reach the host or another
//! task.
use crate::common::{HANG, Manual, Owns, PanicDrop, PanicPoll, counts, poll_once};
use background_tasks::{Registry, Spawner};
use std::convert::Infallible;
use std::fmt;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::mpsc::channel;

fn tasks_are_counted_by_outcome<S: Spawner>(registry: &Registry<S>) {
    registry.run(async {});
    registry.run(async { Ok::<(), fmt::Error>(()) });
    registry.run(async { Err::<(), _>("intentional failure") });
    registry.run(async { panic!("intentional panic") });
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    registry.run(async { unreachable!("the registry has drained") });
    assert_eq!(counts(summary), [2, 1, 1, 0, 0, 0]);
    assert_eq!(counts(registry.summary()), [2, 1, 1, 0, 0, 1]);
    assert_eq!((summary.is_clean(), summary.unfinished(), registry.summary().unfinished()), (false, 1, 2));
}

fn panic_does_not_stop_other_tasks<S: Spawner>(registry: &Registry<S>) {
    let (before, after) = (channel(), channel());
    registry.run(async move { before.0.send(()).unwrap() });
    before.1.recv_timeout(HANG).unwrap();
    for _ in 0..10 {
        registry.run(async { panic!("intentional panic") });
    }
    registry.run(async move { after.0.send(()).unwrap() });
    after.1.recv_timeout(HANG).unwrap();
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [2, 0, 10, 0, 0, 0]);
}

fn destructor_panic_after_completion_counts_as_panicked<S: Spawner>(registry: &Registry<S>) {
    registry.run(Owns(PanicDrop, ready(())));
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 1, 0, 0, 0]);
}

fn destructor_panic_after_task_panic_counts_once<S: Spawner>(registry: &Registry<S>) {
    registry.run(PanicPoll(PanicDrop));
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 1, 0, 0, 0]);
}

fn payload_destructor_panic_counts_once<S: Spawner>(registry: &Registry<S>) {
    registry.run(async { panic_any(PanicDrop) });
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 1, 0, 0, 0]);
}

struct PanicDropError(PanicDrop);

impl fmt::Display for PanicDropError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

fn error_destructor_panic_counts_as_panicked<S: Spawner>(registry: &Registry<S>) {
    registry.run(ready(Err::<(), _>(PanicDropError(PanicDrop))));
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 1, 0, 0, 0]);
}

fn outcomes_of_a_thousand_tasks_add_up<S: Spawner>(registry: &Registry<S>) {
    let quarter = if cfg!(miri) { 5 } else { 250 };
    for n in 0..4 * quarter {
        registry.run(async move {
            futures_lite::future::yield_now().await;
            match n % 4 {
                0 => panic!("intentional panic"),
                1 => Err("intentional failure"),
                _ => Ok(()),
            }
        });
    }
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [2 * quarter, quarter, quarter, 0, 0, 0]);
}

on_every_runtime!(
    tasks_are_counted_by_outcome,
    panic_does_not_stop_other_tasks,
    destructor_panic_after_completion_counts_as_panicked,
    destructor_panic_after_task_panic_counts_once,
    payload_destructor_panic_counts_once,
    error_destructor_panic_counts_as_panicked,
    outcomes_of_a_thousand_tasks_add_up,
);

#[cfg(any(feature = "tokio", feature = "smol", feature = "async-std"))]
fn blocking_work_is_counted_by_outcome<S: background_tasks::BlockingSpawner>(registry: &Registry<S>) {
    registry.run_blocking(|| {});
    registry.run_blocking(|| std::fs::remove_file("/nonexistent/file"));
    registry.run_blocking(|| panic!("intentional panic"));
    let panics_on_drop = PanicDrop;
    registry.run_blocking(move || {
        let _captured = &panics_on_drop;
    });
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [1, 1, 2, 0, 0, 0]);
    let rejected = registry.task().try_run_blocking(|| unreachable!("the registry has drained")).unwrap_err();
    let _: fn() -> _ = rejected.into_inner();
    registry.run_blocking(|| unreachable!("the registry has drained"));
    assert_eq!(registry.summary().rejected, 2);
}

#[test]
#[cfg(feature = "tokio")]
fn blocking_work_is_counted_on_tokio() {
    crate::common::tokio_multi_thread(|handle| blocking_work_is_counted_by_outcome(&Registry::new(handle)));
}

#[test]
#[cfg(feature = "tokio")]
fn blocking_work_is_counted_on_ambient_tokio() {
    crate::common::tokio_multi_thread(|handle| {
        let _entered = handle.enter();
        blocking_work_is_counted_by_outcome(&Registry::new(background_tasks::TokioSpawner));
    });
}

#[test]
#[cfg(feature = "smol")]
fn blocking_work_is_counted_on_smol() {
    blocking_work_is_counted_by_outcome(&Registry::new(background_tasks::SmolSpawner));
}

#[test]
#[cfg(feature = "async-std")]
fn blocking_work_is_counted_on_async_std() {
    blocking_work_is_counted_by_outcome(&Registry::new(background_tasks::AsyncStdSpawner));
}

#[test]
fn error_inside_an_option_or_a_result_counts_as_failed() {
    type Loops = Result<Infallible, &'static str>;
    let (manual, registry) = manual_registry();
    let signal = registry.signal();
    registry.run(signal.run_until_shutdown(ready(Err::<(), _>("failed before the shutdown"))));
    registry.run(signal.run_until_shutdown(ready(Ok::<(), &str>(()))));
    registry.run(signal.run_until_shutdown(pending::<Loops>()));
    registry.run(signal.run_until_shutdown(ready(Loops::Err("failed loop"))));
    registry.run(async { Loops::Err("failed loop") });
    registry.run(async { Ok::<_, &str>(Loops::Err("inner failure")) });
    registry.run(async { Err::<Loops, _>("outer failure") });
    registry.run(async { Ok::<_, &str>(Some(())) });
    registry.run(pending::<Infallible>());
    manual.poll_all();
    assert_eq!(counts(registry.summary()), [2, 5, 0, 0, 0, 0]);
    registry.start_shutdown();
    manual.poll_all();
    assert_eq!(counts(registry.summary()), [3, 5, 0, 0, 0, 0], "`None` counts as completed");
    drop(manual.take());
    assert_eq!(counts(registry.shutdown().wait()), [3, 5, 0, 1, 0, 0]);
}

#[test]
fn result_of_a_task_that_never_succeeds_counts_as_failed() {
    fn never(_: &str) -> ! {
        unreachable!("only called for an `Ok`")
    }
    let (manual, registry) = manual_registry();
    // The output has the type `Result<!, &str>`. Stable Rust has no syntax for this type.
    registry.run(async { Err("failed loop").map(never) });
    manual.poll_all();
    assert_eq!(counts(registry.shutdown().wait()), [0, 1, 0, 0, 0, 0]);
}

#[test]
fn task_dropped_before_first_poll_is_abandoned() {
    let (manual, registry) = manual_registry();
    registry.run(async {});
    drop(manual.take());
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn task_dropped_after_first_poll_is_abandoned() {
    let (manual, registry) = manual_registry();
    registry.run(pending::<()>());
    manual.poll_all();
    drop(manual.take());
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn destructor_panic_of_abandoned_task_is_caught_and_counts_as_panicked() {
    let (manual, registry) = manual_registry();
    registry.run(Owns(PanicDrop, pending::<()>()));
    drop(manual.take());
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 0, 0, 0]);
}

#[test]
#[cfg(feature = "tokio")]
fn dropped_tokio_runtime_abandons_its_tasks() {
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
#[cfg(feature = "tokio")]
fn task_spawned_on_dropped_tokio_runtime_is_abandoned() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::new(runtime.handle().clone());
    drop(runtime);
    registry.run(async {});
    assert_eq!(counts(registry.shutdown().wait_timeout(HANG).unwrap()), [0, 0, 0, 1, 0, 0]);
}

#[test]
#[cfg(feature = "async-executor")]
fn dropped_async_executor_abandons_its_tasks() {
    let executor = std::sync::Arc::new(::async_executor::Executor::new());
    let registry = Registry::new(executor.clone());
    registry.run(pending::<()>());
    let shutdown = registry.shutdown();
    drop((executor, registry));
    assert_eq!(counts(shutdown.wait_timeout(HANG).unwrap()), [0, 0, 0, 1, 0, 0]);
}

struct PanickingSpawner;

impl Spawner for PanickingSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _task: F) {
        panic!("intentional panic in a spawner");
    }
}

struct DiscardingSpawner;

impl Spawner for DiscardingSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _task: F) {}
}

#[test]
fn spawner_panic_reaches_caller_and_abandons_task() {
    let registry = Registry::new(PanickingSpawner);
    let panic = catch_unwind(AssertUnwindSafe(|| registry.run(async {}))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"intentional panic in a spawner"));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn task_dropped_by_spawner_is_abandoned() {
    let registry = Registry::new(DiscardingSpawner);
    registry.run(async {});
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn rejected_work_is_returned_and_every_rejection_is_counted() {
    let (_manual, registry) = manual_registry();
    registry.start_shutdown();
    let rejected = registry.try_run(ready(())).unwrap_err();
    assert_eq!(rejected.reason(), background_tasks::RejectReason::Drained);
    assert_eq!(rejected.to_string(), "background work rejected: the registry has shut down and drained");
    assert!(poll_once(&mut rejected.into_inner()).is_ready());
    registry.run(async {});
    registry.guard().unwrap_err();
    assert!(poll_once(&mut registry.track(ready(())).unwrap_err().into_inner()).is_ready());
    assert_eq!(counts(registry.summary()), [0, 0, 0, 0, 0, 4]);
}

#[test]
fn destructor_panic_of_rejected_task_is_caught() {
    let (_manual, registry) = manual_registry();
    registry.start_shutdown();
    registry.run(Owns(PanicDrop, ready(())));
    assert_eq!(registry.summary().rejected, 1);
}

#[test]
fn tracked_future_completes_with_any_output() {
    let (_manual, registry) = manual_registry();
    let mut tracked = registry.track(ready(Err::<u8, u8>(7))).unwrap();
    assert_eq!(registry.in_flight(), 1);
    assert_eq!(poll_once(&mut tracked), std::task::Poll::Ready(Err(7)));
    assert_eq!(registry.in_flight(), 0);
    drop(tracked);
    assert_eq!(counts(registry.shutdown().wait()), [1, 0, 0, 0, 0, 0]);
}

#[test]
fn panic_in_tracked_future_is_counted_and_reaches_owner() {
    let (_manual, registry) = manual_registry();
    let mut tracked = registry.track(PanicPoll(())).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(&mut tracked))).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"intentional panic in a task"));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 0, 0, 0], "the panic is counted before `tracked` is dropped");
    drop(tracked);
    assert_eq!(counts(registry.summary()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn dropped_tracked_future_is_abandoned() {
    let (_manual, registry) = manual_registry();
    drop(registry.track(pending::<()>()));
    let panic = catch_unwind(AssertUnwindSafe(|| drop(registry.track(Owns(PanicDrop, pending::<()>())))));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"intentional panic in a destructor"));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 1, 0, 0]);
}

/// A destructor that panics during unwinding would end the process if the library did not catch the panic.
#[test]
fn destructor_panic_of_tracked_future_is_caught_during_unwinding() {
    let (_manual, registry) = manual_registry();
    let tracked = registry.track(Owns(PanicDrop, pending::<()>())).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _tracked = tracked;
        panic!("intentional panic in the owner");
    }));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"intentional panic in the owner"));
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn guard_counts_as_panicked_if_a_panic_drops_it() {
    let (_manual, registry) = manual_registry();
    drop(registry.guard().unwrap());
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _guard = registry.guard().unwrap();
        panic!("intentional panic while a guard is held");
    }));
    assert!(panic.is_err());
    assert_eq!(counts(registry.shutdown().wait()), [1, 0, 1, 0, 0, 0]);
}

/// Calls the closure in a destructor that runs during the unwinding of a panic.
fn while_a_panic_unwinds(f: impl Fn()) {
    struct CallOnDrop<F: Fn()>(F);

    impl<F: Fn()> Drop for CallOnDrop<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }

    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _call = CallOnDrop(f);
        panic!("intentional panic before the work starts");
    }));
    assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"intentional panic before the work starts"));
}

#[test]
fn work_started_while_a_panic_unwinds_does_not_count_as_panicked() {
    let manual = Manual::default();
    let registry = Registry::builder(manual.clone()).shutdown_on_panic().build();
    while_a_panic_unwinds(|| {
        drop(registry.guard().unwrap());
        registry.guard().unwrap().require_completion().complete();
        assert!(poll_once(&mut registry.track(ready(())).unwrap()).is_ready());
        registry.run(async {});
        manual.poll_all();
        drop(registry.track(pending::<()>()).unwrap());
        drop(registry.guard().unwrap().require_completion());
        registry.run(pending::<()>());
        drop(manual.take());
    });
    assert!(!registry.is_shutting_down());
    assert_eq!(counts(registry.shutdown().wait()), [4, 0, 0, 3, 0, 0]);
}

#[test]
fn guard_taken_while_a_panic_unwinds_counts_as_panicked_if_another_thread_panics() {
    let (_manual, registry) = manual_registry();
    while_a_panic_unwinds(|| {
        let guard = registry.guard().unwrap();
        let thread = std::thread::spawn(move || {
            let _guard = guard;
            panic!("intentional panic on another thread");
        });
        assert!(thread.join().is_err());
    });
    assert_eq!(counts(registry.shutdown().wait()), [0, 0, 1, 0, 0, 0]);
}

#[test]
fn guard_that_requires_completion_counts_as_abandoned_unless_completed() {
    let (_manual, registry) = manual_registry();
    let guard = registry.guard().unwrap().require_completion();
    assert_eq!(registry.in_flight(), 1);
    guard.complete();
    assert_eq!((registry.in_flight(), counts(registry.summary())), (0, [1, 0, 0, 0, 0, 0]));
    drop(registry.guard().unwrap().require_completion());
    assert_eq!(counts(registry.summary()), [1, 0, 0, 1, 0, 0]);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _guard = registry.guard().unwrap().require_completion();
        panic!("intentional panic while a guard is held");
    }));
    assert!(panic.is_err());
    assert_eq!(counts(registry.shutdown().wait()), [1, 0, 1, 1, 0, 0]);
}

/// The guard belongs to a task. The abort drops this task and therefore also its guard.
#[test]
fn guard_that_requires_completion_counts_as_abandoned_if_its_owner_is_aborted() {
    let manual = Manual::default();
    let owners = Registry::builder(manual.clone()).inspect().build();
    let registry = Registry::new(());
    for requires_completion in [true, false] {
        let guard = registry.guard().unwrap();
        owners.run(async move {
            if requires_completion {
                let guard = guard.require_completion();
                pending::<()>().await;
                guard.complete();
            } else {
                let _guard = guard;
                pending::<()>().await;
            }
        });
    }
    manual.poll_all();
    owners.abort();
    manual.poll_all();
    assert_eq!(counts(owners.shutdown().wait()), [0, 0, 0, 0, 2, 0]);
    assert_eq!(counts(registry.shutdown().wait()), [1, 0, 0, 1, 0, 0]);
}

/// If a panic drops a guard, the guard counts as panicked. But if the guard has already been marked as completed, it counts as completed.
#[test]
fn completion_while_a_panic_unwinds_counts_as_completed() {
    let (_manual, registry) = manual_registry();
    let guard = std::cell::Cell::new(Some(registry.guard().unwrap().require_completion()));
    while_a_panic_unwinds(|| guard.take().unwrap().complete());
    assert_eq!(counts(registry.shutdown().wait()), [1, 0, 0, 0, 0, 0]);
}

#[test]
fn accepted_tasks_equal_outcomes_plus_in_flight_after_every_step() {
    let (manual, registry) = manual_registry();
    let check = |accepted: u64| {
        let [completed, failed, panicked, abandoned, aborted, _] = counts(registry.summary());
        let in_flight = registry.in_flight() as u64;
        assert_eq!(accepted, in_flight + completed + failed + panicked + abandoned + aborted);
    };
    let mut guards = Vec::new();
    for accepted in 1..=100 {
        match accepted % 5 {
            0 => registry.run(async { panic!("intentional panic") }),
            1 => registry.run(pending::<()>()),
            2 => registry.run(ready(Err::<(), _>("intentional failure"))),
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

fn manual_registry() -> (Manual, Registry<Manual>) {
    let manual = Manual::default();
    (manual.clone(), Registry::new(manual))
}

/// Each thread caches the shard that it used last. If the cached shard belonged to another registry, the task would count for the wrong
/// registry.
#[test]
fn registries_used_alternately_on_one_thread_count_separately() {
    let registries = [Registry::new(()), Registry::new(()), Registry::new(())];
    let mut guards = Vec::new();
    for round in 0..9 {
        guards.extend(registries.iter().take(1 + round % 3).map(|registry| registry.guard().unwrap()));
    }
    assert_eq!(registries.each_ref().map(Registry::in_flight), [9, 6, 3]);
    drop(guards);
    assert_eq!(registries.map(|registry| registry.shutdown().wait().completed), [9, 6, 3]);
}
