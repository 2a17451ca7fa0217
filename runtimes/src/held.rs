//! Keeps the futures of the runtimes that do not keep their own.
//!
//! monoio and glommio know a task while it is queued. While it waits its wakers own it: one that outlives the runtime keeps the task, and
//! the last one drops it on whatever thread it is (monoio), though it is not `Send`. So their futures stand here, on their own thread, and
//! the runtime gets a [`Held`] in place of each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::{self, ThreadId};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What this thread's runtimes have in flight, by runtime and number, but for what is being polled. Its destructor is the thread's end.
#[derive(Default)]
struct Tasks {
    waiting: RefCell<BTreeMap<usize, BTreeMap<u64, Task>>>,
    started: Cell<u64>,
}

thread_local!(static TASKS: Tasks = Tasks::default());

/// Stands for a task of this thread; may be dropped on any.
pub(crate) struct Held {
    thread: ThreadId,
    runtime: usize,
    number: u64,
}

/// Takes a task of one of this thread's runtimes into keeping.
pub(crate) fn hold(runtime: usize, task: impl Future<Output = ()> + 'static) -> Held {
    TASKS.with(|tasks| {
        let number = tasks.started.get();
        tasks.started.set(number + 1);
        let held = Held { thread: thread::current().id(), runtime, number };
        held.put(Box::pin(task));
        held
    })
}

/// Returns whether a runtime has had a task here.
#[cfg(all(feature = "glommio", target_os = "linux"))]
pub(crate) fn knows(runtime: usize) -> bool {
    TASKS.with(|tasks| tasks.waiting.borrow().contains_key(&runtime))
}

/// Drops what a runtime of this thread has in flight.
pub(crate) fn drop_all(runtime: usize) {
    // At the thread's end they are gone already. What is dropped may come back here, so it is taken out first.
    let tasks = TASKS.try_with(|tasks| tasks.waiting.borrow_mut().remove(&runtime));
    drop(tasks);
}

impl Held {
    fn put(&self, task: Task) {
        TASKS.with(|tasks| tasks.waiting.borrow_mut().entry(self.runtime).or_default().insert(self.number, task));
    }

    fn take(&self) -> Option<Task> {
        TASKS.try_with(|tasks| tasks.waiting.borrow_mut().get_mut(&self.runtime)?.remove(&self.number)).ok().flatten()
    }
}

impl Future for Held {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // It is not there when it was dropped before its runtime let go of it.
        let Some(mut task) = self.take() else { return Poll::Ready(()) };
        let polled = task.as_mut().poll(cx);
        if polled.is_pending() {
            self.put(task);
        }
        polled
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.thread == thread::current().id() {
            drop(self.take());
        }
    }
}

/// Calls a runtime that panics outside itself without saying what to do about it, and panics again, saying so.
#[track_caller]
pub(crate) fn inside<T>(advice: &str, call: impl FnOnce() -> T) -> T {
    // Not `unwrap_or_else`, whose closure would be blamed in place of the caller.
    let Ok(called) = catch_unwind(AssertUnwindSafe(call)) else { panic!("{advice}") };
    called
}
