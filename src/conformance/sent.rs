//! What is checked from a thread of the suite's, while the executor runs on others.

use super::{Checked, MANY, demand, panics};
use crate::platform::ignore_panic as shield;
use crate::{BlockingSpawner, Registry, ShutdownSignal, Spawner};
use futures_lite::future::{block_on, poll_fn, yield_now};
use std::future::pending;
use std::string::String;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};
use std::vec::Vec;

type Promise<R> = (&'static str, fn(&R) -> Checked);

pub(super) const LETS_GO: &str =
    "an executor that is dropped drops its tasks, whoever holds their wakers, and those that come later";

pub(super) fn tasks<S: Spawner + Send + Sync + 'static>() -> [Promise<Registry<Arc<S>>>; 7] {
    [
        ("`spawn` returns before its caller's thread polls the task, and does not wait for it", returns_at_once),
        ("a task is polled again when it has woken itself, to its end", runs_to_its_end),
        ("`spawn` takes tasks from any thread, and from tasks, and polls none there", from_any_thread),
        ("a panic harms nobody", panic_harms_nobody),
        ("a task is polled again when another thread has woken it, before, while or after it was polled", is_woken),
        ("the others go on while a task waits, so that a drain is awaited inside the executor and outside", drains),
        ("10,000 tasks are in flight at once", many),
    ]
}

fn returns_at_once<S: Spawner + Send + Sync + 'static>(registry: &Registry<Arc<S>>) -> Checked {
    let (go, may_go) = channel();
    let (tell, told) = channel();
    start(registry, tell, Some(may_go));
    go.send(()).unwrap_or(());
    demand(registry.shutdown().wait(), 1, 0)?;
    none_inside(&told)
}

fn none_inside(told: &Receiver<bool>) -> Checked {
    if told.iter().any(|inside| inside) { Err("it polled a task inside `spawn`".into()) } else { Ok(()) }
}

/// Starts a task that tells whether it is polled inside `spawn`, on its caller's stack; and that waits until it may go, if it is not.
fn start<S: Spawner>(registry: &Registry<S>, tell: Sender<bool>, may_go: Option<Receiver<()>>) {
    let here = thread::current().id();
    let returned = Arc::new(AtomicBool::new(false));
    let has_returned = returned.clone();
    registry.run(async move {
        let inside = thread::current().id() == here && !has_returned.load(Ordering::SeqCst);
        if let Some(may_go) = may_go.filter(|_| !inside) {
            may_go.recv().unwrap_or(());
        }
        tell.send(inside).unwrap_or(());
    });
    returned.store(true, Ordering::SeqCst);
}

fn runs_to_its_end<S: Spawner>(registry: &Registry<S>) -> Checked {
    let ends = Arc::new(AtomicUsize::new(0));
    for _ in 0..10 {
        let ends = ends.clone();
        registry.run(async move {
            for _ in 0..100 {
                yield_now().await;
            }
            ends.fetch_add(1, Ordering::SeqCst);
        });
    }
    demand(registry.shutdown().wait(), 10, 0)?;
    let ends = ends.load(Ordering::SeqCst);
    if ends == 10 { Ok(()) } else { Err(format!("{ends} of 10 ran to their end")) }
}

fn from_any_thread<S: Spawner + Send + Sync + 'static>(registry: &Registry<Arc<S>>) -> Checked {
    let (tell, told) = channel();
    let spawn = |registry: Registry<Arc<S>>| {
        for _ in 0..10 {
            let (own, tell) = (registry.clone(), tell.clone());
            registry.run(async move { start(&own, tell, None) });
        }
    };
    on_threads(registry, spawn)?;
    drop(tell);
    demand(registry.shutdown().wait(), 80, 0)?;
    none_inside(&told)
}

/// Starts work from four threads, at once.
fn on_threads<S: Send + Sync + 'static>(registry: &Registry<Arc<S>>, spawn: impl Fn(Registry<Arc<S>>) + Copy + Send) -> Checked {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| registry.clone()).map(|own| scope.spawn(move || spawn(own))).collect();
        let panicked = threads.into_iter().filter_map(|thread| thread.join().err()).last();
        panicked.map_or(Ok(()), |panic| Err(format!("on another thread it panicked: {}", crate::platform::panic_message(&panic))))
    })
}

/// More panics than an executor has threads, and then more tasks.
fn panic_harms_nobody<S: Spawner>(registry: &Registry<S>) -> Checked {
    for _ in 0..20 {
        registry.run(async { panics() });
        registry.run(yield_now());
    }
    block_on(registry.wait_idle());
    for _ in 0..20 {
        registry.run(yield_now());
    }
    demand(registry.shutdown().wait(), 40, 20)
}

fn is_woken<S: Spawner>(registry: &Registry<S>) -> Checked {
    let (task, waking) = woken_by_another_thread();
    registry.run(task);
    let summary = registry.shutdown().wait();
    late(waking);
    demand(summary, 1, 0)
}

const TURNS: usize = if cfg!(miri) { 10 } else { 1000 };

/// A task that another thread wakes after each poll but the last: in every other one while it is being polled still.
pub(super) fn woken_by_another_thread() -> (impl Future<Output = ()> + Send, JoinHandle<Option<Waker>>) {
    let (sender, wakers) = channel::<Waker>();
    let woken = Arc::new(AtomicUsize::new(0));
    let count = woken.clone();
    let waking = thread::spawn(move || {
        let wake = |_, waker: Waker| {
            waker.wake_by_ref();
            count.fetch_add(1, Ordering::SeqCst);
            Some(waker)
        };
        wakers.into_iter().fold(None, wake)
    });
    let mut turns = 0;
    let task = poll_fn(move |cx| {
        if turns == TURNS {
            return Poll::Ready(());
        }
        sender.send(cx.waker().clone()).unwrap_or(());
        turns += 1;
        while turns % 2 == 0 && woken.load(Ordering::SeqCst) < turns {
            thread::yield_now();
        }
        Poll::Pending
    });
    (task, waking)
}

/// Wakes a task that has ended.
pub(super) fn late(waking: JoinHandle<Option<Waker>>) {
    if let Ok(Some(waker)) = waking.join() {
        waker.wake();
    }
}

fn many<S: Spawner>(registry: &Registry<S>) -> Checked {
    let go = Registry::new(());
    for _ in 0..MANY {
        registry.run(go.signal());
    }
    let in_flight = registry.in_flight();
    go.shutdown();
    if in_flight != MANY {
        return Err(format!("{in_flight} of them were"));
    }
    demand(registry.shutdown().wait(), MANY, 0)
}

fn drains<S: Spawner + Send + Sync + 'static>(registry: &Registry<Arc<S>>) -> Checked {
    let begin = || {
        let registry = Registry::new(registry.spawner().clone());
        for _ in 0..3 {
            registry.run(registry.signal());
        }
        registry
    };
    demand(block_on(begin().shutdown()), 3, 0)?;
    let inside = begin();
    let (tell, told) = channel();
    registry.run(async move { tell.send(inside.shutdown().await).unwrap_or(()) });
    demand(registry.shutdown().wait(), 1, 0)?;
    demand(told.recv().map_err(|_| String::from("nobody awaited it"))?, 3, 0)
}

/// What outlives an executor that is dropped.
pub(super) type Wakers = Arc<Mutex<Vec<Waker>>>;

/// What an executor is dropped with: those that wait for a signal, which takes a waker of theirs and uses it; those of which somebody keeps
/// one; and those that nobody can wake. `started` drains when all have started: nobody asks again and again, which may keep an executor
/// from all else.
pub(super) fn waiting(
    signal: &ShutdownSignal,
    kept: &Wakers,
    started: &Registry<()>,
) -> Vec<impl Future<Output = ()> + Send + use<>> {
    let task = |kind| {
        let (signal, kept, starts) = (signal.clone(), kept.clone(), started.guard());
        async move {
            if kind == 0 {
                let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
                kept.lock().unwrap().push(waker);
            }
            drop(starts);
            if kind == 1 {
                signal.await;
            }
            pending::<()>().await;
        }
    };
    (0..30).map(|i| task(i % 3)).collect()
}

pub(super) fn lets_go<S: Spawner, E>(registry: Registry<S>, executor: E) -> Checked {
    let (started, kept) = (Registry::new(()), Wakers::default());
    let tasks = waiting(&registry.signal(), &kept, &started);
    let expected = tasks.len();
    for task in tasks {
        registry.run(task);
    }
    started.shutdown().wait();
    drop(executor);
    ends_abandoned(registry, expected, |registry| registry.run(pending::<()>()))
}

/// Starts one more task, on an executor that is no more, and drops the spawner.
pub(super) fn ends_abandoned<S>(registry: Registry<S>, expected: usize, late: impl FnOnce(&Registry<S>)) -> Checked {
    shield(|| late(&registry));
    let shutdown = registry.shutdown();
    drop(registry);
    let summary = shutdown.wait();
    if summary.abandoned == expected as u64 + 1 { Ok(()) } else { Err(format!("its tasks ended so: {summary}")) }
}

pub(super) fn blocking<S: BlockingSpawner + Send + Sync + 'static>() -> [Promise<Registry<Arc<S>>>; 5] {
    [
        ("`spawn_blocking` returns before the work has ended, and does it on another thread", blocks_nobody),
        ("the work is done", is_done),
        ("`spawn_blocking` takes work from any thread", work_from_any_thread),
        ("a panic harms nobody", panicking_work_harms_nobody),
        ("four closures block at once", beside_each_other),
    ]
}

fn blocks_nobody<S: BlockingSpawner>(registry: &Registry<S>) -> Checked {
    let here = thread::current().id();
    let (go, may_go) = channel();
    let (tell, told) = channel();
    registry.run_blocking(move || {
        let elsewhere = thread::current().id() != here;
        if elsewhere {
            may_go.recv().unwrap_or(());
        }
        tell.send(elsewhere).unwrap_or(());
    });
    go.send(()).unwrap_or(());
    demand(registry.shutdown().wait(), 1, 0)?;
    if told.recv() == Ok(true) { Ok(()) } else { Err("it was done on the caller's thread".into()) }
}

fn is_done<S: BlockingSpawner>(registry: &Registry<S>) -> Checked {
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let done = done.clone();
        registry.run_blocking(move || {
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    demand(registry.shutdown().wait(), 100, 0)?;
    let done = done.load(Ordering::SeqCst);
    if done == 100 { Ok(()) } else { Err(format!("{done} of 100 closures were called")) }
}

fn work_from_any_thread<S: BlockingSpawner + Send + Sync + 'static>(registry: &Registry<Arc<S>>) -> Checked {
    on_threads(registry, |registry| (0..10).for_each(|_| registry.run_blocking(|| ())))?;
    demand(registry.shutdown().wait(), 40, 0)
}

fn panicking_work_harms_nobody<S: BlockingSpawner>(registry: &Registry<S>) -> Checked {
    for _ in 0..20 {
        registry.run_blocking(panics);
        registry.run_blocking(|| ());
    }
    block_on(registry.wait_idle());
    registry.run_blocking(|| ());
    demand(registry.shutdown().wait(), 21, 20)
}

/// Each waits for all.
fn beside_each_other<S: BlockingSpawner>(registry: &Registry<S>) -> Checked {
    let barrier = Arc::new(std::sync::Barrier::new(4));
    for _ in 0..4 {
        let barrier = barrier.clone();
        registry.run_blocking(move || {
            barrier.wait();
        });
    }
    demand(registry.shutdown().wait(), 4, 0)
}
