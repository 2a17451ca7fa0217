use crate::handler::Notes;
use crate::options::{Options, print};
use crate::store::Store;
use background_tasks::{BlockingSpawner, Registry, Spawner};
use background_tasks_host::{Dashboard, Host, HttpServer, RequestLayer, StderrObserver};
use clap::Parser;
use hyper::rt::{Read, Timer, Write};
use hyper_util::service::TowerToHyperService;
use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use tower::Layer;

/// Runs the service with the options of the command line until a signal stops the process. Returns the exit code. The closure `serve`
/// binds the listener and accepts connections.
///
/// Calling this function installs the signal handlers, even before the returned future is polled. Call this function before the runtime
/// starts threads. If the options are invalid or request the help, the call exits the process.
pub fn run<S, F>(spawner: S, timer: impl Timer + Clone + Send + Sync + 'static, serve: F) -> impl Future<Output = ExitCode>
where
    S: Spawner + BlockingSpawner + Clone + Send + Sync + 'static,
    F: AsyncFnOnce(&Server<S>) -> Result<(), String>,
{
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
pub struct Server<S> {
    notes: Arc<Notes<S>>,
    http: HttpServer<S>,
    address: SocketAddr,
}

fn context(message: impl Display) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{message}: {error}")
}

impl<S: Spawner + BlockingSpawner + Clone + Send + Sync + 'static> Server<S> {
    fn open(registry: Registry<S>, timer: impl Timer + Clone + Send + Sync + 'static, options: &Options) -> Result<Self, String> {
        let store = Store::open(options).map_err(context(format_args!("cannot write to '{}'", options.dir.display())))?;
        // A client that sends only half of a body must not delay the end of the drain until the grace period expires.
        let http = HttpServer::new(&registry, timer).drain_timeout(options.grace / 2);
        let dashboard = options.dashboard.then(|| Dashboard::new(&registry));
        let notes = Arc::new(Notes { registry, store: Arc::new(store), dashboard });
        Ok(Self { notes, http, address: options.listen })
    }

    /// Returns the address to listen on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Prints the address of the listener and notifies systemd that the service is ready.
    ///
    /// # Errors
    ///
    /// Returns an error message if `bound` is an error.
    pub fn listening<L>(&self, bound: io::Result<L>, address: impl FnOnce(&L) -> io::Result<SocketAddr>) -> Result<L, String> {
        let bound = bound.and_then(|listener| Ok((address(&listener)?, listener)));
        let (address, listener) = bound.map_err(context(format_args!("cannot listen on {}", self.address())))?;
        print(&format!("listening on http://{address}"));
        background_tasks_host::notify_ready();
        Ok(listener)
    }

    /// Serves the connections that `accept` returns, until shutdown has started and all connections have closed.
    pub async fn serve<I>(&self, accept: impl AsyncFnMut() -> io::Result<I>)
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let notes = self.notes.clone();
        let service = tower::service_fn(move |request| notes.clone().handle(request));
        let service = RequestLayer::new(&self.notes.registry).layer(service);
        self.http.serve(accept, TowerToHyperService::new(service)).await;
    }
}
