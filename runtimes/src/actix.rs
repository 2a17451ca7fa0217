use actix_rt::ArbiterHandle;
use background_tasks::Spawner;

/// Spawns on one arbiter of an actix system, from any thread.
///
/// An arbiter that stops drops its tasks, which then count as abandoned. A panic of a task that no registry tracks stays in the task's handle.
///
/// The tasks of an arbiter are tokio's local tasks. Inside a system, `background_tasks::TokioSpawner` spawns on the caller's arbiter, including
/// local tasks and blocking work.
///
/// # Panics
///
/// Spawning panics if the arbiter has stopped.
#[derive(Debug, Clone)]
pub struct ArbiterSpawner(pub ArbiterHandle);

impl Spawner for ArbiterSpawner {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let accepted = self.0.spawn(task);
        assert!(
            accepted,
            "the arbiter of this ArbiterSpawner has stopped: shut the registry down before the arbiter stops, or spawn on another arbiter"
        );
    }
}
