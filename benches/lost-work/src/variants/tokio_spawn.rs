//! Uses `tokio::spawn` and axum's graceful shutdown.

use crate::service::{self, terminated};
use axum::http::StatusCode;
use std::process::ExitCode;

#[tokio::main]
pub async fn main() -> ExitCode {
    let start = |job: service::Job| {
        tokio::spawn(async {
            if let Err(error) = job.run().await {
                eprintln!("{error}");
            }
        });
        StatusCode::ACCEPTED
    };
    service::serve(service::app(start), terminated()).await;
    ExitCode::SUCCESS
}
