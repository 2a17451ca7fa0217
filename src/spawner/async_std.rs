use super::{BlockingSpawner, Spawner};

/// Spawns on async-std's global executor, and blocking work on its thread pool; works from any thread.
///
/// async-std is discontinued (RUSTSEC-2025-0052). This serves programs that have it; for a new one take [smol](https://docs.rs/smol).
/// Its `spawn_local` is unstable, so there is no `LocalSpawner` here. What is in flight when `main` returns is lost without its destructors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AsyncStdSpawner;

impl Spawner for AsyncStdSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        async_std::task::spawn(task);
    }
}

impl BlockingSpawner for AsyncStdSpawner {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        async_std::task::spawn_blocking(work);
    }
}
