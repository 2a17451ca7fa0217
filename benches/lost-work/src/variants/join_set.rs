//! Uses tokio's `JoinSet`, which returns the result of each job.

use crate::service::{self, GRACE, JobError, terminated};
use axum::http::StatusCode;
use std::future::poll_fn;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;

type Jobs = JoinSet<Result<(), JobError>>;

#[tokio::main]
pub async fn main() -> ExitCode {
    let jobs = Arc::new(Mutex::new(Jobs::new()));
    let (stop, stopped) = oneshot::channel::<()>();

    let shared = jobs.clone();
    let app = service::app(move |job| {
        let mut jobs = shared.lock().expect("no holder of the lock panics");
        // Takes the results of finished jobs, because a `JoinSet` keeps each result in memory until it is taken.
        while let Some(result) = jobs.try_join_next() {
            report(result);
        }
        jobs.spawn(job.run());
        StatusCode::ACCEPTED
    });
    let server = tokio::spawn(service::serve(app, async { drop(stopped.await) }));

    terminated().await;
    drop(stop);
    let lock = || jobs.lock().expect("no holder of the lock panics");
    let drain = async {
        server.await.expect("the server does not panic");
        while let Some(result) = poll_fn(|context| lock().poll_join_next(context)).await {
            report(result);
        }
    };
    if timeout(GRACE, drain).await.is_ok() {
        eprintln!("all jobs have ended");
        return ExitCode::SUCCESS;
    }
    eprintln!("{} jobs are late", lock().len());
    ExitCode::FAILURE
}

fn report(result: Result<Result<(), JobError>, JoinError>) {
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => eprintln!("{error}"),
        Err(error) => eprintln!("{error}"), // the message of the panic
    }
}
