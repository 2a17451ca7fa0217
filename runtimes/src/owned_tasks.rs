//! Stores the tasks of runtimes that do not store waiting tasks.
//!
//! monoio and glommio own a task only while the task is queued. While the task waits, only its wakers own the task. If a waker outlives the
//! runtime, it therefore keeps the task alive. In monoio, the last waker drops the task on the thread of this waker, although the task is
//! not `Send`.
//!
//! To prevent both, this module stores each task on the task's own thread. The runtime receives a [`TaskRef`] in place of the task.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread::{self, ThreadId};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of the runtimes on this thread. When the thread ends, the destructor of this value drops the tasks.
#[derive(Default)]
struct OwnedTasks {
    /// All stored tasks, except tasks that are currently being polled. The first key is the runtime, and the second key is the number of
    /// the task.
    waiting: RefCell<BTreeMap<usize, BTreeMap<u64, Task>>>,
    next_number: Cell<u64>,
}

thread_local!(static TASKS: OwnedTasks = OwnedTasks::default());

/// A future that polls a stored task. This future can be dropped on any thread, but drops the stored task only on the task's thread.
pub(crate) struct TaskRef {
    thread: ThreadId,
    runtime: usize,
    number: u64,
}

/// Stores a task of a runtime on this thread.
pub(crate) fn store(runtime: usize, task: impl Future<Output = ()> + 'static) -> TaskRef {
    TASKS.with(|tasks| {
        let number = tasks.next_number.get();
        tasks.next_number.set(number + 1);
        let task_ref = TaskRef { thread: thread::current().id(), runtime, number };
        task_ref.put(Box::pin(task));
        task_ref
    })
}

/// Returns whether this thread has stored a task of this runtime since the last call to `drop_all`.
#[cfg(all(feature = "glommio", target_os = "linux"))]
pub(crate) fn is_known(runtime: usize) -> bool {
    TASKS.with(|tasks| tasks.waiting.borrow().contains_key(&runtime))
}

/// Drops the tasks of a runtime on this thread.
pub(crate) fn drop_all(runtime: usize) {
    // While the thread ends, `try_with` fails. This function then does nothing, because the destructor of `TASKS` drops the tasks. The
    // destructor of a task can use this module, so the tasks are dropped only after the borrow has ended.
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
        // If `drop_all` has already dropped the task, there is nothing to poll.
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
