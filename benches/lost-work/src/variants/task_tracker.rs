//! Uses tokio-util's `TaskTracker`, and a `CancellationToken` for the server, as in tokio's guide to graceful shutdown.

use crate::service::{self, terminated};
use axum::http::StatusCode;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[tokio::main]
pub async fn main() -> ExitCode {
    let tracker = TaskTracker::new();
    let stop = CancellationToken::new();

    let jobs = tracker.clone();
    let app = service::app(move |job| {
        jobs.spawn(async {
            if let Err(error) = job.run().await {
                eprintln!("{error}");
            }
        });
        StatusCode::ACCEPTED
    });
    let server = tokio::spawn(service::serve(app, stop.clone().cancelled_owned()));

    terminated().await;
    stop.cancel();
    server.await.expect("the server does not panic");
    tracker.close();
    tracker.wait().await;
    eprintln!("all jobs have ended");
    ExitCode::SUCCESS
}
