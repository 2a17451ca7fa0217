//! An observer is told of the shutdown's beginning, of losses, and of the drain's end.

mod common;

use background_tasks::{Guard, Observer, Summary, TaskInfo};
use common::{ByHand, Effect, Polled, by_hand, check, on_shard};
use core::future::pending;
use core::time::Duration;
use std::sync::{Arc, Mutex};

type Registry = background_tasks::Registry<ByHand>;

/// Notes what it is told. A panic of loom's would be contained here: then the note is missing.
struct Notes {
    begun: Effect,
    lost: Effect,
    drained: Effect,
    told: Mutex<Vec<String>>,
}

impl Notes {
    fn new() -> Arc<Self> {
        Arc::new(Self { begun: Effect::new(), lost: Effect::new(), drained: Effect::new(), told: Mutex::default() })
    }

    fn note(&self, what: &str) {
        self.told.lock().unwrap().push(what.into());
    }

    /// Everything has been told, once, and this thread sees it.
    fn see(&self, losses: &[&str]) {
        let mut told = self.told.lock().unwrap().clone();
        assert_eq!(told.pop().as_deref(), Some("drained"));
        told.sort();
        let mut expected = [&["begun"], losses].concat();
        expected.sort();
        assert_eq!(told, expected);
        for effect in [&self.begun, &self.lost, &self.drained] {
            effect.see();
        }
    }
}

impl Observer for Notes {
    fn failed(&self, _: &TaskInfo, error: &str) {
        self.lost.happen();
        self.note(error);
    }

    fn abandoned(&self, _: &TaskInfo) {
        self.lost.happen();
        self.note("abandoned");
    }

    fn shutdown_started(&self, _: usize) {
        self.begun.happen();
        self.note("begun");
    }

    fn drained(&self, _: &Summary, _: Duration) {
        self.begun.see();
        self.lost.see();
        self.drained.happen();
        self.note("drained");
    }
}

fn observed() -> (Arc<Registry>, Arc<Notes>) {
    let notes = Notes::new();
    (Arc::new(by_hand().observer(notes.clone()).build()), notes)
}

fn leave(guard: Guard) -> loom::thread::JoinHandle<()> {
    on_shard(0, move || drop(guard))
}

/// S8: two begin the shutdown, and one tells it.
#[test]
fn two_begin() {
    check(2, || {
        let (registry, notes) = observed();
        let other = on_shard(1, {
            let (registry, notes) = (registry.clone(), notes.clone());
            move || {
                registry.shutdown();
                if registry.is_drained() {
                    notes.see(&[]);
                }
            }
        });
        registry.shutdown();
        if registry.is_drained() {
            notes.see(&[]);
        }
        other.join().unwrap();
        assert!(registry.is_drained());
        notes.see(&[]);
    });
}

/// S8: the end is told after the beginning, whoever comes last, and before it is seen or anybody is woken.
#[test]
fn the_last_one_leaves() {
    check(1, || {
        let (registry, notes) = observed();
        let guard = registry.guard().unwrap();
        let leaver = leave(guard);
        let mut shutdown = Polled::new(registry.shutdown());
        let polled = shutdown.poll();
        if polled.is_ready() || shutdown.is_woken() || registry.is_drained() {
            notes.see(&[]);
        }
        leaver.join().unwrap();
        notes.see(&[]);
        shutdown.finish(polled);
    });
}

/// S8: the same as a third one sees it.
#[test]
fn a_third_one_looks() {
    check(1, || {
        let (registry, notes) = observed();
        let leaver = leave(registry.guard().unwrap());
        let closer = on_shard(0, {
            let registry = registry.clone();
            move || drop(registry.shutdown())
        });
        if registry.is_drained() {
            notes.see(&[]);
        }
        leaver.join().unwrap();
        closer.join().unwrap();
        notes.see(&[]);
    });
}

/// S2, S8: a loss is told before the drain's end, though another is the last.
#[test]
fn one_is_lost() {
    check(1, || {
        let (registry, notes) = observed();
        let task = registry.track(pending::<()>()).unwrap();
        let guard = registry.guard().unwrap();
        registry.shutdown();
        let loser = on_shard(0, move || drop(task));
        drop(guard);
        if registry.is_drained() {
            notes.see(&["abandoned"]);
        }
        loser.join().unwrap();
        notes.see(&["abandoned"]);
    });
}

/// S2, S8: and though that one leaves another shard.
#[test]
fn one_is_lost_on_another_shard() {
    check(2, || {
        let (registry, notes) = observed();
        let task = registry.track(pending::<()>()).unwrap();
        let guard = on_shard(1, {
            let registry = registry.clone();
            move || registry.guard().unwrap()
        });
        let leaver = on_shard(1, {
            let guard = guard.join().unwrap();
            move || drop(guard)
        });
        registry.shutdown();
        drop(task);
        if registry.is_drained() {
            notes.see(&["abandoned"]);
        }
        leaver.join().unwrap();
        notes.see(&["abandoned"]);
    });
}

/// S8: a failure that begins the shutdown does so while somebody else does.
#[test]
fn a_failure_begins_it() {
    check(1, || {
        let notes = Notes::new();
        let registry = by_hand().observer(notes.clone()).shutdown_on_failure().build();
        registry.run(async { Err::<(), _>("an error") });
        let mut task = registry.spawner().take();
        let worker = on_shard(0, move || assert!(task.poll().is_ready()));
        registry.shutdown();
        if registry.is_drained() {
            notes.see(&["an error"]);
        }
        worker.join().unwrap();
        notes.see(&["an error"]);
    });
}
