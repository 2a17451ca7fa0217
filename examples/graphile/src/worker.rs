//! The engine, with the options that are off by default, hosted by a registry.

use crate::database::chain;
use crate::signups::jobs;
use background_tasks::{Registry, TokioSpawner};
use graphile_worker::{FailureReason, JobRecovery, JobRecoveryResult, LocalQueueConfig, WorkerOptions};
use sqlx::PgPool;
use std::time::Duration;
use tokio::select;
use tokio::time::sleep;
use tracing::info;

/// How many jobs run at the same time.
const CONCURRENCY: usize = 4;

/// How long the engine may take to return the jobs that it has cut off to the queue.
pub(crate) const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the handlers need.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) tasks: Registry<TokioSpawner>,
    pub(crate) pool: PgPool,
    /// How long the simulated mail server takes.
    pub(crate) takes: Duration,
}

/// Runs until shutdown has started and the outcomes of the jobs in flight are committed.
///
/// A worker without a heartbeat for a lease counts as dead, and other workers take its jobs. Jobs that still run when the `grace` period expires
/// are cut off and return to the queue.
///
/// # Errors
///
/// If the database is not available, at the start or later. A supervisor should then restart the program.
pub(crate) async fn work(service: Service, lease: Duration, grace: Duration) -> Result<(), String> {
    let worker = WorkerOptions::default()
        .pg_pool(service.pool.clone())
        .define_jobs(jobs())
        .concurrency(CONCURRENCY)
        // Without it each slot takes one job for each notification or poll. Keep it short: fetched jobs wait in this process.
        .local_queue(LocalQueueConfig::default().with_size(CONCURRENCY))
        // Without these, jobs of a killed worker stay locked forever. All workers need them: a worker without heartbeats counts as dead.
        .heartbeat_interval(lease / 5)
        .sweep_interval(lease / 5)
        .sweep_threshold(lease)
        // Makes a crash a failed attempt. Otherwise a job that kills its process would be retried forever.
        .on(JobRecovery, async |recovery| match recovery.reason {
            FailureReason::WorkerCrashed => JobRecoveryResult::FailWithBackoff,
            _ => JobRecoveryResult::Default,
        })
        // The host handles signals. The registry's shutdown signal stops the engine's fetches.
        .listen_os_shutdown_signals(false)
        .shutdown_signal(service.tasks.signal())
        .shutdown_grace_period(grace)
        .shutdown_interrupted_job_retry_delay(Duration::ZERO)
        .add_extension(service)
        .init()
        .await
        .map_err(|error| chain(&error))?;
    info!("the worker is ready");
    background_tasks_host::notify_ready();
    let stopping = worker.shutdown_signal().clone();
    select! {
        ended = worker.run() => ended.map_err(|error| chain(&error)),
        // If the engine cannot commit an outcome, it stops, and then tries for minutes to return its fetched jobs.
        () = async { stopping.await; sleep(grace + RELEASE_TIMEOUT).await } => Err("the database does not respond".to_owned()),
    }
}
