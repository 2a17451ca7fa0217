//! Runs the engine inside the host of a registry. Sets the options of the engine that are off by default.

use crate::database::chain;
use crate::signups::jobs;
use background_tasks::{Registry, TokioSpawner};
use graphile_worker::{FailureReason, JobRecovery, JobRecoveryResult, LocalQueueConfig, WorkerOptions};
use sqlx::PgPool;
use std::time::Duration;
use tokio::select;
use tokio::time::sleep;
use tracing::info;

/// The number of jobs that run at the same time.
const CONCURRENCY: usize = 4;

/// After the grace period, the engine has this time to return interrupted jobs to the queue.
pub(crate) const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// The values that the job handlers use.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) tasks: Registry<TokioSpawner>,
    pub(crate) pool: PgPool,
    /// The time that the simulated mail server needs for one mail.
    pub(crate) takes: Duration,
}

/// Handles jobs until shutdown has started and the outcomes of the jobs in flight are committed.
///
/// If a worker sends no heartbeat for the time `lease`, other workers take its jobs. When the `grace` period expires, the engine
/// interrupts the jobs that still run, and returns them to the queue.
///
/// # Errors
///
/// Returns an error if the database is not available at the start, or later. A supervisor should then restart the program.
pub(crate) async fn work(service: Service, lease: Duration, grace: Duration) -> Result<(), String> {
    let worker = WorkerOptions::default()
        .pg_pool(service.pool.clone())
        .define_jobs(jobs())
        .concurrency(CONCURRENCY)
        // Without this queue, each slot takes only one job for each notification or poll. Keep the queue short: if this process
        // crashes, the crash counts as an attempt of every job in this queue.
        .local_queue(LocalQueueConfig::default().with_size(CONCURRENCY))
        // A sweep releases the jobs of workers that send no heartbeats. Without sweeps, the jobs of a killed worker stay locked
        // forever. All workers must send heartbeats, because a worker without heartbeats counts as dead.
        .heartbeat_interval(lease / 5)
        .sweep_interval(lease / 5)
        .sweep_threshold(lease)
        // Makes a crash count as a failed attempt. Otherwise, a job that kills its process would be retried forever.
        .on(JobRecovery, async |recovery| match recovery.reason {
            FailureReason::WorkerCrashed => JobRecoveryResult::FailWithBackoff,
            _ => JobRecoveryResult::Default,
        })
        // The host handles signals, so the engine must not handle signals. When shutdown starts, the registry's shutdown signal makes the
        // engine stop fetching jobs.
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
        // If the engine cannot commit an outcome, it stops. The stopped engine tries for minutes to return the fetched jobs to the
        // queue. This branch does not wait that long: it returns an error five seconds after the grace period.
        () = async { stopping.await; sleep(grace + RELEASE_TIMEOUT).await } => Err("the database does not respond".to_owned()),
    }
}
