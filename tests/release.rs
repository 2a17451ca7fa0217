//! S1, S2: a task is counted before it is started, and gone before its count is given back.
//!
//! Each scenario holds a destructor in the middle, on another thread, and looks at the registry from outside.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{BlockingSpawner, Registry, Spawner};
use common::{HANG, Manual, Owns, PanicPoll, SlowDrop, SlowDropControl, poll_once};
use std::fmt;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// While the destructor runs the registry must not have drained; when it has drained the destructor must have run.
fn held_until_gone<S>(registry: &Registry<S>, slow: &SlowDropControl) {
    slow.started.recv_timeout(HANG).unwrap();
    let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
    assert_eq!((stragglers.len(), registry.in_flight(), registry.is_drained()), (1, 1, false));
    assert_eq!(stragglers.summary(), registry.summary(), "nothing has ended yet");
    assert!(!slow.is_dropped());
    slow.resume.send(()).unwrap();
    registry.shutdown().wait_timeout(HANG).unwrap();
    assert!(slow.is_dropped());
}

fn a_slow_destructor_after_completion<S: Spawner>(registry: &Registry<S>) {
    let (slow, test) = SlowDrop::new();
    registry.run(Owns(slow, ready(())));
    held_until_gone(registry, &test);
}

fn a_slow_destructor_after_a_panic<S: Spawner>(registry: &Registry<S>) {
    let (slow, test) = SlowDrop::new();
    registry.run(PanicPoll(slow));
    held_until_gone(registry, &test);
}

fn a_slow_destructor_while_a_panic_unwinds<S: Spawner>(registry: &Registry<S>) {
    let (slow, test) = SlowDrop::new();
    registry.run(async move {
        let _slow = slow;
        panic!("a panic, as planned");
    });
    held_until_gone(registry, &test);
}

fn a_payload_with_a_slow_destructor<S: Spawner>(registry: &Registry<S>) {
    let (slow, test) = SlowDrop::new();
    let slow = Mutex::new(slow);
    registry.run(async move { panic_any(slow) });
    held_until_gone(registry, &test);
}

struct SlowError(#[allow(dead_code, reason = "dropped")] SlowDrop);

impl fmt::Display for SlowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a failure, as planned")
    }
}

fn an_error_with_a_slow_destructor<S: Spawner>(registry: &Registry<S>) {
    let (slow, test) = SlowDrop::new();
    registry.run(ready(Err::<(), _>(SlowError(slow))));
    held_until_gone(registry, &test);
}

on_every_runtime!(
    a_slow_destructor_after_completion,
    a_slow_destructor_after_a_panic,
    a_slow_destructor_while_a_panic_unwinds,
    a_payload_with_a_slow_destructor,
    an_error_with_a_slow_destructor,
);

#[test]
fn a_slow_destructor_on_abandonment() {
    let manual = Manual::default();
    let registry = Registry::new(manual.clone());
    let (slow, test) = SlowDrop::new();
    registry.run(Owns(slow, pending::<()>()));
    manual.poll_all();
    let owner = thread::spawn(move || drop(manual.take()));
    held_until_gone(&registry, &test);
    owner.join().unwrap();
    assert_eq!(registry.summary().abandoned, 1);
}

#[test]
fn a_slow_destructor_when_a_runtime_is_dropped() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let registry = Registry::new(runtime.handle().clone());
    let (slow, test) = SlowDrop::new();
    registry.run(Owns(slow, pending::<()>()));
    let owner = thread::spawn(move || drop(runtime));
    held_until_gone(&registry, &test);
    owner.join().unwrap();
    assert_eq!(registry.summary().abandoned, 1);
}

fn a_slow_destructor_of_blocking_work<S: BlockingSpawner>(registry: &Registry<S>) {
    let (slow, test) = SlowDrop::new();
    registry.run_blocking(move || drop(slow));
    held_until_gone(registry, &test);
    assert_eq!(registry.summary().completed, 1);
}

#[test]
fn a_slow_destructor_of_blocking_work_on_each_runtime() {
    common::tokio_multi_thread(|handle| a_slow_destructor_of_blocking_work(&Registry::new(handle)));
    a_slow_destructor_of_blocking_work(&Registry::new(background_tasks::SmolSpawner));
    a_slow_destructor_of_blocking_work(&Registry::new(background_tasks::AsyncStdSpawner));
}

#[test]
fn a_tracked_future_is_dropped_in_place_before_its_count_is_given_back() {
    let registry = Registry::new(());
    let (slow, test) = SlowDrop::new();
    let mut tracked = registry.track(Owns(slow, ready("output"))).unwrap();
    let owner = thread::spawn(move || (poll_once(&mut tracked), tracked));
    held_until_gone(&registry, &test);
    let (output, _kept) = owner.join().unwrap();
    assert_eq!(output, std::task::Poll::Ready("output"));
}

#[test]
fn a_tracked_future_that_panicked_is_gone_before_its_count_is_given_back() {
    let registry = Registry::new(());
    let (slow, test) = SlowDrop::new();
    let mut tracked = registry.track(PanicPoll(slow)).unwrap();
    let owner = thread::spawn(move || catch_unwind(AssertUnwindSafe(|| poll_once(&mut tracked))).is_err());
    held_until_gone(&registry, &test);
    assert!(owner.join().unwrap());
}

#[test]
fn a_tracked_future_that_is_dropped_is_gone_before_its_count_is_given_back() {
    let registry = Registry::new(());
    let (slow, test) = SlowDrop::new();
    let tracked = registry.track(Owns(slow, pending::<()>())).unwrap();
    let owner = thread::spawn(move || drop(tracked));
    held_until_gone(&registry, &test);
    owner.join().unwrap();
}

/// Tells what it saw when it was asked to spawn.
#[derive(Clone, Default)]
struct Looks(Arc<Mutex<Option<Registry<Looks>>>>);

impl Spawner for Looks {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let registry = self.0.lock().unwrap().clone().unwrap();
        assert_eq!(registry.in_flight(), 1, "counted before it is started");
        drop(task);
        assert_eq!(registry.in_flight(), 0);
    }
}

#[test]
fn a_task_is_counted_before_the_spawner_sees_it() {
    let spawner = Looks::default();
    let registry = Registry::new(spawner.clone());
    *spawner.0.lock().unwrap() = Some(registry.clone());
    registry.run(async {});
    assert_eq!(registry.summary().abandoned, 1);
    *spawner.0.lock().unwrap() = None;
}
