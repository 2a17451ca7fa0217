use crate::held::{drop_all, hold, inside};
use background_tasks::{BlockingSpawner, LocalSpawner, Spawner};

/// Spawns on the monoio runtime that the caller is in, and blocking work on the thread pool that is attached to it.
///
/// A task runs on the thread that started it, also one that is `Send`. monoio leaves a task that waits to its wakers, so this keeps the
/// tasks instead, at the price of one allocation each: what is in flight is dropped, and counts as abandoned, at the end of its thread, or
/// at [`abandon_all`](Self::abandon_all). What nobody can wake any more monoio drops at once. A panic of a foreign task goes through
/// `block_on`.
///
/// Blocking work needs `RuntimeBuilder::attach_thread_pool`; with `BlockingStrategy::ExecuteLocal` it blocks the caller.
///
/// # Panics
///
/// Each method panics outside a monoio runtime, with what to do about it; `run_blocking` inside one that has no thread pool, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MonoioSpawner;

/// A runtime of monoio says nothing of itself, so those of one thread are one.
const RUNTIME: usize = 0;

const ADVICE: &str = "MonoioSpawner spawns on the monoio runtime that its caller is in, and this thread is in none: call it from a task or \
                      inside `block_on`; for blocking work, give the runtime's builder a pool with `attach_thread_pool`";

impl MonoioSpawner {
    /// Drops what this thread has in flight, which then counts as abandoned: for a thread that outlives its runtime.
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
        inside(ADVICE, || monoio::spawn(hold(RUNTIME, task)));
    }
}

impl BlockingSpawner for MonoioSpawner {
    #[track_caller]
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        inside(ADVICE, || monoio::spawn_blocking(work));
    }
}
