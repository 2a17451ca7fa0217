//! Checks the invariants S1 and S2. The registry counts a task before the spawner receives the task, and stops counting the task only
//! after the task has been dropped.
//!
//! Each test of invariant S2 blocks a destructor on another thread, and checks that the registry still counts the task.
use crate::common::{HANG, Manual, Owns, PanicPoll, SlowDrop, SlowDropControl, poll_once};
use background_tasks::{Registry, Spawner};
use std::fmt;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread;
use std::time::Duration;

/// Asserts that the drain waits for the destructor: the drain does not end before the destructor has finished.
fn assert_drain_waits_for<S>(destructor: &SlowDropControl, registry: &Registry<S>) {
    destructor.started.recv_timeout(HANG).unwrap();
    assert_drain_waits_for_started(destructor, registry);
}

/// Asserts that the drain waits for a destructor that has already started.
fn assert_drain_waits_for_started<S>(destructor: &SlowDropControl, registry: &Registry<S>) {
    let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
    assert_eq!((stragglers.len(), registry.in_flight(), registry.is_drained()), (1, 1, false));
    assert_eq!(stragglers.summary(), registry.summary(), "no task has ended since the deadline");
    assert!(!destructor.is_dropped());
    destructor.resume.send(()).unwrap();
    registry.shutdown().wait_timeout(HANG).unwrap();
    assert!(destructor.is_dropped());
}

fn completed_future_is_dropped_before_release<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    registry.run(Owns(slow, ready(())));
    assert_drain_waits_for(&destructor, registry);
}

fn panicked_future_is_dropped_before_release<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    registry.run(PanicPoll(slow));
    assert_drain_waits_for(&destructor, registry);
}

fn locals_of_panicking_task_are_dropped_before_release<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    registry.run(async move {
        let _slow = slow;
        panic!("intentional panic");
    });
    assert_drain_waits_for(&destructor, registry);
}

fn panic_payload_is_dropped_before_release<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    let slow = Mutex::new(slow);
    registry.run(async move { panic_any(slow) });
    assert_drain_waits_for(&destructor, registry);
}

struct SlowDropError(#[allow(dead_code, reason = "only its destructor matters")] SlowDrop);

impl fmt::Display for SlowDropError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("intentional failure")
    }
}

fn error_is_dropped_before_release<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    registry.run(ready(Err::<(), _>(SlowDropError(slow))));
    assert_drain_waits_for(&destructor, registry);
}

fn output_of_detached_task_is_dropped_before_release<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    // The handle is dropped before the task ends. Otherwise the drop of the handle would drop the output.
    let (detach, detached) = tokio::sync::oneshot::channel::<()>();
    drop(registry.spawn(async move {
        detached.await.unwrap();
        slow
    }));
    detach.send(()).unwrap();
    assert_drain_waits_for(&destructor, registry);
}

fn panic_payload_of_detached_task_is_dropped_before_release<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    let slow = Mutex::new(slow);
    let (detach, detached) = tokio::sync::oneshot::channel::<()>();
    drop(registry.spawn(async move {
        detached.await.unwrap();
        panic_any(slow)
    }));
    detach.send(()).unwrap();
    assert_drain_waits_for(&destructor, registry);
}

fn future_of_task_with_handle_is_dropped_before_release<S: Spawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    let mut handle = registry.spawn(Owns(slow, ready(7)));
    destructor.started.recv_timeout(HANG).unwrap();
    assert!(poll_once(&mut handle).is_pending());
    assert_drain_waits_for_started(&destructor, registry);
    assert!(matches!(poll_once(&mut handle), Poll::Ready(Ok(7))));
}

on_every_runtime!(
    completed_future_is_dropped_before_release,
    panicked_future_is_dropped_before_release,
    locals_of_panicking_task_are_dropped_before_release,
    panic_payload_is_dropped_before_release,
    error_is_dropped_before_release,
    output_of_detached_task_is_dropped_before_release,
    panic_payload_of_detached_task_is_dropped_before_release,
    future_of_task_with_handle_is_dropped_before_release,
);

#[test]
fn abandoned_future_is_dropped_before_release() {
    let manual = Manual::default();
    let registry = Registry::new(manual.clone());
    let (slow, destructor) = SlowDrop::new();
    registry.run(Owns(slow, pending::<()>()));
    manual.poll_all();
    let owner = thread::spawn(move || drop(manual.take()));
    assert_drain_waits_for(&destructor, &registry);
    owner.join().unwrap();
    assert_eq!(registry.summary().abandoned, 1);
}

#[test]
#[cfg(feature = "tokio")]
fn future_of_dropped_runtime_is_dropped_before_release() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let registry = Registry::new(runtime.handle().clone());
    let (slow, destructor) = SlowDrop::new();
    registry.run(Owns(slow, pending::<()>()));
    let owner = thread::spawn(move || drop(runtime));
    assert_drain_waits_for(&destructor, &registry);
    owner.join().unwrap();
    assert_eq!(registry.summary().abandoned, 1);
}

#[cfg(any(feature = "tokio", feature = "smol", feature = "async-std"))]
fn blocking_closure_is_dropped_before_release<S: background_tasks::BlockingSpawner>(registry: &Registry<S>) {
    let (slow, destructor) = SlowDrop::new();
    registry.run_blocking(move || drop(slow));
    assert_drain_waits_for(&destructor, registry);
    assert_eq!(registry.summary().completed, 1);
}

#[test]
#[cfg(any(feature = "tokio", feature = "smol", feature = "async-std"))]
fn blocking_closure_is_dropped_before_release_on_each_runtime() {
    #[cfg(feature = "tokio")]
    crate::common::tokio_multi_thread(|handle| blocking_closure_is_dropped_before_release(&Registry::new(handle)));
    #[cfg(feature = "smol")]
    blocking_closure_is_dropped_before_release(&Registry::new(background_tasks::SmolSpawner));
    #[cfg(feature = "async-std")]
    blocking_closure_is_dropped_before_release(&Registry::new(background_tasks::AsyncStdSpawner));
}

/// `Tracked` drops its future when the future finishes, not when `Tracked` itself is dropped.
#[test]
fn completed_tracked_future_is_dropped_in_place_before_release() {
    let registry = Registry::new(());
    let (slow, destructor) = SlowDrop::new();
    let mut tracked = registry.track(Owns(slow, ready("output"))).unwrap();
    let owner = thread::spawn(move || (poll_once(&mut tracked), tracked));
    assert_drain_waits_for(&destructor, &registry);
    let (output, _tracked) = owner.join().unwrap();
    assert_eq!(output, Poll::Ready("output"));
}

#[test]
fn panicked_tracked_future_is_dropped_before_release() {
    let registry = Registry::new(());
    let (slow, destructor) = SlowDrop::new();
    let mut tracked = registry.track(PanicPoll(slow)).unwrap();
    let owner = thread::spawn(move || catch_unwind(AssertUnwindSafe(|| poll_once(&mut tracked))).is_err());
    assert_drain_waits_for(&destructor, &registry);
    assert!(owner.join().unwrap());
}

#[test]
fn abandoned_tracked_future_is_dropped_before_release() {
    let registry = Registry::new(());
    let (slow, destructor) = SlowDrop::new();
    let tracked = registry.track(Owns(slow, pending::<()>())).unwrap();
    let owner = thread::spawn(move || drop(tracked));
    assert_drain_waits_for(&destructor, &registry);
    owner.join().unwrap();
}

/// A spawner that asserts that its registry already counts the task, and then drops the task.
#[derive(Clone, Default)]
struct CountCheckingSpawner(Arc<Mutex<Option<Registry<CountCheckingSpawner>>>>);

impl Spawner for CountCheckingSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let registry = self.0.lock().unwrap().clone().unwrap();
        assert_eq!(registry.in_flight(), 1, "the task is counted before the spawner receives it");
        drop(task);
        assert_eq!(registry.in_flight(), 0);
    }
}

#[test]
fn task_is_counted_before_the_spawner_receives_it() {
    let spawner = CountCheckingSpawner::default();
    let registry = Registry::new(spawner.clone());
    *spawner.0.lock().unwrap() = Some(registry.clone());
    registry.run(async {});
    assert_eq!(registry.summary().abandoned, 1);
    *spawner.0.lock().unwrap() = None;
}
