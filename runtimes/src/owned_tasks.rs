//! Stores the futures of runtimes that do not store them.
//!
//! monoio and glommio own a task only while it is queued. While the task waits, its wakers own it. A waker that outlives the runtime then
//! keeps the task alive, and in monoio the last waker drops the task on its own thread, although the task is not `Send`. So this module
//! stores the futures on their thread, and the runtime receives a [`TaskRef`] in place of each future.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::{self, ThreadId};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of this thread's runtimes. Its destructor drops them when the thread ends.
#[derive(Default)]
struct OwnedTasks {
    /// The tasks that are not being polled, by runtime and task number.
    waiting: RefCell<BTreeMap<usize, BTreeMap<u64, Task>>>,
    next_number: Cell<u64>,
}

thread_local!(static TASKS: OwnedTasks = OwnedTasks::default());

/// A future that polls a stored task. It can be dropped on any thread, but drops its task only on the task's thread.
pub(crate) struct TaskRef {
    thread: ThreadId,
    runtime: usize,
    number: u64,
}

/// Stores a task of one of this thread's runtimes.
pub(crate) fn store(runtime: usize, task: impl Future<Output = ()> + 'static) -> TaskRef {
    TASKS.with(|tasks| {
        let number = tasks.next_number.get();
        tasks.next_number.set(number + 1);
        let task_ref = TaskRef { thread: thread::current().id(), runtime, number };
        task_ref.put(Box::pin(task));
        task_ref
    })
}

/// Returns whether a task of this runtime was stored on this thread, since the start of the thread or the last `drop_all`.
#[cfg(all(feature = "glommio", target_os = "linux"))]
pub(crate) fn is_known(runtime: usize) -> bool {
    TASKS.with(|tasks| tasks.waiting.borrow().contains_key(&runtime))
}

/// Drops the tasks of a runtime of this thread.
pub(crate) fn drop_all(runtime: usize) {
    // Fails while the thread ends: the destructor of `TASKS` drops the tasks. Destructors of tasks may use this module, so they run outside
    // the borrow.
    let tasks = TASKS.try_with(|tasks| tasks.waiting.borrow_mut().remove(&runtime));
    drop(tasks);
}

impl TaskRef {
    fn put(&self, task: Task) {
        TASKS.with(|tasks| tasks.waiting.borrow_mut().entry(self.runtime).or_default().insert(self.number, task));
    }

    fn take(&self) -> Option<Task> {
        TASKS.try_with(|tasks| tasks.waiting.borrow_mut().get_mut(&self.runtime)?.remove(&self.number)).ok().flatten()
    }
}

impl Future for TaskRef {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // `drop_all` may have dropped the task before the runtime drops this reference.
        let Some(mut task) = self.take() else { return Poll::Ready(()) };
        let polled = task.as_mut().poll(cx);
        if polled.is_pending() {
            self.put(task);
        }
        polled
    }
}

impl Drop for TaskRef {
    fn drop(&mut self) {
        if self.thread == thread::current().id() {
            drop(self.take());
        }
    }
}
