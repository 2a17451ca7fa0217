use background_tasks::{BlockingSpawner, Spawner};

/// Spawns tasks on the threads of async-global-executor, and runs blocking closures on the executor's pool of blocking threads. You can use
/// this spawner on any thread.
///
/// The executor is a static and is never dropped. When `main` returns, tasks in flight are lost, and their destructors do not run. To avoid
/// this loss, wait for the registry's shutdown before `main` returns. If a task was spawned without a registry and panics, the executor
/// catches the panic.
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
