use background_tasks::{BlockingSpawner, Spawner};

/// Spawns on async-global-executor's threads, and blocking work on its thread pool; works from any thread.
///
/// The executor lives in a static and its threads end with the process: what is in flight when `main` returns is lost without its
/// destructors. Shut down first. A panic of a foreign task stays in its handle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GlobalExecutorSpawner;

impl Spawner for GlobalExecutorSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        async_global_executor::spawn(task).detach();
    }
}

impl BlockingSpawner for GlobalExecutorSpawner {
    fn spawn_blocking<F: FnOnce() + Send + 'static>(&self, work: F) {
        async_global_executor::spawn_blocking(work).detach();
    }
}
