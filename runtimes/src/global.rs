use background_tasks::{BlockingSpawner, Spawner};

/// Spawns on the threads of async-global-executor, and runs blocking work on its thread pool, from any thread.
///
/// The executor is a static, and its threads end with the process. Tasks in flight when `main` returns are lost, and their destructors do
/// not run, so shut the registry down first. If a task that was spawned without a registry panics, the executor catches the panic.
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
