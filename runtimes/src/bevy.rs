use background_tasks::Spawner;
use bevy_tasks::TaskPool;
use std::ops::Deref;

/// Spawns tasks on a task pool of bevy. You can use this spawner on any thread.
///
/// When a pool is dropped, it stops its threads and drops its tasks, and the registry counts these tasks as abandoned. bevy's own pools are
/// statics and are never dropped. When `main` returns, tasks in flight on these pools are lost, and their destructors do not run.
///
/// If a task was spawned without a registry and panics, the pool keeps working. bevy has no threads for blocking work. Run blocking work in
/// a task on `AsyncComputeTaskPool`.
///
/// This type is not available on wasm. On wasm, bevy runs tasks on the event loop of the page.
///
/// # Examples
///
/// ```
/// use background_tasks::Registry;
/// use background_tasks_runtimes::BevySpawner;
/// use bevy_tasks::{IoTaskPool, TaskPool};
///
/// IoTaskPool::get_or_init(TaskPool::new); // bevy's `TaskPoolPlugin` calls this
/// let registry = Registry::new(BevySpawner::new(IoTaskPool::get()));
/// registry.run(async { println!("saved") });
/// assert_eq!(registry.shutdown().wait().completed, 1);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct BevySpawner<P = &'static TaskPool>(pub P);

impl BevySpawner {
    /// Returns a spawner for a pool that is a static, such as the pools that bevy provides. For another pool, write `BevySpawner(pool)`,
    /// where `pool` can be an `Arc<TaskPool>`.
    pub fn new(pool: &'static TaskPool) -> Self {
        Self(pool)
    }
}

impl<P: Deref<Target = TaskPool>> Spawner for BevySpawner<P> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(task).detach();
    }
}
