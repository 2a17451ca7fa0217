//! A task with a handle ends while the owner of the handle polls, drops or aborts it.

use crate::common::{Effect, ManualSpawner, Polled, Task, check, manual_builder, race, spawn_on_shard};
use background_tasks::{JoinHandle, Loss, Registry};
use core::future::{Future, pending};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::sync::Arc;

/// Returns a registry with one task, the task, and the task's handle.
fn spawn<F>(future: F) -> (Arc<Registry<ManualSpawner>>, Task, JoinHandle<F::Output>)
where
    F: Future<Output: Send> + Send + 'static,
{
    let registry = Arc::new(manual_builder().build());
    let handle = registry.spawn(future);
    let task = registry.spawner().take();
    (registry, task, handle)
}

/// Returns a closure that polls the task. The task must end in this poll.
fn end(mut task: Task) -> impl FnOnce() + 'static {
    move || assert!(task.poll().is_ready())
}

/// A value that performs an effect when it is dropped.
struct Value(Effect);

impl Drop for Value {
    fn drop(&mut self) {
        self.0.perform();
    }
}

/// Invariants S2 and S11: When the handle returns the output, the task is no longer in flight and its effects are visible. If the
/// handle is pending, it is woken.
#[test]
fn end_races_joiner() {
    for swapped in [false, true] {
        check(1, move || {
            let effect = Effect::new();
            let own = effect.clone();
            let (registry, task, handle) = spawn(async move {
                own.perform();
                7
            });
            let mut handle = Polled::new(handle);
            let owner = registry.clone();
            let join = move || {
                let polled = handle.poll();
                if polled.is_ready() {
                    // This line comes before `in_flight`, because `in_flight` reads the gate with Acquire and would also make the
                    // effect visible.
                    effect.observe();
                    assert_eq!(owner.in_flight(), 0, "the output came before the release");
                }
                (handle, polled)
            };
            let ((), (handle, polled)) = race(swapped, end(task), join);
            assert_eq!(handle.finish(polled).unwrap(), 7);
            registry.shutdown().wait();
        });
    }
}

/// Invariant S11: A pending handle is polled again with another waker while the task ends. The handle is ready, or the new waker is
/// called.
#[test]
fn end_races_joiner_with_new_waker() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, task, handle) = spawn(async { 7 });
            let mut handle = Polled::new(handle);
            assert!(handle.poll().is_pending());
            let join = move || {
                let polled = handle.poll_with_new_waker();
                (handle, polled)
            };
            let ((), (handle, polled)) = race(swapped, end(task), join);
            assert_eq!(handle.finish(polled).unwrap(), 7);
            registry.shutdown().wait();
        });
    }
}

/// Invariant S11: A thread sees that no task is in flight or that the registry has drained. The handle is ready at this time.
#[test]
fn end_races_drain() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, task, handle) = spawn(async { 7 });
            let owner = registry.clone();
            let drain = move || {
                let mut shutdown = Polled::new(owner.shutdown());
                let is_empty = owner.in_flight() == 0;
                let drained = shutdown.poll();
                if is_empty || drained.is_ready() {
                    assert!(handle.is_finished());
                    assert!(Polled::new(handle).poll().is_ready(), "the release came before the output");
                }
                (shutdown, drained)
            };
            let ((), (shutdown, drained)) = race(swapped, end(task), drain);
            assert_eq!(shutdown.finish(drained).completed, 1);
            drop(registry);
        });
    }
}

/// Invariant S2: The handle is dropped while the task ends. The output is dropped before the task's count is released. No output is
/// dropped twice or leaked.
#[test]
fn end_races_drop_of_handle() {
    for swapped in [false, true] {
        check(1, move || {
            let effect = Effect::new();
            let value = Value(effect.clone());
            let (registry, task, handle) = spawn(async move { value });
            let owner = registry.clone();
            let detach = move || {
                drop(handle);
                let mut shutdown = Polled::new(owner.shutdown());
                let drained = shutdown.poll();
                if drained.is_ready() {
                    effect.observe();
                }
                (shutdown, drained)
            };
            let ((), (shutdown, drained)) = race(swapped, end(task), detach);
            shutdown.finish(drained);
            drop(registry);
        });
    }
}

/// Invariant L3: A task finishes in a poll while its handle aborts it. The task ends once, and its handle agrees with the summary.
#[test]
fn abort_races_end() {
    for swapped in [false, true] {
        check(1, move || {
            let (registry, task, handle) = spawn(async {});
            let aborter = handle.abort_handle();
            race(swapped, end(task), move || aborter.abort());
            let summary = registry.shutdown().wait();
            let is_aborted = now(handle).is_err();
            assert_eq!((summary.completed, summary.aborted), if is_aborted { (0, 1) } else { (1, 0) });
        });
    }
}

/// Invariant L3: The first poll of a task races an abort by its handle. The poll ends the task, or the abort wakes the task.
#[test]
fn abort_races_park() {
    abort_races_poll(false, 1);
}

/// Invariant L3: A waiting task is polled with another waker while its handle aborts it. The poll ends the task, or the abort calls
/// the new waker.
#[test]
fn abort_races_park_with_new_waker() {
    abort_races_poll(true, 1);
}

/// Invariant L3: Two threads abort a task while it is polled. The poll ends the task, or its latest waker is called.
#[test]
fn two_aborts_race_park() {
    abort_races_poll(false, 2);
    abort_races_poll(true, 2);
}

fn abort_races_poll(already_parked: bool, aborters: usize) {
    check(1, move || {
        let (registry, mut task, handle) = spawn(pending::<()>());
        if already_parked {
            assert!(task.poll().is_pending());
        }
        let worker = spawn_on_shard(0, move || {
            let polled = task.poll_with_new_waker();
            (task, polled)
        });
        let other = (aborters == 2).then(|| {
            let aborter = handle.abort_handle();
            spawn_on_shard(0, move || aborter.abort())
        });
        handle.abort();
        other.into_iter().for_each(|other| other.join().unwrap());
        let (task, polled) = worker.join().unwrap();
        task.finish(polled);
        assert_eq!(now(handle).unwrap_err().loss(), Loss::Aborted);
        assert_eq!(registry.shutdown().wait().aborted, 1);
    });
}

/// Invariant S9: A handle aborts an inspected task while this task ends and another task reuses its slot. The abort does not end
/// the other task.
#[test]
fn abort_of_inspected_task_races_reuse_of_slot() {
    check(1, || {
        let registry = Arc::new(manual_builder().inspect().build());
        let handle = registry.spawn(async {});
        let mut task = registry.spawner().take();
        let owner = registry.clone();
        let worker = spawn_on_shard(0, move || {
            assert!(task.poll().is_ready());
            owner.run(async {});
            assert!(owner.spawner().take().poll().is_ready());
        });
        handle.abort();
        worker.join().unwrap();
        let is_aborted = now(handle).is_err();
        let summary = registry.shutdown().wait();
        assert_eq!((summary.completed, summary.aborted), if is_aborted { (1, 1) } else { (2, 0) });
    });
}

/// Returns the output of a future that must be ready.
fn now<F: Future + Unpin>(mut future: F) -> F::Output {
    match Pin::new(&mut future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the task has ended, and the handle is not ready"),
    }
}
