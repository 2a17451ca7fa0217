use crate::handler::Notes;
use crate::options::{Options, print};
use crate::store::Store;
use background_tasks::{BlockingSpawner, Registry, Spawner};
use background_tasks_host::{Dashboard, Host, RequestLayer, StderrObserver, stderr};
use clap::Parser;
use hyper::rt::{Read, Timer, Write};
use hyper::server::conn::http1;
use hyper_util::service::TowerToHyperService;
use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tower::Layer;

/// The time in which a client must send the head of a request. The connection also closes if it is idle for longer between two requests.
///
/// A client that has sent half a head delays the exit, so this time must be shorter than the grace period.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the service with the options of the command line, until the process is asked to stop. `serve` binds the listener and accepts connections.
///
/// This call (not the first poll) installs the signal handlers. Call it before the runtime starts threads.
pub fn run<S, T, F>(spawner: S, timer: T, serve: F) -> impl Future<Output = ExitCode>
where
    S: Spawner + BlockingSpawner + Clone + Send + Sync + 'static,
    T: Timer + Clone + Send + Sync + 'static,
    F: AsyncFnOnce(&Server<S, T>) -> Result<(), String>,
{
    // Prints the help or an error, and exits.
    let options = Options::parse();
    let registry = Registry::builder(spawner).observer(StderrObserver).inspect().build();
    let host = Host::new(&registry);
    async {
        let host = host.grace(options.grace);
        let program = async move {
            let server = Server::open(registry, timer, &options)?;
            serve(&server).await
        };
        host.run(program).await
    }
}

/// The parts of the service that do not depend on the runtime.
pub struct Server<S, T> {
    notes: Arc<Notes<S>>,
    http: http1::Builder,
    timer: T,
    port: u16,
}

fn context(message: impl Display) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{message}: {error}")
}

impl<S, T> Server<S, T>
where
    S: Spawner + BlockingSpawner + Clone + Send + Sync + 'static,
    T: Timer + Clone + Send + Sync + 'static,
{
    fn open(registry: Registry<S>, timer: T, options: &Options) -> Result<Self, String> {
        let store = Store::open(options).map_err(context(format_args!("cannot write to '{}'", options.dir.display())))?;
        let mut http = http1::Builder::new();
        http.timer(timer.clone()).header_read_timeout(HEAD_TIMEOUT);
        let dashboard = options.dashboard.then(|| Dashboard::new(&registry).serving(&["connection"]));
        let notes = Arc::new(Notes { registry, store: Arc::new(store), dashboard });
        Ok(Self { notes, http, timer, port: options.port })
    }

    /// Returns the address to listen on.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Prints the address of the listener and notifies systemd.
    ///
    /// # Errors
    ///
    /// Returns a message if `bound` is an error.
    pub fn listening<L>(&self, bound: io::Result<L>, address: impl FnOnce(&L) -> io::Result<SocketAddr>) -> Result<L, String> {
        let bound = bound.and_then(|listener| Ok((address(&listener)?, listener)));
        let (address, listener) = bound.map_err(context(format_args!("cannot listen on {}", self.address())))?;
        print(&format!("listening on http://{address}"));
        background_tasks_host::notify_ready();
        Ok(listener)
    }

    /// Returns the next connection, or `None` once shutdown has started.
    ///
    /// Failures to accept a connection are logged and do not end the service: the process may have no file descriptor left, or the client may have
    /// disconnected.
    pub async fn next_connection<A, I>(&self, accept: impl Fn() -> A) -> Option<I>
    where
        A: Future<Output = io::Result<I>>,
    {
        let signal = self.notes.registry.signal();
        // Under load a connection is always ready, and `run_until_shutdown` polls `accept` before the signal.
        while !signal.is_triggered() {
            match signal.run_until_shutdown(accept()).await? {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    let _ = writeln!(stderr(), "failed to accept a connection: {error}");
                    self.timer.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        None
    }

    /// Serves a connection in a background task. When shutdown starts, the connection closes after its current response.
    pub fn serve<I>(&self, io: I)
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let notes = self.notes.clone();
        let service = tower::service_fn(move |request| notes.clone().handle(request));
        let service = RequestLayer::new(&self.notes.registry).layer(service);
        let connection = self.http.serve_connection(io, TowerToHyperService::new(service));
        let signal = self.notes.registry.signal();
        self.notes.registry.named("connection").run(async move {
            let mut connection = pin!(connection);
            // A client that disconnects is not a failure of the task.
            if signal.run_until_shutdown(connection.as_mut()).await.is_none() {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        });
    }
}
