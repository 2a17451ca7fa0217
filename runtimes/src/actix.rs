use actix_rt::ArbiterHandle;
use background_tasks::Spawner;

/// Spawns on one arbiter of an actix system, from any thread.
///
/// An arbiter that stops drops its tasks: they count as abandoned. A panic of a foreign task stays in its handle.
///
/// The tasks of an arbiter are tokio's local tasks: inside a system `background_tasks::TokioSpawner` spawns on the caller's arbiter, local
/// tasks and blocking work too.
///
/// # Panics
///
/// If the arbiter has stopped.
#[derive(Debug, Clone)]
pub struct ArbiterSpawner(pub ArbiterHandle);

impl Spawner for ArbiterSpawner {
    #[track_caller]
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        let taken = self.0.spawn(task);
        assert!(
            taken,
            "the arbiter of this ArbiterSpawner has stopped: shut its registry down before, or spawn on another arbiter"
        );
    }
}
