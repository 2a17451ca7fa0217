//! An HTTP/1 server that limits what its clients can hold: connections, memory and time.

mod answer;
mod timed;

pub use timed::TimedBody;

use crate::terminal::{Level, log};
use answer::{HostNames, answer, check_host};
use background_tasks::{Guard, Registry, ShutdownSignal, Spawner};
use bytes::Bytes;
use event_listener::Event;
use futures_lite::future::{or, yield_now};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::{Read, Timer, Write};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use std::error::Error;
use std::future::poll_fn;
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use std::{fmt, io};
use timed::{SharedTimer, TimeLimit, TimedIo};

/// The size of a connection's input buffer, and of its output buffer.
const BUFFER: usize = 32 * 1024;
/// The largest default of `max_connections`.
const MAX_CONNECTIONS: usize = 4096;
/// The time between a failure to accept a connection and the next attempt.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// After the end, the time in which the reactor reports what a client has already sent. One turn of the reactor is enough.
const LAST_READ: Duration = Duration::from_millis(10);
/// Replaces longer times, which could overflow an `Instant`.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

type BoxError = Box<dyn Error + Send + Sync>;

/// An HTTP/1 server on any runtime, whose connections are tasks of a registry.
///
/// The server is hyper's, with limits on what a client can hold, and a graceful shutdown. TLS and HTTP/2 belong to a proxy in front of it.
///
/// | a client that … | is limited by |
/// | --- | --- |
/// | opens many connections | [`max_connections`](Self::max_connections) |
/// | sends half the head of a request, or keeps an idle connection | [`head_timeout`](Self::head_timeout) |
/// | sends half the body of a request | [`body_timeout`](Self::body_timeout) |
/// | does not read a response | [`write_timeout`](Self::write_timeout) |
/// | sends a large head | status 431 if the head is larger than 32 KiB |
/// | uses an unknown host name | [`host_name`](Self::host_name) |
///
/// A connection buffers at most 32 KiB of input, and 32 KiB of output in addition to the last frame of a response body. A service that sends a large
/// response in small frames therefore needs less memory. One thousand connections with half a head of 31 KiB need about 45 MB. The service itself
/// must limit what it keeps, such as a collected body (in axum, `DefaultBodyLimit`), because each connection may send one.
///
/// # Compared with `axum::serve`
///
/// A graceful shutdown waits until all connections have closed. `axum::serve` has no time limits, so a client that sends half the head of a
/// request holds the shutdown until the grace period expires. The host then reports that all tasks have ended, but the program has not.
/// `axum::serve` also accepts connections until the process has no file descriptor left for the work of its requests.
///
/// # Shutdown
///
/// [`serve`](Self::serve) stops accepting connections once shutdown has started, and returns when all connections have closed:
///
/// - A connection without a request, or with half the head of a request, closes within 10 milliseconds. A connection that has had no request
///   yet has the [`late_head_timeout`](Self::late_head_timeout) to send its first head.
/// - A request whose head has arrived is answered, and its connection closes afterwards.
/// - The [`drain_timeout`](Self::drain_timeout) limits a body that is still arriving, and a response that the client does not read. A client that
///   reads a response slowly can still delay the drain until the grace period expires.
///
/// Each connection is a task of the registry, named `connection`, without a [permit](Registry::without_permit). So the drain waits for
/// connections, and the stragglers include them. If the service panics, the connection closes, and the registry counts a panicked
/// task. Add a `RequestLayer` (feature `tower`) if each request must have its own outcome.
///
/// An upgraded connection (a WebSocket) counts as open until the service drops it, although its task has ended. It must end at the registry's
/// [`signal`](Registry::signal), as must a stream of events. `UntilShutdown` (feature `tower`) ends both.
///
/// # Examples
///
/// With axum, on tokio:
///
/// ```no_run
/// use axum::{Router, routing::get};
/// use background_tasks::{Registry, TokioSpawner};
/// use background_tasks_host::{Host, HttpServer};
/// use hyper_util::{rt::{TokioIo, TokioTimer}, service::TowerToHyperService};
/// use std::{io, process::ExitCode};
/// use tokio::net::TcpListener;
///
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     let registry = Registry::new(TokioSpawner);
///     Host::new(&registry).run(serve(registry)).await
/// }
///
/// async fn serve(registry: Registry<TokioSpawner>) -> io::Result<()> {
///     let app = Router::new().route("/", get(async || "hello"));
///     let listener = TcpListener::bind("0.0.0.0:3000").await?;
///     let server = HttpServer::new(&registry, TokioTimer::new()).host_name("signups.example.com");
///     let accept = async move || Ok(TokioIo::new(listener.accept().await?.0));
///     server.serve(accept, TowerToHyperService::new(app)).await;
///     Ok(())
/// }
/// ```
///
/// With smol, `accept` is `async move || Ok(FuturesIo::new(listener.accept().await?.0))`, and the timer is `SmolTimer`, both of the crate
/// `smol-hyper`.
#[derive(Clone)]
pub struct HttpServer<S> {
    registry: Registry<S>,
    location: &'static Location<'static>,
    max_connections: usize,
    settings: Settings,
}

/// The settings of a connection.
#[derive(Clone)]
struct Settings {
    http: http1::Builder,
    timer: SharedTimer,
    body_timeout: Duration,
    write_timeout: Duration,
    drain_timeout: Duration,
    late_head_timeout: Duration,
    host_names: HostNames,
}

impl<S> HttpServer<S> {
    /// Returns a server whose connections are tasks of `registry`, with this call as their call site.
    ///
    /// The timer must work on the runtime that polls the connections. The server keeps a handle of the registry.
    #[track_caller]
    pub fn new(registry: &Registry<S>, timer: impl Timer + Clone + Send + Sync + 'static) -> Self
    where
        S: Clone,
    {
        let mut http = http1::Builder::new();
        http.timer(timer.clone()).max_buf_size(BUFFER);
        http.header_read_timeout(Duration::from_secs(5));
        let settings = Settings {
            http,
            timer: Arc::new(timer),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(5),
            late_head_timeout: LAST_READ,
            host_names: Some(Vec::new()),
        };
        let max_connections = default_max_connections();
        Self { registry: registry.clone(), location: Location::caller(), max_connections, settings }
    }

    /// Sets how many connections may be open. Default: half of the process's soft limit of file descriptors, at most 4096. Minimum: 1.
    /// Maximum: 4,194,303 (1,023 on 32-bit targets). Larger values are reduced to the maximum.
    ///
    /// The other descriptors are for the work of the service, such as files and connections to databases. Set a lower limit if a request needs more
    /// than one of them. At the limit, the server does not accept
    /// connections until one closes. New clients wait in the listener's backlog.
    ///
    /// On Windows, and if the limit cannot be read, the default is 4096.
    #[must_use = "this returns the server"]
    pub fn max_connections(self, connections: usize) -> Self {
        Self { max_connections: connections.max(1), ..self }
    }

    /// Sets how long the head of a request may take to arrive. Default: 5 seconds.
    ///
    /// The time starts when the connection opens, and after each response. So a connection also closes if it is idle for this long between two
    /// requests. If a load balancer keeps connections to the server open, its idle timeout must be shorter: otherwise it may send a request on
    /// a connection that the server is closing.
    #[must_use = "this returns the server"]
    pub fn head_timeout(mut self, timeout: Duration) -> Self {
        self.settings.http.header_read_timeout(timeout.min(FOREVER));
        self
    }

    /// Sets how long the body of a request may take to arrive, from the moment when the service first waits for it. Default: 30 seconds.
    ///
    /// When the time has expired, the service receives an error from the [`TimedBody`]. If the service then returns an error, the server
    /// responds 408. If the service returns a response with an error status, the server sets the status to 408. Afterwards the connection
    /// closes.
    #[must_use = "this returns the server"]
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.settings.body_timeout = timeout.min(FOREVER);
        self
    }

    /// Sets how long the client may take to read the next part of a response. Default: 30 seconds.
    ///
    /// If no byte can be written for this long, the connection closes. A system reports progress only after a client has read a large part of the
    /// socket's buffer, so a short time also closes connections of slow clients.
    #[must_use = "this returns the server"]
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.settings.write_timeout = timeout.min(FOREVER);
        self
    }

    /// Sets an upper limit for the body timeout and the write timeout once shutdown has started. Default: 5 seconds.
    ///
    /// The time must be shorter than the grace period. Otherwise a client that sends half a body holds the drain until the grace period expires.
    #[must_use = "this returns the server"]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain_timeout = timeout.min(FOREVER);
        self
    }

    /// Sets how long the first request head of a connection may take once the server has stopped accepting connections. Default and
    /// minimum: 10 milliseconds.
    ///
    /// The client of such a connection may have connected just before. Set a longer time, such as one second, if another process accepts
    /// the next connections: after `systemctl restart` of a service with a socket unit, or during a rolling update. Then no client sees its
    /// connection close without an answer. A client that sends nothing holds the drain for this long, so the time must be shorter than the
    /// grace period.
    #[must_use = "this returns the server"]
    pub fn late_head_timeout(mut self, timeout: Duration) -> Self {
        self.settings.late_head_timeout = timeout.clamp(LAST_READ, FOREVER);
        self
    }

    /// Accepts requests to this host name too, such as `"signups.example.com"`, on any port. Default: only `localhost` and IP addresses.
    ///
    /// A request to another host name is answered 421. This prevents DNS rebinding: an attacker gives the host name of a web page the
    /// address of this server. The browser then treats the page and the server as the same origin. This endangers servers whose only protection is a
    /// local or private address. Call [`any_host_name`](Self::any_host_name) for a public service whose requests are
    /// authenticated, or if a proxy in front of the service checks the name.
    #[must_use = "this returns the server"]
    pub fn host_name(mut self, name: &str) -> Self {
        self.settings.host_names.get_or_insert_default().push(name.to_owned());
        self
    }

    /// Accepts requests to any host name. See [`host_name`](Self::host_name) for the risk.
    ///
    /// The server still answers 400 to an invalid `Host`, to two `Host` headers, and to an HTTP/1.1 request without `Host`.
    #[must_use = "this returns the server"]
    pub fn any_host_name(mut self) -> Self {
        self.settings.host_names = None;
        self
    }

    /// Changes other settings of hyper's server, such as the size of its buffers (`max_buf_size`).
    #[must_use = "this returns the server"]
    pub fn configure(mut self, configure: impl FnOnce(&mut http1::Builder)) -> Self {
        configure(&mut self.settings.http);
        self
    }
}

impl<S: Spawner> HttpServer<S> {
    /// Serves until shutdown has started and all connections have closed.
    ///
    /// `accept` returns the next connection. The server drops `accept` when it stops accepting connections: if `accept` owns the listener, new clients
    /// are refused from then on. If `accept` fails because a client has disconnected, the server calls it again. After any other error, such as too many open
    /// files, the server logs the first error and tries again every tenth of a second.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the server stops accepting connections. Its connections close as they do at the end.
    pub async fn serve<I, H, B>(&self, accept: impl AsyncFnMut() -> io::Result<I>, service: H)
    where
        I: Read + Write + Unpin + Send + 'static,
        H: Service<Request<TimedBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        self.serve_until(self.registry.signal(), accept, service).await;
    }

    /// Serves until `end` resolves and all connections have closed; see [`serve`](Self::serve). The end takes the place of the start of the
    /// shutdown in the descriptions of this type.
    ///
    /// Use it for a server that stops accepting connections at another time than the registry's [`signal`](Registry::signal). For a load balancer that must
    /// see the service become unready before the listener closes, [`Host::delay`](crate::Host::delay) is enough.
    pub async fn serve_until<I, H, B>(&self, end: impl Future<Output = ()>, accept: impl AsyncFnMut() -> io::Result<I>, service: H)
    where
        I: Read + Write + Unpin + Send + 'static,
        H: Service<Request<TimedBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let settings = Arc::new(self.settings.clone());
        // Counts and limits the connections, and signals the end to them.
        let connections = Registry::builder(()).max_in_flight(self.max_connections).build();
        let (signal, closed) = (connections.signal(), Arc::new(Event::new()));
        let accept_connections = async {
            // Dropped before the drain.
            let (mut accept, service) = (accept, service);
            let mut is_failing = false;
            loop {
                let permit = Permit::acquire(&connections, &closed).await;
                match accept().await {
                    Ok(io) => {
                        is_failing = false;
                        let connection = settings.clone().connection(io, service.clone(), permit, signal.clone());
                        self.registry.named("connection").location(self.location).without_permit().run(connection);
                        // Under load a connection is always ready. `end` and other tasks must run.
                        yield_now().await;
                    }
                    Err(error) if is_of_the_client(&error) => yield_now().await,
                    Err(error) => {
                        if !is_failing {
                            log(Level::Error, format_args!("failed to accept a connection: {error}; trying again"));
                        }
                        is_failing = true;
                        settings.timer.sleep(ACCEPT_RETRY).await;
                    }
                }
            }
        };
        or(end, accept_connections).await;
        connections.shutdown().await;
    }
}

impl Settings {
    /// Serves a connection until it closes.
    fn connection<I, H, B>(
        self: Arc<Self>,
        io: I,
        service: H,
        permit: Permit,
        signal: ShutdownSignal,
    ) -> impl Future<Output = ()> + Send + use<I, H, B>
    where
        I: Read + Write + Unpin + Send + 'static,
        H: Service<Request<TimedBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let limit = {
            let (settings, signal) = (self.clone(), signal.clone());
            move |timeout| TimeLimit::new(settings.timer.clone(), timeout, settings.drain_timeout, signal.clone())
        };
        let io = TimedIo::new(io, limit(self.write_timeout), permit);
        let has_request = Arc::new(AtomicBool::new(false));
        let (requested, settings, stopping) = (has_request.clone(), self.clone(), signal.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            requested.store(true, Ordering::Relaxed);
            let timed_out = Arc::new(AtomicBool::new(false));
            let called = check_host(&request, &settings.host_names).map(|()| {
                let body = |body| TimedBody::new(body, limit(settings.body_timeout), timed_out.clone());
                service.call(request.map(body))
            });
            answer(called, timed_out, stopping.clone())
        });
        let connection = self.http.serve_connection(io, service).with_upgrades();
        async move {
            let mut connection = pin!(connection);
            // A client that disconnects is not a failure of the task.
            if signal.run_until_shutdown(connection.as_mut()).await.is_some() {
                return;
            }
            // A request that arrived before the end is answered, and so is a first request that arrives a little later.
            let is_new = !has_request.load(Ordering::Relaxed);
            let timeout = if is_new { self.late_head_timeout } else { LAST_READ };
            let closed_or_first_request = poll_fn(|cx| match connection.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(true),
                Poll::Pending if is_new && has_request.load(Ordering::Relaxed) => Poll::Ready(false),
                Poll::Pending => Poll::Pending,
            });
            let timed_out = async {
                self.timer.sleep(timeout).await;
                false
            };
            let has_closed = or(closed_or_first_request, timed_out).await;
            // hyper would wait for the rest of a first head, so a connection without a request is dropped here.
            if !has_closed && has_request.load(Ordering::Relaxed) {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        }
    }
}

impl<S> fmt::Debug for HttpServer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpServer")
            .field("registry", &self.registry)
            .field("max_connections", &self.max_connections)
            .field("host_names", &self.settings.host_names)
            .finish_non_exhaustive()
    }
}

fn default_max_connections() -> usize {
    #[cfg(unix)]
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        return usize::try_from(soft / 2).unwrap_or(usize::MAX).clamp(1, MAX_CONNECTIONS);
    }
    MAX_CONNECTIONS
}

/// Returns whether this connection failed, and not the listener.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// The permit of one open connection.
struct Permit {
    guard: Option<Guard>,
    closed: Arc<Event>,
}

impl Permit {
    /// Waits until fewer connections are open than the limit allows.
    async fn acquire(connections: &Registry<()>, closed: &Arc<Event>) -> Self {
        loop {
            let listener = closed.listen();
            if let Ok(guard) = connections.guard() {
                return Self { guard: Some(guard), closed: closed.clone() };
            }
            listener.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.guard = None;
        self.closed.notify(1);
    }
}
