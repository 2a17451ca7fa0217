//! Serves the dashboard of a shop whose tasks simulate work. The page shows phases, services, child registries, and a task that reports no
//! progress.
//!
//! ```sh
//! cargo run -p background-tasks-host --example dashboard --features dashboard,http
//! ```
//!
//! Open the address that the program prints. To see the drain, press Ctrl-C. Then end the task `checkout` with this command:
//!
//! ```sh
//! curl -X POST http://127.0.0.1:7979/release/checkout
//! ```
//!
//! The tasks `import`, `report`, `export` and `upload` end in the same way.

use background_tasks::{Registry, Restart, ShutdownSignal, TokioSpawner};
use background_tasks_host::{Dashboard, Host, HttpServer, Liveness, StderrObserver, TimedBody};
use http_body_util::{Either, Full};
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashSet;
use std::convert::Infallible;
use std::env;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::sleep;

type Shop = Registry<TokioSpawner>;

/// The names of the tasks that an HTTP request has released. Such a task ends.
#[derive(Clone, Default)]
struct Released(Arc<Mutex<HashSet<String>>>);

impl Released {
    fn add(&self, name: &str) {
        self.0.lock().unwrap().insert(name.to_owned());
    }

    async fn wait(self, name: &'static str) {
        while !self.0.lock().unwrap().contains(name) {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Returns the command-line argument at this position as a number of seconds.
fn seconds(at: usize, default: u64) -> Duration {
    Duration::from_secs(env::args().nth(at).map_or(default, |seconds| seconds.parse().expect("a number of seconds")))
}

/// Usage: `dashboard [PORT [GRACE [DELAY]]]`, with the grace period and the delay in seconds. Defaults: 7979, 20 and 2.
#[tokio::main]
async fn main() -> ExitCode {
    let registry = || Registry::builder(TokioSpawner).observer(StderrObserver).inspect().build();
    let (requests, workers, admin) = (registry(), registry(), registry());
    let liveness = Liveness::new("indexer", Duration::from_secs(1));
    let host = Host::new(&requests)
        .then_with_reserve(&workers, Duration::from_secs(5))
        .then(&admin)
        .liveness(&liveness)
        .grace(seconds(2, 20))
        .delay(seconds(3, 2));
    let released = Released::default();
    // The page is served in the last phase, so it shows the drain of the earlier phases.
    let dashboard = Dashboard::new(&admin).phases(&host, &["requests", "workers", "admin"]).serving(&["server", "connection"]);
    let listener = listen(env::args().nth(1).map_or(7979, |port| port.parse().expect("a port"))).await;
    admin.named("server").run(serve(admin.clone(), listener, dashboard, released.clone()));

    requests.named("checkout").run(released.clone().wait("checkout"));
    let _tenants = start_workers(&workers, liveness, &released);
    host.run(requests.signal()).await
}

/// Starts the services, and the tasks of the tenants. Each tenant is a child registry. The child registry stays open while a handle of it
/// exists.
fn start_workers(workers: &Shop, liveness: Liveness, released: &Released) -> [Shop; 3] {
    let backoff = Duration::from_millis(500);
    let outbox = Restart::on_failure().unlimited().backoff(backoff, backoff);
    workers.named("outbox").service(outbox, async || Err::<(), _>("no connection to the mail server"));
    workers.named("prices").every(Duration::from_secs(1), async || ());
    workers.named("indexer").run(index(liveness, workers.signal()));
    let tenants = [workers.named("tenant-a").child(), workers.named("tenant-b").child()];
    let connection = tenants[0].named("connection").child();
    let [first, second] = &tenants;
    for (tenant, name) in [(first, "import"), (first, "report"), (second, "export"), (&connection, "upload")] {
        tenant.named(name).run(released.clone().wait(name));
    }
    let [first, second] = tenants;
    [first, second, connection]
}

/// Simulates a task that waits for a search engine. The search engine never answers, so the task reports no progress.
async fn index(liveness: Liveness, signal: ShutdownSignal) {
    signal.await;
    drop(liveness);
}

async fn listen(port: u16) -> TcpListener {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port is free");
    println!("listening on http://{}", listener.local_addr().expect("a bound listener has an address"));
    listener
}

async fn serve(admin: Shop, listener: TcpListener, dashboard: Dashboard, released: Released) {
    let service = service_fn(move |request: Request<TimedBody>| {
        let response = match request.uri().path().strip_prefix("/release/") {
            Some(name) if request.method() == Method::POST => {
                released.add(name);
                Response::new(Either::Left(Full::<Bytes>::default()))
            }
            _ => dashboard.respond(&request).map(Either::Right),
        };
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let accept = async move || Ok(TokioIo::new(listener.accept().await?.0));
    HttpServer::new(&admin, TokioTimer::new()).serve(accept, service).await;
}
