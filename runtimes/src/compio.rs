use crate::LONGEST_SLEEP;
use background_tasks::{BlockingSpawner, BoxLocalTask, LocalSpawner, Spawner, Timer};
use compio::runtime::Runtime;
use compio::time::sleep_until;
use std::time::{Duration, Instant};

/// Spawns tasks on the caller's compio runtime, and runs blocking closures on the thread pool of this runtime.
///
/// A task stays on the thread that started it, even if the task is `Send`. When the last handle of a runtime is dropped, the runtime drops
/// its tasks, and the registry counts these tasks as abandoned. The runtime also drops blocking closures that have not started. A blocking
/// closure that has started continues. If a task was spawned without a registry and panics, the runtime catches the panic.
///
/// A compio runtime has a queue for wake-ups from other threads. By default, this queue holds at most 64 wake-ups. If a thread wakes more
/// tasks than this, the queue is full, and the thread waits until the runtime has emptied the queue. For example, a thread that starts the
/// shutdown wakes all waiting tasks. In compio 0.19, the runtime can miss the last wake-up and stay asleep. To avoid this bug, set
/// `RuntimeBuilder::sync_queue_size` to the largest number of tasks in flight, or start the shutdown on the runtime's thread.
///
/// # Panics
///
/// Each method panics if the calling thread is not in a compio runtime. The panic message explains how to correct the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompioSpawner;

impl Spawner for CompioSpawner {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.spawn_local(task);
    }
}

impl LocalSpawner for CompioSpawner {
    #[track_caller]
    fn spawn_local<F: Future<Output = ()> + 'static>(&self, task: F) {
        current(|runtime| runtime.spawn(task).detach());
    }
}

impl BlockingSpawner for CompioSpawner {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        current(|runtime| runtime.spawn_blocking(work).detach());
    }
}

impl Timer for CompioSpawner {
    type Sleep = BoxLocalTask;

    /// Returns a boxed future, because the type of compio's own future has no name.
    #[track_caller]
    fn sleep(&self, duration: Duration) -> BoxLocalTask {
        current(|_| ());
        Box::pin(sleep_until(Instant::now() + duration.min(LONGEST_SLEEP)))
    }
}

#[track_caller]
fn current(spawn: impl FnOnce(&Runtime)) {
    let is_inside = Runtime::try_with_current(spawn).is_ok();
    assert!(
        is_inside,
        "CompioSpawner needs a compio runtime, and this thread is not in one: call it from a task, inside `block_on`, or inside \
         `runtime.enter`"
    );
}
