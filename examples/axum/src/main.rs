//! An HTTP service that signs people up: it answers each request immediately, and background tasks send the mails.

mod options;
mod outbox;

use crate::options::Options;
use crate::outbox::Outbox;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use background_tasks::{InSpan, MetricsObserver, Registry, TokioSpawner, TracingObserver};
use background_tasks_host::{Dashboard, Host, HttpServer, Readiness, RequestLayer};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use listenfd::ListenFd;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::sleep;
use tracing::{info, instrument};

/// The type of the task registry. Each task runs in the tracing span of the request that started it. So the log line of a lost mail
/// contains the address of the sign-up.
type Tasks = Registry<InSpan<TokioSpawner>>;

struct Service {
    tasks: Tasks,
    prometheus: PrometheusHandle,
    outbox: Outbox,
    readiness: Readiness,
    /// The time that the simulated mail server needs for one mail.
    takes: Duration,
}

fn main() -> ExitCode {
    let options = Options::from_args();
    tracing_subscriber::fmt().with_writer(background_tasks_host::stderr).init();
    // The recorder must be installed first, because a new `MetricsObserver` registers the descriptions of its metrics with the recorder.
    let prometheus = PrometheusBuilder::new().install_recorder().expect("the program has no other recorder");
    let metrics = MetricsObserver::new("signups").by_name();
    let tasks = Registry::builder(InSpan(TokioSpawner))
        .observer(TracingObserver)
        .observer(metrics)
        .inspect()
        .max_in_flight(options.max_in_flight.into())
        .build();

    // The host is created before the runtime starts threads, so that no signal is lost. There is no call to `fail_if`, because the summary
    // also counts events that are not failures. These are sign-ups that were answered with 503 (rejected), clients that disconnected
    // (abandoned), and tasks that an operator aborted on the dashboard. The log and the metrics report each loss when it happens. The
    // progress bar can be shown together with log lines, because the subscriber writes its lines above the bar.
    let host = Host::new(&tasks).grace(options.grace).delay(options.delay).progress_bar(true);
    let program = run(options, tasks, prometheus, host.readiness());
    let runtime = Runtime::new().expect("the system provides threads and a poller");
    // The host is a task of the runtime, so systemd's watchdog detects if all worker threads are blocked. `block_on` alone would poll the
    // host on this thread.
    runtime.block_on(runtime.spawn(host.run(program))).expect("the host catches panics of the program")
}

/// Serves requests until shutdown has started and all connections have closed.
async fn run(options: Options, tasks: Tasks, prometheus: PrometheusHandle, readiness: Readiness) -> Result<(), String> {
    let Options { listen: address, ref hosts, ref dir, takes, grace, .. } = options;
    // The recorder keeps every duration until it renders the metrics or until this call. Without the call, its memory would grow while no
    // client requests /metrics. This loop is not a task of the registry, because it never ends.
    let recorder = prometheus.clone();
    tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(5)).await;
            recorder.run_upkeep();
        }
    });
    let outbox = Outbox::open(dir)?;
    let service = Arc::new(Service { tasks, prometheus, outbox, readiness, takes });
    let cannot_listen = |error: io::Error| format!("cannot listen on {address}: {error}");
    let listener = listen(address).await.map_err(cannot_listen)?;
    let bound = listener.local_addr().map_err(cannot_listen)?;
    options.check(bound)?; // a listener from systemd may have another address than `--listen`

    let mut app = Router::new()
        .route("/signups", post(sign_up))
        // `RequestLayer` counts only requests to the route above. So the drain does not wait for requests to the routes below, such as
        // probes.
        .layer(RequestLayer::new(&service.tasks))
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(show_readiness))
        .route("/metrics", get(show_metrics))
        .layer(DefaultBodyLimit::max(1024));
    if options.dashboard {
        let dashboard = hosts.iter().fold(Dashboard::new(&service.tasks), |dashboard, host| dashboard.allow_host(host));
        app = app.nest_service("/background", dashboard);
    }
    let app = app.with_state(service.clone());

    let server = HttpServer::new(&service.tasks, TokioTimer::new())
        // A client may have connected just before the signal. Such a client has one second to send the head of its request.
        .late_head_timeout(Duration::from_secs(1))
        // A client that sends only half of a body delays the drain by at most this time, which is shorter than the grace period.
        .drain_timeout(Duration::from_secs(5).min(grace / 2))
        // The server accepts up to 4096 connections. With this buffer size, their input buffers together use at most 64 MiB.
        .configure(|http| {
            http.max_buf_size(16 * 1024);
        });
    let server = hosts.iter().fold(server, |server, host| server.host_name(host));
    info!("listening on http://{bound}");
    background_tasks_host::notify_ready();
    let accept = async move || Ok(TokioIo::new(listener.accept().await?.0));
    server.serve(accept, TowerToHyperService::new(app)).await;
    Ok(())
}

/// Returns the listener that systemd has opened for signups.socket. If systemd has passed no listener, opens one at `address`.
///
/// While systemd restarts the service, systemd's listener stays open. New connections wait in its queue, and the next process accepts them.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let Some(listener) = ListenFd::from_env().take_tcp_listener(0)? else { return TcpListener::bind(address).await };
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Accepts a mail address, and starts a background task that sends a mail to this address.
// With `?address`, the span formats the address with `Debug`, which escapes line breaks. Otherwise a client could forge lines of the log.
#[instrument(skip_all, fields(?address))]
async fn sign_up(State(service): State<Arc<Service>>, address: String) -> (StatusCode, &'static str) {
    // Some programs that read the outbox treat a character such as U+2028 as a line break. With such a character in an address, a client
    // could forge lines of the file. Valid addresses contain white space only in quotes, and this service does not accept those.
    if !address.contains('@') || address.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return (StatusCode::BAD_REQUEST, "the body is not a mail address\n");
    }
    let tasks = service.tasks.clone();
    // This request is in flight, so the registry accepts the new task even after shutdown has started. A full registry rejects the task
    // here, before the response promises a mail.
    match tasks.named("welcome-mail").try_run(send(service, address)) {
        Ok(()) => (StatusCode::ACCEPTED, "a mail is on its way\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "too many mails are being sent: try again later\n"),
    }
}

/// Simulates sending a mail: waits as long as a mail server might need, and then writes the address to a file.
async fn send(service: Arc<Service>, address: String) -> io::Result<()> {
    sleep(service.takes).await;
    let tasks = service.tasks.clone();
    // The write can block, so it must not run on the threads that serve requests. The task `outbox` needs no permit, because the task of
    // the mail keeps its own permit until the address is written. So even a full registry accepts the task `outbox`.
    let append = tasks.named("outbox").without_permit().spawn_blocking(move || service.outbox.append(&address));
    // The handle `append` returns an error of the closure, so the registry does not count the task `outbox` as failed. `send` returns this
    // error, so the registry counts the task of the mail as failed.
    append.await.map_err(io::Error::other)??;
    info!("the mail is sent");
    Ok(())
}

/// Answers with status 503 after SIGTERM or Ctrl-C, so that load balancers send no more requests.
async fn show_readiness(State(service): State<Arc<Service>>) -> (StatusCode, &'static str) {
    if service.readiness.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "draining\n") }
}

async fn show_metrics(State(service): State<Arc<Service>>) -> String {
    service.prometheus.render()
}
