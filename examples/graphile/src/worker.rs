//! The engine, with all that is off unless it is switched on, hosted by a registry.

use crate::signups::jobs;
use background_tasks::{Registry, TokioSpawner};
use graphile_worker::{FailureReason, JobRecovery, JobRecoveryResult, LocalQueueConfig, WorkerOptions};
use sqlx::PgPool;
use std::time::Duration;
use tokio::select;
use tokio::time::sleep;
use tracing::info;

/// Jobs at once.
const CONCURRENCY: usize = 4;

/// For the engine to give back what it has cut.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);

/// What the jobs need.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) tasks: Registry<TokioSpawner>,
    pub(crate) pool: PgPool,
    /// How long the mail server takes.
    pub(crate) takes: Duration,
}

/// Works until the registry's shutdown has begun and the jobs in flight are settled in the database.
///
/// A worker that is unseen for the lease is dead, and its jobs are another's. What is not done `grace` after the shutdown's beginning is cut, and is another's too.
///
/// # Errors
///
/// When the database is not there, at the start or later: then the program is to be started again, as by its supervisor.
pub(crate) async fn work(service: Service, lease: Duration, grace: Duration) -> Result<(), String> {
    let worker = WorkerOptions::default()
        .pg_pool(service.pool.clone())
        .define_jobs(jobs())
        .concurrency(CONCURRENCY)
        // Without it a slot takes one job at a notification or a poll, and then waits for the next of these. What is fetched here waits here, so few.
        .local_queue(LocalQueueConfig::default().with_size(CONCURRENCY))
        // Without these, what a killed worker held is nobody's for ever. All workers must have them: one that shows no heartbeat is taken for dead.
        .heartbeat_interval(lease / 5)
        .sweep_interval(lease / 5)
        .sweep_threshold(lease)
        // A crash is no attempt unless it is made one, and a job that kills its process would never end.
        .on(JobRecovery, async |recovery| match recovery.reason {
            FailureReason::WorkerCrashed => JobRecoveryResult::FailWithBackoff,
            _ => JobRecoveryResult::Default,
        })
        // The host has the signals; the registry's shutdown stops the intake.
        .listen_os_shutdown_signals(false)
        .shutdown_signal(service.tasks.signal())
        .shutdown_grace_period(grace)
        .shutdown_interrupted_job_retry_delay(Duration::ZERO)
        .add_extension(service)
        .init()
        .await
        .map_err(|error| error.to_string())?;
    info!("working");
    background_tasks_host::notify_ready();
    let stopping = worker.shutdown_signal().clone();
    select! {
        ended = worker.run() => ended.map_err(|error| error.to_string()),
        // It stops by itself when a job cannot be settled, and then tries for minutes to give back what it has fetched.
        () = async { stopping.await; sleep(grace + SETTLE).await } => Err("the database does not answer".to_owned()),
    }
}
