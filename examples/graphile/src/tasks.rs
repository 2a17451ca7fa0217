//! Runs the jobs of the engine as tasks of a registry.

use background_tasks::{Registry, Spawner};
use tokio::select;
use tokio::sync::oneshot;

/// Runs a job as a task. The registry counts the task. If the task fails or panics, the registry reports its name and the cause to the
/// observers.
///
/// The engine awaits this future and commits its result as the outcome of the job. When the engine's grace period expires, the engine
/// drops this future and returns the job to the queue. The task then ends at its next await point.
///
/// # Errors
///
/// Returns the error of the job. Also returns an error if the task was rejected, panicked or was aborted.
pub(crate) async fn as_task<S, F>(registry: &Registry<S>, name: &'static str, job: F) -> Result<(), String>
where
    S: Spawner,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let (mut sender, receiver) = oneshot::channel();
    let task = async move {
        let outcome = select! {
            biased;
            outcome = job => outcome,
            () = sender.closed() => Err("the engine returned the job to the queue".to_owned()),
        };
        // This call fails if the engine has dropped the future of `as_task`, which contains the receiver.
        let _ = sender.send(outcome.clone());
        outcome
    };
    registry.named(name).try_run(task).map_err(|rejected| rejected.reason().to_string())?;
    receiver.await.unwrap_or_else(|_| Err("the task panicked or was aborted".to_owned()))
}
