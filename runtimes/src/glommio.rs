use crate::LONGEST_SLEEP;
use crate::advice::with_advice;
use crate::owned_tasks::{drop_all, is_known, store};
use background_tasks::{BlockingSpawner, LocalSpawner, Spawner, Timer};
use glommio::{Latency, Shares, SharesManager, executor, spawn_local_into, timer};
use std::rc::Rc;
use std::time::Duration;

/// Spawns tasks on the caller's glommio executor, in the caller's task queue. Runs blocking closures on the blocking threads of this
/// executor.
///
/// A task stays on the thread that started it, even if the task is `Send`. When an executor is dropped, its tasks are dropped too, and the
/// registry counts these tasks as abandoned. If a task was spawned without a registry and panics, the panic unwinds through
/// `LocalExecutor::run`. glommio needs Linux 5.8 or later.
///
/// In glommio, only the wakers of a waiting task own the task. A waker could therefore keep the task alive after its executor has been
/// dropped. To prevent this, this spawner stores the tasks itself, at the cost of one allocation for each task.
///
/// `LocalExecutorBuilder::blocking_thread_pool_placement` sets the number of blocking threads. Default: one thread.
///
/// # Panics
///
/// Each method panics if the calling thread is not in a glommio executor. The panic message explains how to correct the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GlommioSpawner;

const ADVICE: &str = "GlommioSpawner needs a glommio executor, and this thread is not in one: call it from a task or inside \
                      `LocalExecutor::run`";

/// Drops the tasks of an executor when the executor is dropped. The executor owns a task queue that this module has added, and this queue
/// owns this value. The queue itself contains no tasks.
struct DropTasks(usize);

impl SharesManager for DropTasks {
    fn shares(&self) -> usize {
        1
    }
}

impl Drop for DropTasks {
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
    /// Queues the task. This method does not call glommio's own `spawn_local`, because that function polls the task before it returns.
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        with_advice(ADVICE, || {
            let id = executor().id();
            if !is_known(id) {
                executor().create_task_queue(Shares::Dynamic(Rc::new(DropTasks(id))), Latency::NotImportant, "background-tasks");
            }
            let queue = executor().current_task_queue();
            spawn_local_into(store(id, task), queue).expect("the caller's queue exists").detach();
        });
    }
}

impl BlockingSpawner for GlommioSpawner {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        // glommio sends the closure to a blocking thread only at the first poll of this future. Therefore a task polls this future.
        self.spawn_local(with_advice(ADVICE, || executor().spawn_blocking(work)));
    }
}

impl Timer for GlommioSpawner {
    type Sleep = timer::Timer;

    #[track_caller]
    fn sleep(&self, duration: Duration) -> timer::Timer {
        // The duration is limited, because glommio adds it to the current time without a check for overflow.
        with_advice(ADVICE, || timer::Timer::new(duration.min(LONGEST_SLEEP)))
    }
}
