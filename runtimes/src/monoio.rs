use crate::advice::with_advice;
use crate::owned_tasks::{drop_all, store};
use background_tasks::{BlockingSpawner, BoxLocalTask, LocalSpawner, Spawner, Timer};
use monoio::time::sleep_until;
use std::future::poll_fn;
use std::task::Waker;
use std::time::Duration;

/// Spawns tasks on the caller's monoio runtime, and runs blocking closures on the thread pool that is attached to this runtime.
///
/// A task stays on the thread that started it, even if the task is `Send`. In monoio, only the wakers of a waiting task own the task. A
/// waker could therefore keep the task alive after its runtime has been dropped. To prevent this, this spawner stores the tasks itself, at
/// the cost of one allocation for each task.
///
/// When a thread ends or calls [`abandon_all`](Self::abandon_all), this spawner drops the tasks in flight on this thread, and the registry
/// counts these tasks as abandoned. A waiting task is also dropped if its last waker is dropped on the task's thread. If a task was spawned
/// without a registry and panics, the panic unwinds through `block_on`.
///
/// To run blocking closures, call `RuntimeBuilder::attach_thread_pool`. If the runtime has no thread pool, but has the setting
/// `BlockingStrategy::ExecuteLocal`, `spawn_blocking` runs the closure on the caller's thread before it returns. To use the timer, call
/// `RuntimeBuilder::enable_timer`.
///
/// # Panics
///
/// Each method panics if the calling thread is not in a monoio runtime. `spawn_blocking` also panics if the runtime has no thread pool and
/// does not use `BlockingStrategy::ExecuteLocal`. `sleep` also panics if the runtime has no timer. The panic message explains how to
/// correct the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MonoioSpawner;

/// The number that identifies a runtime in `owned_tasks`. monoio's runtimes have no IDs, so all runtimes of a thread share this number.
const RUNTIME: usize = 0;

const ADVICE: &str = "MonoioSpawner needs a monoio runtime, and this thread is not in one: call it from a task or inside `block_on`; for \
                      blocking work, call `attach_thread_pool` on the runtime's builder; for its timer, call `enable_timer` on the builder";

impl MonoioSpawner {
    /// Drops all tasks that this spawner has stored on the calling thread. The registry counts these tasks as abandoned. If a runtime is
    /// dropped and its thread continues, call this function on that thread after the drop.
    pub fn abandon_all() {
        drop_all(RUNTIME);
    }
}

impl Spawner for MonoioSpawner {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.spawn_local(task);
    }
}

impl LocalSpawner for MonoioSpawner {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        with_advice(ADVICE, || monoio::spawn(store(RUNTIME, task)));
    }
}

impl BlockingSpawner for MonoioSpawner {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        with_advice(ADVICE, || monoio::spawn_blocking(work));
    }
}

impl Timer for MonoioSpawner {
    type Sleep = BoxLocalTask;

    /// A future of monoio 0.2.4's timer always wakes the task that polled it first, even if another task polls it later. This method
    /// therefore returns a future that creates a new future of the timer when the waker changes.
    #[track_caller]
    fn sleep(&self, duration: Duration) -> BoxLocalTask {
        let mut sleep = with_advice(ADVICE, || Box::pin(monoio::time::sleep(duration)));
        let mut registered: Option<Waker> = None;
        Box::pin(poll_fn(move |cx| {
            if registered.as_ref().is_some_and(|waker| !waker.will_wake(cx.waker())) {
                sleep = Box::pin(sleep_until(sleep.deadline()));
            }
            registered.get_or_insert_with(|| cx.waker().clone()).clone_from(cx.waker());
            sleep.as_mut().poll(cx)
        }))
    }
}
