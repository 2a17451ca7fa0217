//! Uses the `Guarded` futures of swansong, and its report of guards that are still alive.

use crate::service::{self, GRACE, terminated};
use axum::http::StatusCode;
use std::process::ExitCode;
use swansong::Swansong;
use tokio::time::timeout;

#[tokio::main]
pub async fn main() -> ExitCode {
    let swansong = Swansong::with_guard_report();

    let jobs = swansong.clone();
    let app = service::app(move |job| {
        tokio::spawn(jobs.guarded(async {
            if let Err(error) = job.run().await {
                eprintln!("{error}");
            }
        }));
        StatusCode::ACCEPTED
    });
    let server = tokio::spawn(service::serve(app, swansong.shutting_down()));

    terminated().await;
    let completion = swansong.shut_down();
    let drain = async {
        server.await.expect("the server does not panic");
        completion.await;
    };
    if timeout(GRACE, drain).await.is_ok() {
        eprintln!("all jobs have ended");
        return ExitCode::SUCCESS;
    }
    eprintln!("{}", swansong.guard_report());
    ExitCode::FAILURE
}
