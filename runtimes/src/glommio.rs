use crate::held::{drop_all, hold, inside, knows};
use background_tasks::{BlockingSpawner, LocalSpawner, Spawner};
use glommio::{Latency, Shares, SharesManager, executor, spawn_local_into};
use std::rc::Rc;

/// Spawns on the glommio executor that the caller is in, in the caller's task queue, and blocking work on that executor's threads.
///
/// A task runs on the thread that started it, also one that is `Send`. glommio leaves a task that waits to its wakers, so this keeps the
/// tasks instead, at the price of one allocation each: an executor that is dropped drops what it has in flight, which counts as abandoned.
/// A panic of a foreign task goes through `run`. Linux 5.8 or newer.
///
/// Blocking work has the threads that `LocalExecutorBuilder::blocking_thread_pool_placement` gives the executor: one, unless it says more.
///
/// # Panics
///
/// Each method panics outside a glommio executor, with what to do about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GlommioSpawner;

const ADVICE: &str = "GlommioSpawner spawns on the glommio executor that its caller is in, and this thread is in none: call it from a task \
                      or inside `LocalExecutor::run`";

/// Drops an executor's tasks with the executor, which owns it in a task queue where nothing ever is.
struct Owner(usize);

impl SharesManager for Owner {
    fn shares(&self) -> usize {
        1
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop_all(self.0);
    }
}

impl Spawner for GlommioSpawner {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.spawn_local(task);
    }
}

impl LocalSpawner for GlommioSpawner {
    /// Queues the task; glommio's own `spawn_local` would poll it here.
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        inside(ADVICE, || {
            let id = executor().id();
            if !knows(id) {
                executor().create_task_queue(Shares::Dynamic(Rc::new(Owner(id))), Latency::NotImportant, "background-tasks");
            }
            let queue = executor().current_task_queue();
            spawn_local_into(hold(id, task), queue).expect("the caller's queue is there").detach();
        });
    }
}

impl BlockingSpawner for GlommioSpawner {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        // It is sent to a thread when it is polled first.
        self.spawn_local(inside(ADVICE, || executor().spawn_blocking(work)));
    }
}
