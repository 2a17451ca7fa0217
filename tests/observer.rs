//! S2, S6, S7: each loss is told once, before its count is given back, under no lock, and what an observer does hurts nobody.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]

mod common;

use background_tasks::{BlockingSpawner, LocalSpawner, Observer, Registry, RejectReason, Spawner, Summary, TaskInfo};
use common::{HANG, Manual, Owns, PanicDrop, poll_once};
use std::fmt;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, panic_any};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Writes all that it is told down, a line each.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn write(&self, task: &TaskInfo, what: &str) {
        self.0.lock().unwrap().push(format!("{} {what}", task.name().unwrap_or("-")));
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Observer for Notes {
    fn failed(&self, task: &TaskInfo, error: &str) {
        self.write(task, &format!("failed: {error}"));
    }

    fn panicked(&self, task: &TaskInfo, message: &str) {
        self.write(task, &format!("panicked: {message}"));
    }

    fn abandoned(&self, task: &TaskInfo) {
        self.write(task, "abandoned");
    }

    fn aborted(&self, task: &TaskInfo) {
        self.write(task, "aborted");
    }

    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {
        self.write(task, &format!("rejected: {reason:?}"));
    }

    fn shutdown_started(&self, in_flight: usize) {
        self.0.lock().unwrap().push(format!("shutdown with {in_flight}"));
    }

    fn drained(&self, summary: &Summary, _: Duration) {
        self.0.lock().unwrap().push(format!("drained: {summary}"));
    }
}

fn noted<S>(spawner: S) -> (Arc<Notes>, Registry<S>) {
    let notes = Arc::new(Notes::default());
    (notes.clone(), Registry::builder(spawner).observer(notes).build())
}

fn by_hand() -> (Manual, Arc<Notes>, Registry<Manual>) {
    let spawner = Manual::default();
    let (notes, registry) = noted(spawner.clone());
    (spawner, notes, registry)
}

#[test]
fn every_loss_is_told_with_its_name_and_what_went_well_is_not() {
    let (spawner, notes, registry) = by_hand();
    registry.named("good").run(async { Ok::<(), fmt::Error>(()) });
    registry.run(async { Err("no such mailbox") });
    registry.named("text").run(async { panic!("a text") });
    registry.named("format").run(async { panic!("number {}", 7) });
    registry.named("odd").run(async { panic_any(7) });
    spawner.poll_all();
    registry.named("left").run(pending::<()>());
    drop(spawner.take());
    assert_eq!(
        notes.take(),
        [
            "- failed: no such mailbox",
            "text panicked: a text",
            "format panicked: number 7",
            "odd panicked: (a payload that is no text)",
            "left abandoned"
        ]
    );
    let guard = registry.guard().unwrap();
    registry.shutdown();
    drop(guard);
    registry.named("late").run(async {});
    let told = notes.take();
    assert_eq!(
        told,
        [
            "shutdown with 1",
            "drained: 2 completed, 1 failed, 3 panicked, 1 abandoned, 0 aborted, 0 rejected",
            "late rejected: Drained"
        ]
    );
}

#[test]
fn a_destructor_s_panic_is_told_once_and_as_what_it_counts() {
    let (spawner, notes, registry) = by_hand();
    registry.named("done").run(Owns(PanicDrop, ready(())));
    spawner.poll_all();
    registry.named("left").run(Owns(PanicDrop, pending::<()>()));
    drop(spawner.take());
    let told = "panicked: intentional panic in a destructor";
    assert_eq!(notes.take(), [format!("done {told}"), format!("left {told}")]);
    assert_eq!(registry.summary().panicked, 2);
}

#[test]
fn what_is_tracked_and_a_guard_are_told_too() {
    let (_, notes, registry) = by_hand();
    let mut tracked = Box::pin(registry.named("polled").track(async { panic!("as planned") }).unwrap());
    catch_unwind(AssertUnwindSafe(|| poll_once(&mut tracked).map(|()| ()))).unwrap_err();
    drop(registry.named("left").track(pending::<()>()).unwrap());
    let guard = registry.named("held").guard().unwrap();
    catch_unwind(AssertUnwindSafe(|| {
        let _guard = guard;
        panic!("as planned");
    }))
    .unwrap_err();
    assert_eq!(notes.take(), ["polled panicked: as planned", "left abandoned", "held panicked: dropped by a panic"]);
}

struct BadError;

impl fmt::Display for BadError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("a Display's panic, as planned");
    }
}

#[test]
fn an_error_that_cannot_be_shown_is_a_failure_all_the_same() {
    let (spawner, notes, registry) = by_hand();
    registry.run(async { Err::<(), _>(BadError) });
    spawner.poll_all();
    assert_eq!(notes.take(), ["- failed: (an error whose Display panicked)"]);
    assert_eq!(registry.summary().failed, 1);
}

/// Where each door was called, in turn: the lines of this file.
struct Sites(Mutex<Vec<&'static Location<'static>>>);

impl Observer for Sites {
    fn rejected(&self, task: &TaskInfo, _: RejectReason) {
        self.0.lock().unwrap().push(task.location());
    }
}

#[derive(Clone)]
struct Nothing;

impl Spawner for Nothing {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, _: F) {}
}

impl LocalSpawner for Nothing {
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, _: F) {}
}

impl BlockingSpawner for Nothing {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, _: F) {}
}

#[test]
fn the_call_site_is_the_caller_s_by_every_door() {
    let sites = Arc::new(Sites(Mutex::default()));
    let registry = Registry::builder(Nothing).observer(sites.clone()).build();
    registry.shutdown();
    let first = line!() + 1;
    registry.run(async {});
    registry.try_run(async {}).unwrap_err();
    registry.run_local(async {});
    registry.try_run_local(async {}).unwrap_err();
    registry.run_blocking(|| {});
    registry.try_run_blocking(|| {}).unwrap_err();
    drop(registry.track(async {}).unwrap_err());
    registry.guard().unwrap_err();
    drop(poll_once(&mut registry.run_when_ready(async {})));
    registry.named("n").run(async {});
    registry.named("n").try_run(async {}).unwrap_err();
    registry.named("n").run_local(async {});
    registry.named("n").try_run_local(async {}).unwrap_err();
    registry.named("n").run_blocking(|| {});
    registry.named("n").try_run_blocking(|| {}).unwrap_err();
    drop(registry.named("n").track(async {}).unwrap_err());
    registry.named("n").guard().unwrap_err();
    drop(poll_once(&mut registry.named("n").run_when_ready(async {})));
    registry.critical().run(async {});
    let sites = sites.0.lock().unwrap();
    assert!(sites.iter().all(|site| site.file() == file!()));
    assert!(sites.iter().map(|site| site.line()).eq(first..first + 19), "{sites:?}");
}

/// Stops in each call until the test has looked.
struct Slow {
    called: Sender<&'static str>,
    go_on: Mutex<Receiver<()>>,
}

impl Slow {
    fn stop(&self, what: &'static str) {
        self.called.send(what).unwrap();
        self.go_on.lock().unwrap().recv_timeout(HANG).unwrap();
    }
}

impl Observer for Slow {
    fn failed(&self, _: &TaskInfo, _: &str) {
        self.stop("failed");
    }

    fn shutdown_started(&self, _: usize) {
        self.stop("begun");
    }

    fn drained(&self, _: &Summary, _: Duration) {
        self.stop("drained");
    }
}

#[test]
fn the_count_and_the_drain_wait_until_all_was_told() {
    let ((called, calls), (go_on, may_go_on)) = (channel(), channel());
    let spawner = Manual::default();
    let slow = Slow { called, go_on: Mutex::new(may_go_on) };
    let registry = Registry::builder(spawner.clone()).observer(slow).build();
    let expect = |what| assert_eq!(calls.recv_timeout(HANG).unwrap(), what);
    thread::scope(|scope| {
        registry.run(async { Err("as planned") });
        let running = scope.spawn(|| spawner.poll_all());
        expect("failed");
        assert_eq!((registry.in_flight(), registry.summary().failed), (1, 1));
        let shutdown = scope.spawn(|| registry.shutdown());
        expect("begun");
        assert!(registry.is_shutting_down());
        go_on.send(()).unwrap();
        go_on.send(()).unwrap();
        expect("drained");
        assert_eq!((registry.in_flight(), registry.is_drained()), (0, false));
        go_on.send(()).unwrap();
        running.join().unwrap();
        assert_eq!(shutdown.join().unwrap().wait_timeout(HANG).unwrap().failed, 1);
    });
    assert!(registry.is_drained());
}

struct Panics;

impl Observer for Panics {
    fn failed(&self, _: &TaskInfo, _: &str) {
        panic!("an observer's panic, as planned");
    }

    fn panicked(&self, _: &TaskInfo, _: &str) {
        panic!("an observer's panic, as planned");
    }

    fn rejected(&self, _: &TaskInfo, _: RejectReason) {
        panic!("an observer's panic, as planned");
    }

    fn shutdown_started(&self, _: usize) {
        panic!("an observer's panic, as planned");
    }

    fn drained(&self, _: &Summary, _: Duration) {
        panic!("an observer's panic, as planned");
    }
}

#[test]
fn an_observer_that_panics_while_a_panic_unwinds_ends_nothing() {
    let registry = Registry::builder(()).observer(Panics).build();
    let guard = registry.guard().unwrap();
    catch_unwind(AssertUnwindSafe(|| {
        let _guard = guard;
        panic!("as planned");
    }))
    .unwrap_err();
    assert_eq!((registry.in_flight(), registry.summary().panicked), (0, 1));
}

impl Drop for Panics {
    fn drop(&mut self) {
        panic!("an observer's destructor's panic, as planned");
    }
}

fn an_observer_that_panics_hurts_nobody<S: Spawner + Clone>(registry: &Registry<S>) {
    let notes = Arc::new(Notes::default());
    let observed = Registry::builder(registry.spawner().clone()).observer(Panics).observer(Panics).observer(notes.clone()).build();
    observed.run(async { Err("as planned") });
    let summary = observed.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.failed, summary.panicked), (1, 0));
    observed.run(async {});
    drop(observed);
    let told = notes.take();
    assert!(told.contains(&"- failed: as planned".to_owned()), "the next one is told: {told:?}");
    assert_eq!(told.len(), 4);
}

/// Does what the test says with the registry that it observes.
struct Calls<F>(F);

impl<F: Fn() + Send + Sync + 'static> Observer for Calls<F> {
    fn failed(&self, _: &TaskInfo, _: &str) {
        (self.0)();
    }
}

#[test]
fn an_observer_may_use_its_registry() {
    let spawner = Manual::default();
    let slot: Arc<Mutex<Option<Registry<Manual>>>> = Arc::default();
    let own = slot.clone();
    let calls = Calls(move || {
        let registry = own.lock().unwrap().take().unwrap();
        registry.named("owed").run(async {});
        registry.tasks();
        registry.abort();
        drop(registry.shutdown());
    });
    let registry = Registry::builder(spawner.clone()).observer(calls).inspect().build();
    *slot.lock().unwrap() = Some(registry.clone());
    registry.run(async { Err("as planned") });
    spawner.poll_all();
    let shutdown = registry.shutdown();
    drop(registry);
    spawner.poll_all();
    let summary = shutdown.wait_timeout(HANG).unwrap();
    assert_eq!((summary.failed, summary.aborted), (1, 1), "the abort found what it owed");
}

/// Reports each refusal by a task, which is refused too.
struct Reports(Mutex<Option<Registry<Manual>>>, Sender<RejectReason>);

impl Observer for Reports {
    fn rejected(&self, _: &TaskInfo, reason: RejectReason) {
        self.1.send(reason).unwrap();
        let registry = self.0.lock().unwrap().clone().unwrap();
        registry.run(async { unreachable!("it is full") });
    }
}

#[test]
fn a_refusal_that_comes_of_telling_one_is_counted_and_not_told() {
    let (told, tells) = channel();
    let reports = Arc::new(Reports(Mutex::default(), told));
    let registry = Registry::builder(Manual::default()).observer(reports.clone()).max_in_flight(1).build();
    *reports.0.lock().unwrap() = Some(registry.clone());
    registry.run(pending::<()>());
    for rejected in [2, 4] {
        registry.run(async {});
        assert_eq!(registry.summary().rejected, rejected);
    }
    *reports.0.lock().unwrap() = None;
    assert_eq!(tells.try_iter().count(), 2);
}

#[test]
fn the_observers_go_with_their_registry_and_the_next_one_has_none() {
    let (spawner, notes, registry) = by_hand();
    drop(registry.shutdown());
    drop(registry);
    assert_eq!(Arc::strong_count(&notes), 1);
    notes.take();
    for _ in 0..100 {
        let plain = Registry::new(spawner.clone());
        plain.run(async { Err("as planned") });
        spawner.poll_all();
    }
    assert_eq!(notes.take(), [""; 0]);
}

#[test]
fn a_shutdown_begun_by_many_is_told_once() {
    let (_, notes, registry) = by_hand();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| registry.shutdown().wait_timeout(HANG).unwrap());
        }
    });
    let told = notes.take();
    assert_eq!(told, ["shutdown with 0", "drained: 0 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected"]);
}

fn losses_are_told_on_every_runtime<S: Spawner + Clone>(registry: &Registry<S>) {
    let (notes, observed) = noted(registry.spawner().clone());
    observed.named("bad").run(async { Err("as planned") });
    observed.named("worse").run(async { panic!("as planned") });
    observed.named("good").run(async {});
    observed.shutdown().wait_timeout(HANG).unwrap();
    let mut told = notes.take();
    told.retain(|line| line.starts_with(['b', 'w', 'g']));
    told.sort();
    assert_eq!(told, ["bad failed: as planned", "worse panicked: as planned"]);
}

on_every_runtime!(an_observer_that_panics_hurts_nobody, losses_are_told_on_every_runtime);
