//! A service that signs people up: it answers immediately, and sends the mail in the background.

mod options;
mod serve;

use crate::options::Options;
use crate::serve::serve;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use background_tasks::{MetricsObserver, Registry, TaskSpan, TokioSpawner, TracingObserver};
use background_tasks_host::{Dashboard, Host, RequestLayer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::sleep;
use tracing::{info, instrument};

/// Each task has a span, which follows from the span of the request that started the task.
type Tasks = Registry<TaskSpan<TokioSpawner>>;

struct Service {
    tasks: Tasks,
    metrics: MetricsObserver,
    prometheus: PrometheusHandle,
    options: Options,
}

fn main() -> ExitCode {
    let options = match Options::from_args() {
        Ok(options) => options,
        Err(exit) => return exit,
    };
    tracing_subscriber::fmt().with_writer(background_tasks_host::stderr).init();
    // Installed before the observer, which describes its metrics to the recorder.
    let prometheus = PrometheusBuilder::new().install_recorder().expect("the program has no other recorder");
    let metrics = MetricsObserver::new("signups");
    let tasks = Registry::builder(TaskSpan(TokioSpawner)).observer(TracingObserver).observer(metrics).inspect().build();

    // Created before the runtime starts threads: then no signal is lost.
    // The subscriber writes above the progress bar.
    let host = Host::new(&tasks).grace(options.grace).progress_bar(true);
    let program = run(Arc::new(Service { tasks, metrics, prometheus, options }));
    Runtime::new().expect("the system provides threads and a poller").block_on(host.run(program))
}

/// Serves until shutdown has started and all connections have closed.
async fn run(service: Arc<Service>) -> Result<(), String> {
    let Options { address, dir, linger, dashboard, .. } = &service.options;
    fs::create_dir_all(dir).map_err(|error| format!("cannot write to '{}': {error}", dir.display()))?;
    let cannot_listen = |error: io::Error| format!("cannot listen on {address}: {error}");
    let listener = TcpListener::bind(address).await.map_err(cannot_listen)?;
    let bound = listener.local_addr().map_err(cannot_listen)?;

    let mut app = Router::new()
        .route("/signups", post(sign_up))
        // Counts requests to the routes above. The drain does not need to wait for probes.
        .layer(RequestLayer::new(&service.tasks))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readiness))
        .route("/metrics", get(show_metrics))
        .layer(DefaultBodyLimit::max(1024));
    if *dashboard {
        app = app.nest_service("/background", Dashboard::new(&service.tasks));
    }
    let app = app.with_state(service.clone());

    info!("listening on http://{bound}");
    background_tasks_host::notify_ready();
    let (signal, linger) = (service.tasks.signal(), *linger);
    let end = async move {
        signal.await;
        sleep(linger).await;
    };
    serve(listener, app, end).await;
    Ok(())
}

/// Accepts an address, and starts a background task that sends a mail to it.
#[instrument(skip_all)]
async fn sign_up(State(service): State<Arc<Service>>, address: String) -> (StatusCode, &'static str) {
    if !address.contains('@') || address.contains(char::is_control) {
        return (StatusCode::BAD_REQUEST, "the body is not a mail address\n");
    }
    let tasks = service.tasks.clone();
    // This request is in flight, so its tasks are accepted even after shutdown has started.
    tasks.named("welcome-mail").run(send(service, address));
    (StatusCode::ACCEPTED, "a mail is on its way\n")
}

/// Simulates sending a mail: waits as long as a mail server might take, and writes the address to a file.
async fn send(service: Arc<Service>, address: String) {
    sleep(Duration::from_millis(20)).await;
    info!("the mail is sent");
    let tasks = service.tasks.clone();
    // A task may start tasks too. Blocking work must not run on the threads that serve requests.
    tasks.named("outbox").run_blocking(move || write(&service.options.dir, &address));
}

fn write(dir: &Path, address: &str) -> io::Result<()> {
    let mut outbox = OpenOptions::new().append(true).create(true).open(dir.join("outbox"))?;
    // In one write, because other tasks write to the file too.
    outbox.write_all(format!("{address}\n").as_bytes())
}

/// Answers 503 once shutdown has started, so that load balancers send no more requests.
async fn readiness(State(service): State<Arc<Service>>) -> (StatusCode, &'static str) {
    if service.tasks.is_shutting_down() { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") } else { (StatusCode::OK, "ready\n") }
}

async fn show_metrics(State(service): State<Arc<Service>>) -> String {
    service.metrics.record(&service.tasks);
    service.prometheus.render()
}
