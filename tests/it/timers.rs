//! Tests the timers of spawners, and shutdowns with a time limit.

use crate::common::{Fake, FakeTimer, Manual, poll_once};
use background_tasks::{
    AsyncStdSpawner, DynSpawner, DynTimer, InSpan, Registry, SmolSpawner, Spawner, Summary, TaskSpan, ThreadsSpawner, Timer,
    TokioSpawner, WithTimer,
};
use futures_lite::future::block_on;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

const SHORT: Duration = Duration::from_millis(10);

fn runtime_with_timer() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
}

/// Checks `shutdown_within` and `shutdown_or_abort` with several time limits, and a dropped shutdown future. Unless a call hangs, this
/// takes only a few milliseconds.
async fn limits_apply<S: Spawner + Timer + Clone>(spawner: S) {
    let started = |finishes| {
        let registry = Registry::builder(spawner.clone()).inspect().build();
        if finishes {
            registry.run(async {});
        } else {
            registry.run(pending::<()>());
        }
        registry
    };
    assert_eq!(started(true).shutdown_within(Duration::MAX).await.unwrap().completed, 1);
    assert_eq!(started(false).shutdown_within(SHORT).await.unwrap_err().len(), 1);
    assert_eq!(started(false).shutdown_within(Duration::ZERO).await.unwrap_err().len(), 1);
    assert_eq!(started(true).shutdown_or_abort(Duration::MAX, Duration::MAX).await.unwrap().completed, 1);
    assert_eq!(started(false).shutdown_or_abort(SHORT, Duration::MAX).await.unwrap().aborted, 1);
    assert_eq!(started(false).shutdown_or_abort(Duration::ZERO, Duration::MAX).await.unwrap().aborted, 1);

    let registry = started(true);
    let mut dropped = Box::pin(registry.shutdown_within(Duration::MAX));
    let _ = futures_lite::future::poll_once(&mut dropped).await;
    drop(dropped);
    assert!(registry.is_shutting_down());
    assert_eq!(registry.shutdown_within(Duration::MAX).await.unwrap().completed, 1);
}

#[test]
fn limits_apply_on_tokio() {
    runtime_with_timer().block_on(limits_apply(TokioSpawner));
    Builder::new_current_thread().enable_time().build().unwrap().block_on(limits_apply(TokioSpawner));
    let runtime = runtime_with_timer();
    block_on(limits_apply(runtime.handle().clone()));
}

#[test]
fn limits_apply_on_smol() {
    block_on(limits_apply(SmolSpawner));
}

#[test]
fn limits_apply_on_async_std() {
    block_on(limits_apply(AsyncStdSpawner));
}

#[test]
fn limits_apply_on_threads_with_a_timer() {
    block_on(limits_apply(WithTimer(ThreadsSpawner::new(1).unwrap(), smol::Timer::after)));
}

#[test]
fn limits_apply_through_wrappers() {
    block_on(limits_apply(DynSpawner::new(SmolSpawner).with_timer(SmolSpawner)));
    block_on(limits_apply(Arc::new(TaskSpan(InSpan(&SmolSpawner)))));
}

/// Returns a timer and a spawner that the test controls, and a registry that uses them.
fn manual() -> (FakeTimer, Manual, Registry<Fake>) {
    let fake = Fake::default();
    (fake.timer.clone(), fake.tasks.clone(), fake.builder().inspect().build())
}

#[test]
fn grace_period_starts_at_the_call() {
    let (timer, _tasks, registry) = manual();
    registry.run(pending::<()>());
    let shutdown = registry.shutdown_within(SHORT * 3);
    assert!(registry.is_shutting_down(), "the call starts the shutdown, not the first poll");
    let mut shutdown = Box::pin(shutdown);
    timer.advance(SHORT * 2);
    assert!(poll_once(&mut shutdown).is_pending());
    timer.advance(SHORT);
    let Poll::Ready(Err(stragglers)) = poll_once(&mut shutdown) else { panic!("the grace period has elapsed") };
    assert_eq!((stragglers.len(), timer.take_durations()), (1, vec![SHORT * 3]));
}

#[test]
fn drain_at_the_end_of_the_grace_period_is_a_success() {
    let (timer, tasks, registry) = manual();
    registry.run(async {});
    let mut shutdown = Box::pin(registry.shutdown_within(SHORT));
    assert!(poll_once(&mut shutdown).is_pending());
    timer.advance(SHORT);
    tasks.poll_all();
    assert!(matches!(poll_once(&mut shutdown), Poll::Ready(Ok(Summary { completed: 1, .. }))));
}

#[test]
fn abort_timeout_starts_after_the_abort() {
    let (timer, tasks, registry) = manual();
    registry.run(pending::<()>());
    let mut shutdown = Box::pin(registry.shutdown_or_abort(SHORT, SHORT * 2));
    assert!(poll_once(&mut shutdown).is_pending());
    assert_eq!(timer.take_durations(), [SHORT]);
    timer.advance(SHORT * 10);
    assert!(poll_once(&mut shutdown).is_pending());
    assert_eq!(timer.take_durations(), [SHORT * 2]);
    timer.advance(SHORT);
    tasks.poll_all();
    assert!(matches!(poll_once(&mut shutdown), Poll::Ready(Ok(Summary { aborted: 1, .. }))));
}

#[test]
fn dropped_shutdown_or_abort_aborts_no_task() {
    let (timer, tasks, registry) = manual();
    registry.run(pending::<()>());
    let mut shutdown = Box::pin(registry.shutdown_or_abort(SHORT, SHORT));
    assert!(poll_once(&mut shutdown).is_pending());
    drop(shutdown);
    timer.advance(SHORT);
    tasks.poll_all();
    assert_eq!((registry.in_flight(), registry.is_shutting_down()), (1, true));
}

#[test]
fn zero_needs_no_timer() {
    let (timer, _tasks, registry) = manual();
    registry.run(pending::<()>());
    assert!(matches!(poll_once(&mut Box::pin(registry.shutdown_within(Duration::ZERO))), Poll::Ready(Err(_))));
    let aborted = poll_once(&mut Box::pin(registry.shutdown_or_abort(Duration::ZERO, Duration::ZERO)));
    assert!(matches!(aborted, Poll::Ready(Err(_))), "the executor has not dropped the aborted task yet");
    assert_eq!(timer.take_durations(), []);
}

/// Checks that `shutdown_within` panics and does not start the shutdown. Returns the panic message.
fn panic_of_shutdown_within<S: Timer>(registry: &Registry<S>) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| drop(registry.shutdown_within(SHORT)))).unwrap_err();
    assert!(!registry.is_shutting_down());
    panic.downcast_ref::<&str>().copied().map(String::from).or(panic.downcast_ref().cloned()).unwrap()
}

#[test]
fn tokio_timer_outside_a_runtime_panics_with_advice() {
    let message = panic_of_shutdown_within(&Registry::new(TokioSpawner));
    for part in ["TokioSpawner", "`handle.enter()`", "Registry::new(runtime.handle().clone())"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn tokio_timer_in_a_runtime_without_time_panics_with_advice() {
    let runtime = Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let message = panic_of_shutdown_within(&Registry::new(TokioSpawner));
        assert!(message.contains("enable_time"), "{message}");
    });
    let message = panic_of_shutdown_within(&Registry::new(runtime.handle().clone()));
    assert!(message.contains("enable_time"), "{message}");
}

#[test]
fn erased_timers_are_one_type() {
    let timers = [DynTimer::new(SmolSpawner), DynTimer::new(AsyncStdSpawner), DynTimer::new(runtime_with_timer().handle().clone())];
    assert_eq!(format!("{:?}", timers[0]), "DynTimer { .. }");
    assert_eq!(format!("{:?}", WithTimer((), SmolSpawner)), "WithTimer((), ..)");
    block_on(timers[0].sleep(Duration::ZERO));
    block_on(timers[1].sleep(Duration::ZERO));
}
