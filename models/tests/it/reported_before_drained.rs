//! Observers are notified of the start of the shutdown, of losses, and of the end of the drain before any thread can see the
//! registry as drained.

use crate::common::{Effect, ManualSpawner, Polled, check, manual_builder, spawn_on_shard};
use background_tasks::{Guard, Loss, Observer, Summary, TaskInfo};
use core::future::pending;
use core::time::Duration;
use std::sync::{Arc, Mutex};

type Registry = background_tasks::Registry<ManualSpawner>;

/// An observer that records its events.
///
/// If loom raises a panic inside an observer, the registry catches this panic. In this case, the event is missing from the list
/// `events`, and the model fails.
struct Recorder {
    started: Effect,
    lost: Effect,
    drained: Effect,
    events: Mutex<Vec<String>>,
}

impl Recorder {
    fn new() -> Arc<Self> {
        Arc::new(Self { started: Effect::new(), lost: Effect::new(), drained: Effect::new(), events: Mutex::default() })
    }

    fn record(&self, event: &str) {
        self.events.lock().unwrap().push(event.into());
    }

    /// Asserts that the start of the shutdown, the given losses and the end of the drain were each reported once. The end must come
    /// last. Asserts also that the calling thread observes these reports.
    fn assert_all_reported(&self, losses: &[&str]) {
        let mut events = self.events.lock().unwrap().clone();
        assert_eq!(events.pop().as_deref(), Some("drained"));
        events.sort();
        let mut expected = [&["shutdown started"], losses].concat();
        expected.sort();
        assert_eq!(events, expected);
        for effect in [&self.started, &self.lost, &self.drained] {
            effect.observe();
        }
    }
}

impl Observer for Recorder {
    fn lost(&self, _: &TaskInfo, loss: &Loss<'_>) {
        self.lost.perform();
        self.record(match *loss {
            Loss::Failed(error) => error,
            _ => loss.outcome(),
        });
    }

    fn shutdown_started(&self, _: usize) {
        self.started.perform();
        self.record("shutdown started");
    }

    fn drained(&self, _: &Summary, _: Duration) {
        self.started.observe();
        self.lost.observe();
        self.drained.perform();
        self.record("drained");
    }
}

fn observed() -> (Arc<Registry>, Arc<Recorder>) {
    let recorder = Recorder::new();
    (Arc::new(manual_builder().observer(recorder.clone()).build()), recorder)
}

fn spawn_leave(guard: Guard) -> loom::thread::JoinHandle<()> {
    spawn_on_shard(0, move || drop(guard))
}

/// Invariant S8: Two threads start the shutdown. Observers receive one report of the start.
#[test]
fn start_by_two_threads_is_reported_once() {
    check(2, || {
        let (registry, recorder) = observed();
        let other = spawn_on_shard(1, {
            let (registry, recorder) = (registry.clone(), recorder.clone());
            move || {
                registry.start_shutdown();
                if registry.is_drained() {
                    recorder.assert_all_reported(&[]);
                }
            }
        });
        registry.start_shutdown();
        if registry.is_drained() {
            recorder.assert_all_reported(&[]);
        }
        other.join().unwrap();
        assert!(registry.is_drained());
        recorder.assert_all_reported(&[]);
    });
}

/// Invariant S8: The end of the drain is reported after the start of the shutdown and before any waiter is woken. Either the last
/// task or the shutdown may drain the gate.
#[test]
fn end_is_reported_before_waiters_are_woken() {
    check(1, || {
        let (registry, recorder) = observed();
        let guard = registry.guard().unwrap();
        let leaver = spawn_leave(guard);
        let mut shutdown = Polled::new(registry.shutdown());
        let polled = shutdown.poll();
        if polled.is_ready() || shutdown.is_woken() || registry.is_drained() {
            recorder.assert_all_reported(&[]);
        }
        leaver.join().unwrap();
        recorder.assert_all_reported(&[]);
        shutdown.finish(polled);
    });
}

/// Invariant S8: If `is_drained` returns true on a third thread, the observers have received all reports.
#[test]
fn end_is_reported_before_a_third_thread_sees_it() {
    check(1, || {
        let (registry, recorder) = observed();
        let leaver = spawn_leave(registry.guard().unwrap());
        let closer = spawn_on_shard(0, {
            let registry = registry.clone();
            move || drop(registry.shutdown())
        });
        if registry.is_drained() {
            recorder.assert_all_reported(&[]);
        }
        leaver.join().unwrap();
        closer.join().unwrap();
        recorder.assert_all_reported(&[]);
    });
}

/// Invariants S2 and S8: A loss is reported before the end of the drain, even if another task ends last.
#[test]
fn loss_is_reported_before_end() {
    check(1, || {
        let (registry, recorder) = observed();
        let task = registry.track(pending::<()>()).unwrap();
        let guard = registry.guard().unwrap();
        registry.start_shutdown();
        let dropper = spawn_on_shard(0, move || drop(task));
        drop(guard);
        if registry.is_drained() {
            recorder.assert_all_reported(&["abandoned"]);
        }
        dropper.join().unwrap();
        recorder.assert_all_reported(&["abandoned"]);
    });
}

/// Invariants S2 and S8: A loss is reported before the end of the drain, even if the last task ends on another shard.
#[test]
fn loss_is_reported_before_end_on_another_shard() {
    check(2, || {
        let (registry, recorder) = observed();
        let task = registry.track(pending::<()>()).unwrap();
        let guard = spawn_on_shard(1, {
            let registry = registry.clone();
            move || registry.guard().unwrap()
        });
        let leaver = spawn_on_shard(1, {
            let guard = guard.join().unwrap();
            move || drop(guard)
        });
        registry.start_shutdown();
        drop(task);
        if registry.is_drained() {
            recorder.assert_all_reported(&["abandoned"]);
        }
        leaver.join().unwrap();
        recorder.assert_all_reported(&["abandoned"]);
    });
}

/// Invariant S8: A failed task and another thread start the shutdown at the same time. The failure, the start and the end are each
/// reported once.
#[test]
fn failure_that_starts_shutdown_is_reported_before_end() {
    check(1, || {
        let recorder = Recorder::new();
        let registry = manual_builder().observer(recorder.clone()).shutdown_on_failure().build();
        registry.run(async { Err::<(), _>("an error") });
        let mut task = registry.spawner().take();
        let worker = spawn_on_shard(0, move || assert!(task.poll().is_ready()));
        registry.start_shutdown();
        if registry.is_drained() {
            recorder.assert_all_reported(&["an error"]);
        }
        worker.join().unwrap();
        recorder.assert_all_reported(&["an error"]);
    });
}
