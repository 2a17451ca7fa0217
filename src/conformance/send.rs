//! Checks a `Spawner`. The checks call the spawner on threads of the test suite, and not on the executor's threads.

use super::{CheckResult, MANY_TASKS, catch, expect_outcomes, panic_intentionally, panic_message};
use crate::{Registry, ShutdownSignal, Spawner};
use futures_lite::future::{block_on, poll_fn, yield_now};
use std::future::pending;
use std::string::String;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};
use std::vec::Vec;

/// A requirement and the function that checks it.
pub(super) type Check<R> = (&'static str, fn(&R) -> CheckResult);

pub(super) const DROPS_TASKS: &str =
    "an executor that is dropped drops its tasks, even if their wakers are kept, and the tasks that are spawned later";

pub(super) fn checks<S: Spawner + Send + Sync + 'static>() -> [Check<Registry<Arc<S>>>; 7] {
    [
        (
            "`spawn` returns without polling the task on the caller's stack, and before the task has finished",
            returns_without_polling,
        ),
        ("a task is polled again after it has woken itself, until it finishes", polls_until_finished),
        (
            "`spawn` can be called from any thread and from tasks, and polls no task on the caller's stack",
            spawns_from_threads_and_tasks,
        ),
        ("a panicking task affects no other task", survives_panics),
        ("a task is polled again after another thread has woken it, before, during or after a poll", polls_after_wake_by_thread),
        (
            "other tasks run while a task waits, so that a drain can be awaited inside the executor and outside it",
            runs_tasks_while_one_waits,
        ),
        ("10,000 tasks can be in flight simultaneously", runs_many_tasks),
    ]
}

fn returns_without_polling<S: Spawner + Send + Sync + 'static>(registry: &Registry<Arc<S>>) -> CheckResult {
    let (finish, may_finish) = channel();
    let (sender, polled_inside) = channel();
    run_stack_check(registry, sender, Some(may_finish));
    finish.send(()).unwrap_or(());
    expect_outcomes(registry.shutdown().wait(), 1, 0)?;
    expect_none_inside(&polled_inside)
}

fn expect_none_inside(polled_inside: &Receiver<bool>) -> CheckResult {
    if polled_inside.iter().any(|inside| inside) { Err("a task was polled inside `spawn`".into()) } else { Ok(()) }
}

/// Starts a task that sends a boolean to `polled_inside`. The boolean is true if [`Spawner::spawn`] itself polls the task, on the caller's
/// stack.
///
/// If `may_finish` is `Some` and `spawn` does not poll the task itself, the task blocks until `may_finish` has a message. The caller sends
/// this message only after `spawn` has returned. If an implementation of `spawn` waits for the end of the task, it therefore never returns,
/// and the check fails.
fn run_stack_check<S: Spawner>(registry: &Registry<S>, polled_inside: Sender<bool>, may_finish: Option<Receiver<()>>) {
    let caller = thread::current().id();
    let returned = Arc::new(AtomicBool::new(false));
    let has_returned = returned.clone();
    registry.run(async move {
        let inside = thread::current().id() == caller && !has_returned.load(Ordering::SeqCst);
        if let Some(may_finish) = may_finish.filter(|_| !inside) {
            may_finish.recv().unwrap_or(());
        }
        polled_inside.send(inside).unwrap_or(());
    });
    returned.store(true, Ordering::SeqCst);
}

fn polls_until_finished<S: Spawner>(registry: &Registry<S>) -> CheckResult {
    let finished = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let finished = finished.clone();
        registry.run(async move {
            for _ in 0..100 {
                yield_now().await;
            }
            finished.fetch_add(1, Ordering::SeqCst);
        });
    }
    expect_outcomes(registry.shutdown().wait(), 10, 0)?;
    let finished = finished.load(Ordering::SeqCst);
    if finished == 10 { Ok(()) } else { Err(format!("{finished} of 10 tasks finished")) }
}

fn spawns_from_threads_and_tasks<S: Spawner + Send + Sync + 'static>(registry: &Registry<Arc<S>>) -> CheckResult {
    let (sender, polled_inside) = channel();
    let spawn = |registry: Registry<Arc<S>>| {
        for _ in 0..10 {
            let (handle, sender) = (registry.clone(), sender.clone());
            registry.run(async move { run_stack_check(&handle, sender, None) });
        }
    };
    on_four_threads(registry, spawn)?;
    drop(sender);
    expect_outcomes(registry.shutdown().wait(), 80, 0)?;
    expect_none_inside(&polled_inside)
}

/// Calls the closure `spawn` on four threads simultaneously.
pub(super) fn on_four_threads<S: Send + Sync + 'static>(
    registry: &Registry<Arc<S>>,
    spawn: impl Fn(Registry<Arc<S>>) + Copy + Send,
) -> CheckResult {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| registry.clone()).map(|handle| scope.spawn(move || spawn(handle))).collect();
        let panicked = threads.into_iter().filter_map(|thread| thread.join().err()).last();
        panicked.map_or(Ok(()), |payload| Err(format!("a call on another thread panicked: {}", panic_message(payload))))
    })
}

/// Runs more panicking tasks than an executor usually has threads. If each panic ended a thread, no thread would remain. After these tasks
/// have ended, this function runs tasks that must complete.
fn survives_panics<S: Spawner>(registry: &Registry<S>) -> CheckResult {
    for _ in 0..20 {
        registry.run(async { panic_intentionally() });
        registry.run(yield_now());
    }
    block_on(registry.wait_idle());
    for _ in 0..20 {
        registry.run(yield_now());
    }
    expect_outcomes(registry.shutdown().wait(), 40, 20)
}

fn polls_after_wake_by_thread<S: Spawner>(registry: &Registry<S>) -> CheckResult {
    let (task, waking_thread) = woken_by_another_thread();
    registry.run(task);
    let summary = registry.shutdown().wait();
    wake_finished_task(waking_thread);
    expect_outcomes(summary, 1, 0)
}

const WAKES: usize = if cfg!(miri) { 10 } else { 1000 };

/// Returns a task and the thread that wakes the task. The thread wakes the task one time for each poll except the last poll. At its end,
/// the thread returns the waker that it called last.
///
/// Each poll with an even number (2, 4, 6 and so on) blocks until the thread has called the waker. The executor must therefore handle a
/// wake-up during a poll.
pub(super) fn woken_by_another_thread() -> (impl Future<Output = ()> + Send, JoinHandle<Option<Waker>>) {
    let (sender, wakers) = channel::<Waker>();
    let woken = Arc::new(AtomicUsize::new(0));
    let count = woken.clone();
    let waking_thread = thread::spawn(move || {
        let wake = |_, waker: Waker| {
            waker.wake_by_ref();
            count.fetch_add(1, Ordering::SeqCst);
            Some(waker)
        };
        wakers.into_iter().fold(None, wake)
    });
    let mut polls = 0;
    let task = poll_fn(move |cx| {
        if polls == WAKES {
            return Poll::Ready(());
        }
        sender.send(cx.waker().clone()).unwrap_or(());
        polls += 1;
        while polls % 2 == 0 && woken.load(Ordering::SeqCst) < polls {
            thread::yield_now();
        }
        Poll::Pending
    });
    (task, waking_thread)
}

/// Wakes the task of [`woken_by_another_thread`] one more time after the task has finished.
pub(super) fn wake_finished_task(waking_thread: JoinHandle<Option<Waker>>) {
    if let Ok(Some(waker)) = waking_thread.join() {
        waker.wake();
    }
}

fn runs_many_tasks<S: Spawner>(registry: &Registry<S>) -> CheckResult {
    let finish = Registry::new(());
    for _ in 0..MANY_TASKS {
        registry.run(finish.signal());
    }
    let in_flight = registry.in_flight();
    finish.start_shutdown();
    if in_flight != MANY_TASKS {
        return Err(format!("{in_flight} of {MANY_TASKS} waiting tasks are in flight"));
    }
    expect_outcomes(registry.shutdown().wait(), MANY_TASKS, 0)
}

fn runs_tasks_while_one_waits<S: Spawner + Send + Sync + 'static>(registry: &Registry<Arc<S>>) -> CheckResult {
    let with_three_tasks = || {
        let registry = Registry::new(registry.spawner().clone());
        for _ in 0..3 {
            registry.run(registry.signal());
        }
        registry
    };
    expect_outcomes(block_on(with_three_tasks().shutdown()), 3, 0)?;
    let inner = with_three_tasks();
    let (sender, summary) = channel();
    registry.run(async move { sender.send(inner.shutdown().await).unwrap_or(()) });
    expect_outcomes(registry.shutdown().wait(), 1, 0)?;
    expect_outcomes(summary.recv().map_err(|_| String::from("the inner drain was not awaited"))?, 3, 0)
}

/// A list of wakers that outlive their executor.
pub(super) type Wakers = Arc<Mutex<Vec<Waker>>>;

/// Returns tasks that never finish, so they are still in flight when the check drops the executor.
///
/// One third of the tasks store their wakers in `kept`, and these wakers outlive the executor. Another third wait for `signal`, which
/// stores their wakers and calls them later. The last third do not store their wakers, so nothing can wake these tasks.
///
/// Each task holds a guard of the registry `started` until its first poll. Therefore the drain of `started` ends when each task has been
/// polled. The tasks do not wake themselves, because some executors would then poll only one task again and again.
pub(super) fn waiting_tasks(
    signal: &ShutdownSignal,
    kept: &Wakers,
    started: &Registry<()>,
) -> Vec<impl Future<Output = ()> + Send + use<>> {
    let task = |kind| {
        let (signal, kept, starting) = (signal.clone(), kept.clone(), started.guard());
        async move {
            if kind == 0 {
                let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
                kept.lock().unwrap().push(waker);
            }
            drop(starting);
            if kind == 1 {
                signal.await;
            }
            pending::<()>().await;
        }
    };
    (0..30).map(|i| task(i % 3)).collect()
}

pub(super) fn drops_tasks<S: Spawner, E>(registry: Registry<S>, executor: E) -> CheckResult {
    let (started, kept) = (Registry::new(()), Wakers::default());
    let tasks = waiting_tasks(&registry.signal(), &kept, &started);
    let expected = tasks.len();
    for task in tasks {
        registry.run(task);
    }
    started.shutdown().wait();
    drop(executor);
    expect_abandoned(registry, expected, |registry| registry.run(pending::<()>()))
}

/// Checks whether all tasks of a dropped executor are abandoned. First calls `run_late`, which starts one more task on the dropped
/// executor. This call is allowed to panic. Then drops the spawner, and checks the outcomes.
pub(super) fn expect_abandoned<S>(registry: Registry<S>, expected: usize, run_late: impl FnOnce(&Registry<S>)) -> CheckResult {
    let _ = catch(|| run_late(&registry));
    let shutdown = registry.shutdown();
    drop(registry);
    let summary = shutdown.wait();
    let expected = expected as u64 + 1;
    if summary.abandoned == expected { Ok(()) } else { Err(format!("the outcomes are: {summary}; expected: {expected} abandoned")) }
}
