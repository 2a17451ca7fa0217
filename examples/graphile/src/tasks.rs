//! Where an engine's job becomes a task of a registry.

use background_tasks::{Registry, Spawner};
use tokio::select;
use tokio::sync::oneshot;

/// Runs a job as a task: it has a name, is counted, and its failure or panic is told to the registry's observers.
///
/// The engine, which awaits this, settles the job by what it returns. When the engine drops it (its own grace is over, and the job goes to
/// another worker), the task ends where it waits.
///
/// # Errors
///
/// That of the job, or that its task was rejected, panicked or was aborted.
pub(crate) async fn as_task<S, F>(registry: &Registry<S>, name: &'static str, job: F) -> Result<(), String>
where
    S: Spawner,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let (mut settle, settled) = oneshot::channel();
    let task = async move {
        let outcome = select! {
            biased;
            outcome = job => outcome,
            () = settle.closed() => Err("the engine took it back".to_owned()),
        };
        // If nobody takes it, the engine has the job.
        let _ = settle.send(outcome.clone());
        outcome
    };
    registry.named(name).try_run(task).map_err(|rejected| rejected.reason().to_string())?;
    settled.await.unwrap_or_else(|_| Err("its task panicked, or was aborted".to_owned()))
}
