use background_tasks::{BlockingSpawner, LocalSpawner, Spawner};
use compio::runtime::Runtime;

/// Spawns on the compio runtime that the caller is in, and blocking work on that runtime's thread pool.
///
/// A task runs on the thread that started it, also one that is `Send`. A runtime drops its tasks when its last handle is dropped: they
/// count as abandoned; so does blocking work that has not begun, and what has goes on. A panic of a foreign task stays in its handle.
///
/// compio keeps at most 64 wake-ups from other threads: whoever wakes more, as a shutdown does, waits until the runtime's thread comes to
/// look, and as of compio 0.19 can then find that it sleeps and has missed the last. So tell `RuntimeBuilder::sync_queue_size` how many
/// tasks are in flight at most, or begin the shutdown on that thread.
///
/// # Panics
///
/// Each method panics outside a compio runtime, with what to do about it.
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

#[track_caller]
fn current(spawn: impl FnOnce(&Runtime)) {
    let inside = Runtime::try_with_current(spawn).is_ok();
    assert!(
        inside,
        "CompioSpawner spawns on the compio runtime that its caller is in, and this thread is in none: call it from a task, inside \
         `block_on`, or inside `runtime.enter`"
    );
}
