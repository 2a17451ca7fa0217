//! An HTTP/1 server that limits how many connections, how much memory and how much time its clients can use.

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

/// A connection's input buffer and its output buffer each have at most this size.
const BUFFER: usize = 32 * 1024;
/// The default of `max_connections` is at most this number.
const MAX_CONNECTIONS: usize = 4096;
/// If the server fails to accept a connection, it waits this long before the next attempt.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// When the server stops accepting connections, it waits this long for bytes that a client has already sent. In this time, the runtime's
/// reactor reports these bytes. One turn of the reactor is enough.
const LAST_READ: Duration = Duration::from_millis(10);
/// If a timeout is longer than this time, the server uses this time, because a longer timeout could overflow an `Instant`.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);

type BoxError = Box<dyn Error + Send + Sync>;

/// An HTTP/1 server that works on any runtime. It runs its connections as tasks of a registry.
///
/// The server uses hyper, and adds a graceful shutdown and limits for clients. For TLS and HTTP/2, put a proxy in front of the server.
///
/// | a client that … | is limited by |
/// | --- | --- |
/// | opens many connections | [`max_connections`](Self::max_connections) |
/// | sends half the head of a request, or keeps an idle connection | [`head_timeout`](Self::head_timeout) |
/// | sends half the body of a request | [`body_timeout`](Self::body_timeout) |
/// | does not read a response | [`write_timeout`](Self::write_timeout) |
/// | sends a large head | status 431 if the head is larger than 32 KiB |
/// | uses an unknown host name | [`host_name`](Self::host_name), unless you call [`any_host_name`](Self::any_host_name) |
///
/// # Memory
///
/// A connection buffers at most 32 KiB of input. For example, if each of one thousand clients sends an incomplete request head of 31 KiB,
/// the connections together need about 45 MB. A connection also buffers at most 32 KiB of output and one frame of a response body. So a
/// service needs less memory if it sends a large response in small frames.
///
/// The server does not limit the memory that the service itself uses. For example, a client can send a large request body. A service that
/// collects whole request bodies must therefore limit their size (in axum: `DefaultBodyLimit`).
///
/// # Compared with `axum::serve`
///
/// A graceful shutdown waits until all connections have closed. `axum::serve` has no time limits, so a client that sends only half a
/// request head delays the shutdown until the grace period expires. The host then reports that the program is still in flight, and that
/// this can be the cause. `axum::serve` also does not limit the number of connections, so connections can use up all file descriptors of
/// the process.
///
/// axum's extractor `ConnectInfo` needs the method [`serve_connections`](Self::serve_connections).
///
/// # Shutdown
///
/// When shutdown starts, [`serve`](Self::serve) stops accepting connections, and returns as soon as all connections have closed:
///
/// - A connection that waits for its next request closes within 10 milliseconds, even if half of the request head has arrived. A connection
///   that has had no request stays open for the [`late_head_timeout`](Self::late_head_timeout), so that its client can still send a first
///   request.
/// - The server answers a request whose head has arrived, and then closes the connection.
/// - The [`drain_timeout`](Self::drain_timeout) limits how long the server waits for the rest of a request body, and for a client that does
///   not read. A client that reads its response slowly can still delay the drain until the grace period expires.
///
/// Each connection is a task of the registry with the name `connection`. So the drain waits for connections, and reports of stragglers list
/// the open connections. The task takes [no permit](Registry::without_permit). If the service panics, its connection closes, and the
/// registry counts a panicked task. If the service or a response body returns an error, its connection closes, and the server logs a
/// warning. If each request must have its own outcome, add a `RequestLayer` (feature `tower`).
///
/// The task of a connection ends when the connection is upgraded (to a WebSocket). But the server still waits for the connection until the
/// service drops it. The service must end upgraded connections and streams of events when the registry's [`signal`](Registry::signal) is
/// triggered. The wrapper `UntilShutdown` (feature `tower`) does this.
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
///     // Requests to other names receive status 421. `any_host_name()` accepts all names, for example behind a proxy that checks the name.
///     let server = HttpServer::new(&registry, TokioTimer::new()).host_name("signups.example.com");
///     let accept = async move || Ok(TokioIo::new(listener.accept().await?.0));
///     server.serve(accept, TowerToHyperService::new(app)).await;
///     Ok(())
/// }
/// ```
///
/// With smol, `accept` is `async move || Ok(FuturesIo::new(listener.accept().await?.0))`, and the timer is `SmolTimer`. `FuturesIo` and
/// `SmolTimer` come from the crate `smol-hyper`.
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
    /// Creates a server that runs its connections as tasks of `registry`. These tasks have this call to `new` as their call site.
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

    /// Sets how many connections can be open at the same time. Default: half of the process's soft limit of file descriptors, at most 4096.
    /// Minimum: 1. Maximum: 4,194,303 (1,023 on 32-bit targets). Larger values are reduced to the maximum.
    ///
    /// With the default, at least half of the file descriptors are left for the service, for example for its files and database
    /// connections. If a request needs more than one file descriptor for such work, set a lower limit. At the limit, the server accepts a
    /// new connection only after another connection has closed. Meanwhile, new clients wait in the listener's backlog.
    ///
    /// Each call to [`serve`](Self::serve) has its own limit. If a program serves several listeners, divide the connections among them.
    ///
    /// On Windows, and if the limit cannot be read, the default is 4096.
    #[must_use = "this returns the server"]
    pub fn max_connections(self, connections: usize) -> Self {
        Self { max_connections: connections.max(1), ..self }
    }

    /// Sets the longest time until the head of a request has arrived. Default: 5 seconds.
    ///
    /// The time starts when the connection opens, and restarts from zero after each response. So the server also closes a connection that
    /// is idle for this long between two requests.
    ///
    /// If a load balancer keeps connections to the server open, the load balancer's own idle timeout must be shorter than this time.
    /// Otherwise, the load balancer can send a request on a connection that the server is closing.
    #[must_use = "this returns the server"]
    pub fn head_timeout(mut self, timeout: Duration) -> Self {
        self.settings.http.header_read_timeout(timeout.min(FOREVER));
        self
    }

    /// Sets the longest time until the body of a request has arrived. The time starts when the service first reads the body. Default: 30
    /// seconds.
    ///
    /// The server reads a body only as fast as the service takes it. So the time that the service needs between two frames counts too. If
    /// the service writes large bodies to a slow disk, for example, set a longer time.
    ///
    /// When the time has expired, the service receives an error from the [`TimedBody`]. If the service then returns an error, the server
    /// answers with status 408. If the service returns a response with an error status, the server changes this status to 408. After such a
    /// response, the server closes the connection.
    #[must_use = "this returns the server"]
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.settings.body_timeout = timeout.min(FOREVER);
        self
    }

    /// Sets the longest time for which the client can stop reading a response. Default: 30 seconds.
    ///
    /// If the server can write no byte for this long, it closes the connection. Do not choose a short time. Operating systems report
    /// progress only after the client has read a large part of the socket's buffer. So a short time also closes the connections of slow
    /// clients.
    #[must_use = "this returns the server"]
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.settings.write_timeout = timeout.min(FOREVER);
        self
    }

    /// Sets an upper limit for the body timeout and the write timeout during a shutdown. Default: 5 seconds.
    ///
    /// As with the [`body_timeout`](Self::body_timeout), the time that the service needs between two frames of a body counts too.
    ///
    /// Choose a time that is shorter than the grace period. Otherwise, a client that sends only half a body delays the drain until the
    /// grace period expires.
    #[must_use = "this returns the server"]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain_timeout = timeout.min(FOREVER);
        self
    }

    /// Sets how long the server waits for the first request of an open connection when shutdown starts. Default: 10 milliseconds. Minimum:
    /// 10 milliseconds.
    ///
    /// A client may have connected immediately before the shutdown, and its first request may still be on the way. With the default, the
    /// server can close the connection before this request arrives. Set a longer time, such as one second, if no request may fail while a
    /// new process takes over. Examples are `systemctl restart` of a service with a socket unit, and a rolling update. A client that sends
    /// nothing delays the drain for this long, so the time must be shorter than the grace period.
    #[must_use = "this returns the server"]
    pub fn late_head_timeout(mut self, timeout: Duration) -> Self {
        self.settings.late_head_timeout = timeout.clamp(LAST_READ, FOREVER);
        self
    }

    /// Adds a host name, such as `"signups.example.com"`, to which the server accepts requests, on any port. Default: only `localhost` and
    /// IP addresses.
    ///
    /// The server answers a request to another host name with status 421. This prevents DNS rebinding, an attack in which the host name of
    /// a web page resolves to the address of this server. The browser then treats the page and the server as the same origin. The attack
    /// endangers servers that are protected only by a local or private address.
    ///
    /// If the service is public and authenticates its requests, or if a proxy in front of the service checks the name, call
    /// [`any_host_name`](Self::any_host_name).
    #[must_use = "this returns the server"]
    pub fn host_name(mut self, name: &str) -> Self {
        self.settings.host_names.get_or_insert_default().push(name.to_owned());
        self
    }

    /// Accepts requests to any host name. See [`host_name`](Self::host_name) for the risk.
    ///
    /// The server still answers with status 400 if `Host` is invalid, if there are two `Host` headers, or if an HTTP/1.1 request has no
    /// `Host`.
    #[must_use = "this returns the server"]
    pub fn any_host_name(mut self) -> Self {
        self.settings.host_names = None;
        self
    }

    /// Changes settings of hyper's server for which `HttpServer` has no method, such as the size of the buffers (`max_buf_size`).
    #[must_use = "this returns the server"]
    pub fn configure(mut self, configure: impl FnOnce(&mut http1::Builder)) -> Self {
        configure(&mut self.settings.http);
        self
    }
}

impl<S: Spawner> HttpServer<S> {
    /// Accepts and serves connections until shutdown has started and all connections have closed.
    ///
    /// `accept` returns the next connection. The server drops `accept` when it stops accepting connections. If `accept` owns the listener,
    /// the listener closes at this moment, and the system refuses new clients.
    ///
    /// If `accept` fails because a client has disconnected, the server immediately calls `accept` again. After any other error, such as too
    /// many open files, the server waits a tenth of a second before it calls `accept` again. If several of these errors follow each other,
    /// the server logs only the first.
    ///
    /// # Cancel safety
    ///
    /// If this future is dropped, the server stops accepting connections, and closes open connections as it does when shutdown starts.
    pub async fn serve<I, H, B>(&self, accept: impl AsyncFnMut() -> io::Result<I>, service: H)
    where
        I: Read + Write + Unpin + Send + 'static,
        H: Service<Request<TimedBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        self.serve_until(self.registry.signal(), accept, service).await;
    }

    /// Accepts and serves connections until the future `end` resolves and all connections have closed; see [`serve`](Self::serve). When
    /// `end` resolves, the server does the same as `serve` does when shutdown starts.
    ///
    /// Use this method if the server must stop accepting connections earlier or later than the registry's [`signal`](Registry::signal) is
    /// triggered. If the only reason is that a load balancer must see that the service is not ready before the listener closes, set
    /// [`Host::delay`](crate::Host::delay) instead.
    pub async fn serve_until<I, H, B>(&self, end: impl Future<Output = ()>, accept: impl AsyncFnMut() -> io::Result<I>, service: H)
    where
        I: Read + Write + Unpin + Send + 'static,
        H: Service<Request<TimedBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (mut accept, mut service) = (accept, service);
        let accept = async move || {
            // With a shared reference, the future would be `Send` only if the service were `Sync`.
            let service = &mut service;
            Ok((accept().await?, service.clone()))
        };
        self.serve_connections(end, accept).await;
    }

    /// Accepts and serves connections as [`serve_until`](Self::serve_until) does, with a separate service for each connection.
    ///
    /// `accept` returns the next connection and its service. Use this method if the service must know something about its connection, such
    /// as the address of the client. Behind a proxy, this is the address of the proxy.
    ///
    /// # Examples
    ///
    /// With axum's extractor `ConnectInfo`:
    ///
    /// ```no_run
    /// use axum::{Extension, Router, extract::ConnectInfo, routing::get};
    /// use background_tasks::{Registry, TokioSpawner};
    /// use background_tasks_host::HttpServer;
    /// use hyper_util::{rt::{TokioIo, TokioTimer}, service::TowerToHyperService};
    /// use std::{io, net::SocketAddr};
    /// use tokio::net::TcpListener;
    /// use tower::Layer;
    ///
    /// async fn greet(ConnectInfo(address): ConnectInfo<SocketAddr>) -> String {
    ///     format!("hello {address}")
    /// }
    ///
    /// async fn serve(registry: Registry<TokioSpawner>) -> io::Result<()> {
    ///     let app = Router::new().route("/", get(greet));
    ///     let listener = TcpListener::bind("0.0.0.0:3000").await?;
    ///     let server = HttpServer::new(&registry, TokioTimer::new()).host_name("signups.example.com");
    ///     let accept = async move || {
    ///         let (stream, address) = listener.accept().await?;
    ///         let app = Extension(ConnectInfo(address)).layer(app.clone());
    ///         Ok((TokioIo::new(stream), TowerToHyperService::new(app)))
    ///     };
    ///     server.serve_connections(registry.signal(), accept).await;
    ///     Ok(())
    /// }
    /// ```
    pub async fn serve_connections<I, H, B>(&self, end: impl Future<Output = ()>, accept: impl AsyncFnMut() -> io::Result<(I, H)>)
    where
        I: Read + Write + Unpin + Send + 'static,
        H: Service<Request<TimedBody>, Response = Response<B>, Error: Into<BoxError>, Future: Send> + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let settings = Arc::new(self.settings.clone());
        // This registry counts and limits the open connections. Its signal makes them close.
        let connections = Registry::builder(()).max_in_flight(self.max_connections).build();
        let (signal, closed) = (connections.signal(), Arc::new(Event::new()));
        let accept_connections = async {
            // `accept` moves into this block, so that it is dropped, and its listener closes, before the connections drain.
            let mut accept = accept;
            let mut is_failing = false;
            loop {
                let permit = Permit::acquire(&connections, &closed).await;
                match accept().await {
                    Ok((io, service)) => {
                        is_failing = false;
                        let connection = settings.clone().connection(io, service, permit, signal.clone());
                        self.registry.named("connection").location(self.location).without_permit().run(connection);
                        // Under load, the next connection is always ready, and the loop would never return `Pending`. The yield lets `end`
                        // and other tasks run.
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
        let [has_request, body_failed] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (requested, failed, settings, stopping) = (has_request.clone(), body_failed.clone(), self.clone(), signal.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            requested.store(true, Ordering::Relaxed);
            let timed_out = Arc::new(AtomicBool::new(false));
            let called = check_host(&request, &settings.host_names).map(|()| {
                let body = |body| TimedBody::new(body, limit(settings.body_timeout), timed_out.clone(), failed.clone());
                service.call(request.map(body))
            });
            answer(called, timed_out, stopping.clone())
        });
        let connection = self.http.serve_connection(io, service).with_upgrades();
        let closed = async move {
            let mut connection = pin!(connection);
            if let Some(closed) = signal.run_until_shutdown(connection.as_mut()).await {
                return closed;
            }
            // The server has stopped. It still answers a request that has already arrived, and a first request that arrives within
            // `late_head_timeout`.
            let is_new = !has_request.load(Ordering::Relaxed);
            let timeout = if is_new { self.late_head_timeout } else { LAST_READ };
            let closed_or_first_request = poll_fn(|cx| match connection.as_mut().poll(cx) {
                Poll::Ready(closed) => Poll::Ready(Some(closed)),
                Poll::Pending if is_new && has_request.load(Ordering::Relaxed) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            let timed_out = async {
                self.timer.sleep(timeout).await;
                None
            };
            if let Some(closed) = or(closed_or_first_request, timed_out).await {
                return closed;
            }
            // With an incomplete first request head, hyper would wait for the rest. So a connection that has had no request is dropped and
            // not shut down gracefully.
            if has_request.load(Ordering::Relaxed) {
                connection.as_mut().graceful_shutdown();
                return connection.await;
            }
            Ok(())
        };
        async move {
            // Only errors of the service and of its response body are logged. All other errors come from the client, for example because it
            // has disconnected. A service may also return the error of a request body, which comes from the client too.
            let failed = closed.await.err().filter(|error| error.is_user() && !body_failed.load(Ordering::Relaxed));
            if let Some(error) = failed {
                match error.source() {
                    Some(cause) => log(Level::Warn, format_args!("failed to answer a request: {error}: {cause}")),
                    None => log(Level::Warn, format_args!("failed to answer a request: {error}")),
                }
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

/// Returns whether the error affects only one connection. If it does, the listener still works.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Counts one open connection. While the number of permits is at the limit, the server accepts no connection.
struct Permit {
    guard: Option<Guard>,
    closed: Arc<Event>,
}

impl Permit {
    /// Waits until the number of open connections is below the limit.
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
