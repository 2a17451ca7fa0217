//! Uses `TaskTracker` with a deadline. After the deadline, a second `CancellationToken` ends the unfinished jobs, and each of these jobs
//! logs its ID.

use crate::service::{self, GRACE, terminated};
use axum::http::StatusCode;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[tokio::main]
pub async fn main() -> ExitCode {
    let tracker = TaskTracker::new();
    let stop = CancellationToken::new();
    let deadline = CancellationToken::new();

    let (jobs, late) = (tracker.clone(), deadline.clone());
    let app = service::app(move |job| {
        let (id, late) = (job.id(), late.clone());
        jobs.spawn(async move {
            match late.run_until_cancelled(job.run()).await {
                Some(Ok(())) => {}
                Some(Err(error)) => eprintln!("{error}"),
                None => eprintln!("job {id} has not finished"),
            }
        });
        StatusCode::ACCEPTED
    });
    let server = tokio::spawn(service::serve(app, stop.clone().cancelled_owned()));

    terminated().await;
    stop.cancel();
    tracker.close();
    let drain = async {
        server.await.expect("the server does not panic");
        tracker.wait().await;
    };
    if timeout(GRACE, drain).await.is_ok() {
        eprintln!("all jobs have ended");
        return ExitCode::SUCCESS;
    }
    eprintln!("{} jobs are late", tracker.len());
    deadline.cancel();
    // This wait has a time limit, because a job that blocks its thread does not react to the token.
    let _ = timeout(Duration::from_millis(500), tracker.wait()).await;
    ExitCode::FAILURE
}
