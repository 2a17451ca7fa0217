use background_tasks::Spawner;
use bevy_tasks::TaskPool;
use std::ops::Deref;

/// Spawns on a task pool of bevy, from any thread.
///
/// A pool that is dropped stops its threads and then drops its tasks, which count as abandoned. bevy's own pools are statics: tasks in
/// flight when `main` returns are lost, and their destructors do not run. A panic of a task that was spawned without a registry does not
/// end the pool. bevy has no threads for blocking work: run it in a task on `AsyncComputeTaskPool`.
///
/// This type is not available on wasm, where bevy spawns on the event loop of the page.
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
    /// Returns a spawner for one of bevy's own pools. For another pool, write `BevySpawner(pool)`, for example with an `Arc<TaskPool>`.
    pub fn new(pool: &'static TaskPool) -> Self {
        Self(pool)
    }
}

impl<P: Deref<Target = TaskPool>> Spawner for BevySpawner<P> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(task).detach();
    }
}
