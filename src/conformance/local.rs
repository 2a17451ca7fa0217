//! What is checked on the executor's own thread.

#[cfg(panic = "unwind")]
use super::panics;
use super::{Checked, MANY, demand};
#[cfg(not(target_family = "wasm"))]
use crate::BoxLocalTask;
use crate::{LocalSpawner, Registry};
use futures_lite::future::yield_now;
use std::boxed::Box;
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::vec::Vec;

type Check<S> = fn(Registry<Rc<S>>) -> Pin<Box<dyn Future<Output = Checked>>>;

/// Checks a [`LocalSpawner`] where the thread must not be blocked, as in a browser; without threads and a limit, and on one spawner.
///
/// # Panics
///
/// If a promise is broken.
pub async fn local_tasks<S: LocalSpawner + 'static>(spawner: S) {
    let spawner = Rc::new(spawner);
    for (promise, check) in tasks() {
        if let Err(seen) = check(Registry::new(spawner.clone())).await {
            panic!("{} breaks a promise: {promise}. But {seen}", std::any::type_name::<S>());
        }
    }
}

pub(super) fn tasks<S: LocalSpawner + 'static>() -> Vec<(&'static str, Check<S>)> {
    std::vec![
        ("`spawn_local` returns before it polls the task", |registry| Box::pin(returns_at_once(registry))),
        ("a task is polled again when it has woken itself, to its end", |registry| Box::pin(runs_to_its_end(registry))),
        ("`spawn_local` takes tasks from tasks", |registry| Box::pin(from_tasks(registry))),
        #[cfg(panic = "unwind")]
        ("a panic harms nobody", |registry| Box::pin(panic_harms_nobody(registry))),
        #[cfg(not(target_family = "wasm"))]
        ("a task is polled again when another thread has woken it, before, while or after it was polled", |registry| {
            Box::pin(is_woken(registry))
        }),
        ("the others go on while a task waits, so that a drain is awaited inside the executor", |registry| {
            Box::pin(drains(registry))
        }),
        ("10,000 tasks are in flight at once", |registry| Box::pin(many(registry))),
    ]
}

async fn returns_at_once<S: LocalSpawner>(registry: Registry<Rc<S>>) -> Checked {
    let returned = Rc::new(Cell::new(false));
    let polled_inside = Rc::new(Cell::new(false));
    let (has_returned, polled) = (returned.clone(), polled_inside.clone());
    registry.run_local(async move { polled.set(!has_returned.get()) });
    returned.set(true);
    demand(registry.shutdown().await, 1, 0)?;
    if polled_inside.get() { Err("it polled the task inside `spawn_local`".into()) } else { Ok(()) }
}

async fn runs_to_its_end<S: LocalSpawner>(registry: Registry<Rc<S>>) -> Checked {
    let ends = Rc::new(Cell::new(0));
    for _ in 0..10 {
        let ends = ends.clone();
        registry.run_local(async move {
            for _ in 0..100 {
                yield_now().await;
            }
            ends.set(ends.get() + 1);
        });
    }
    demand(registry.shutdown().await, 10, 0)?;
    if ends.get() == 10 { Ok(()) } else { Err(format!("{} of 10 ran to their end", ends.get())) }
}

async fn from_tasks<S: LocalSpawner + 'static>(registry: Registry<Rc<S>>) -> Checked {
    for _ in 0..10 {
        let own = registry.clone();
        registry.run_local(async move {
            yield_now().await;
            own.run_local(yield_now());
        });
    }
    demand(registry.shutdown().await, 20, 0)
}

#[cfg(panic = "unwind")]
async fn panic_harms_nobody<S: LocalSpawner>(registry: Registry<Rc<S>>) -> Checked {
    for _ in 0..20 {
        registry.run_local(async { panics() });
        registry.run_local(yield_now());
    }
    registry.wait_idle().await;
    registry.run_local(yield_now());
    demand(registry.shutdown().await, 21, 20)
}

#[cfg(not(target_family = "wasm"))]
async fn is_woken<S: LocalSpawner>(registry: Registry<Rc<S>>) -> Checked {
    let (task, waking) = super::sent::woken_by_another_thread();
    registry.run_local(task);
    let summary = registry.shutdown().await;
    super::sent::late(waking);
    demand(summary, 1, 0)
}

async fn many<S: LocalSpawner>(registry: Registry<Rc<S>>) -> Checked {
    let go = Registry::new(());
    for _ in 0..MANY {
        registry.run_local(go.signal());
    }
    yield_now().await;
    go.shutdown();
    demand(registry.shutdown().await, MANY, 0)
}

async fn drains<S: LocalSpawner + 'static>(registry: Registry<Rc<S>>) -> Checked {
    let inside = Registry::new(registry.spawner().clone());
    for _ in 0..3 {
        inside.run_local(inside.signal());
    }
    let drained = Rc::new(Cell::new(None));
    let summary = drained.clone();
    registry.run_local(async move { summary.set(Some(inside.shutdown().await)) });
    demand(registry.shutdown().await, 1, 0)?;
    demand(drained.get().ok_or("nobody awaited it")?, 3, 0)
}

/// Runs a check on an executor.
#[cfg(not(target_family = "wasm"))]
pub(super) fn driven(drive: impl FnOnce(BoxLocalTask), check: impl Future<Output = Checked> + 'static) -> Checked {
    let (tell, told) = std::sync::mpsc::channel();
    drive(Box::pin(async move { tell.send(check.await).unwrap_or(()) }));
    told.try_recv().unwrap_or_else(|_| Err("it stopped half-way".into()))
}

#[cfg(not(target_family = "wasm"))]
pub(super) fn lets_go<S: LocalSpawner + 'static>(registry: Registry<S>, drive: impl FnOnce(BoxLocalTask)) -> Checked {
    use super::sent;
    let started = Registry::new(());
    let tasks = sent::waiting(&registry.signal(), &started);
    let expected = tasks.len();
    let registry = Rc::new(registry);
    let own = registry.clone();
    drive(Box::pin(async move {
        for task in tasks {
            own.run_local(task);
        }
        started.shutdown().await;
    }));
    let registry = Rc::into_inner(registry).ok_or("it keeps the future that it ran")?;
    sent::ends_abandoned(registry, expected, |registry| registry.run_local(std::future::pending::<()>()))
}
