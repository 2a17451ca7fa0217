use super::{BlockingSpawner, Spawner};

/// Spawns on smol's global executor, and blocking work on its thread pool; works from any thread.
///
/// The global executor lives in a static and its threads end with the process: what is in flight when `main` returns is lost without
/// its destructors. Shut down first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SmolSpawner;

impl Spawner for SmolSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        smol::spawn(task).detach();
    }
}

impl BlockingSpawner for SmolSpawner {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        smol::unblock(work).detach();
    }
}
