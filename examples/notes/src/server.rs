use crate::answer::Notes;
use crate::options::{Options, tell};
use crate::store::Store;
use background_tasks::{BlockingSpawner, Registry, Spawner};
use background_tasks_host::{Host, Page, RequestLayer, StderrObserver, stderr};
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

/// Runs the service, as the process's arguments say, until the process is asked to stop. To bind and to accept, `serve`, is its runtime's.
///
/// From the call on, which should come before the runtime's threads, the signals are the service's.
pub fn run<S, T, F>(spawner: S, timer: T, serve: F) -> impl Future<Output = ExitCode>
where
    S: Spawner + BlockingSpawner + Clone + Send + Sync + 'static,
    T: Timer + Clone + Send + Sync + 'static,
    F: AsyncFnOnce(&Server<S, T>) -> Result<(), String>,
{
    let options = Options::from_args();
    let registry = Registry::builder(spawner).observer(StderrObserver).inspect().build();
    let host = Host::new(&registry);
    async {
        let options = match options {
            Ok(options) => options,
            Err(code) => return code,
        };
        let host = host.grace(options.grace);
        let program = async move {
            let server = Server::open(registry, timer, &options)?;
            serve(&server).await
        };
        host.run(program).await
    }
}

/// The service, less what its runtime does.
pub struct Server<S, T> {
    notes: Arc<Notes<S>>,
    http: http1::Builder,
    timer: T,
    port: u16,
}

fn because(what: impl Display) -> impl FnOnce(io::Error) -> String {
    move |error| format!("{what}: {error}")
}

impl<S, T> Server<S, T>
where
    S: Spawner + BlockingSpawner + Clone + Send + Sync + 'static,
    T: Timer + Clone + Send + Sync + 'static,
{
    fn open(registry: Registry<S>, timer: T, options: &Options) -> Result<Self, String> {
        let dir = &options.dir;
        let store = Store::open(dir).map_err(because(format_args!("cannot write to '{}'", dir.display())))?;
        let mut http = http1::Builder::new();
        http.timer(timer.clone());
        let background = options.page.then(|| Page::new(&registry).serving(&["connection"]));
        let notes = Arc::new(Notes { registry, store: Arc::new(store), background });
        Ok(Self { notes, http, timer, port: options.port })
    }

    /// Returns where to listen.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Says where the service listens, if it does.
    pub fn listens<L>(&self, bound: io::Result<L>, address: impl FnOnce(&L) -> io::Result<SocketAddr>) -> Result<L, String> {
        let listening = bound.and_then(|listener| Ok((address(&listener)?, listener)));
        let (address, listener) = listening.map_err(because(format_args!("cannot listen on {}", self.address())))?;
        tell(&format!("listening on http://{address}"));
        background_tasks_host::ready();
        Ok(listener)
    }

    /// Returns the next connection; `None` once the shutdown has begun.
    ///
    /// That one cannot be accepted (no descriptor is left, the client has gone again) does not end the service.
    pub async fn next<A, I>(&self, accept: impl Fn() -> A) -> Option<I>
    where
        A: Future<Output = io::Result<I>>,
    {
        let signal = self.notes.registry.signal();
        // Asked first: a connection that waits to be accepted would win over the signal, and then the next one.
        while !signal.is_triggered() {
            match signal.run_until_shutdown(accept()).await? {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    let _ = writeln!(stderr(), "no connection was accepted: {error}");
                    self.timer.sleep(Duration::from_millis(100)).await;
                }
            }
        }
        None
    }

    /// Serves a connection in the background. When the shutdown begins it ends, after the response to the request that it is at.
    pub fn serve<I>(&self, io: I)
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let notes = self.notes.clone();
        let service = tower::service_fn(move |request| notes.clone().answer(request));
        let service = RequestLayer::new(&self.notes.registry).layer(service);
        let connection = self.http.serve_connection(io, TowerToHyperService::new(service));
        let signal = self.notes.registry.signal();
        self.notes.registry.named("connection").run(async move {
            let mut connection = pin!(connection);
            // A client that breaks off is no failure of ours.
            if signal.run_until_shutdown(connection.as_mut()).await.is_none() {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        });
    }
}
