//! Uses this crate with its companion `background-tasks-host`.

use crate::service::{self, GRACE};
use axum::http::StatusCode;
use background_tasks::{Registry, TokioSpawner};
use background_tasks_host::{Host, RequestLayer, StderrObserver};
use std::process::ExitCode;

#[tokio::main]
pub async fn main() -> ExitCode {
    let registry = Registry::builder(TokioSpawner).observer(StderrObserver).inspect().build();

    let tasks = registry.clone();
    let app = service::app(move |job| match tasks.named("job").try_run(job.run()) {
        Ok(()) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    });
    let server = service::serve(app.layer(RequestLayer::new(&registry)), registry.signal());

    Host::new(&registry).grace(GRACE).run(server).await
}
