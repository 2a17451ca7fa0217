use background_tasks::Spawner;
use bevy_tasks::TaskPool;
use std::ops::Deref;

/// Spawns on a task pool of bevy, from any thread.
///
/// A pool that is dropped waits until its threads come to look, then drops its tasks: they count as abandoned. bevy's own pools live in
/// statics: what is in flight when `main` returns is lost without its destructors. A panic of a foreign task ends nothing. For work that
/// blocks bevy has no place but a task that blocks, on `AsyncComputeTaskPool`.
///
/// Not on wasm, where bevy's tasks are the page's.
///
/// # Examples
///
/// ```
/// use background_tasks::Registry;
/// use background_tasks_runtimes::BevySpawner;
/// use bevy_tasks::{IoTaskPool, TaskPool};
///
/// IoTaskPool::get_or_init(TaskPool::new); // bevy's `TaskPoolPlugin` does that
/// let registry = Registry::new(BevySpawner::new(IoTaskPool::get()));
/// registry.run(async { println!("saved") });
/// assert_eq!(registry.shutdown().wait().completed, 1);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct BevySpawner<P = &'static TaskPool>(pub P);

impl BevySpawner {
    /// Spawns on one of bevy's own pools; for others there is `BevySpawner(pool)`, with an `Arc<TaskPool>`, say.
    pub fn new(pool: &'static TaskPool) -> Self {
        Self(pool)
    }
}

impl<P: Deref<Target = TaskPool>> Spawner for BevySpawner<P> {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.0.spawn(task).detach();
    }
}
