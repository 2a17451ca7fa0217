//! Tests `HttpServer` with clients that write and read raw bytes.

use background_tasks::{Registry, SmolSpawner, TokioSpawner};
use background_tasks_host::{HttpServer, TimedBody};
use bytes::Bytes;
use futures_lite::future::{or, yield_now};
use http_body_util::{BodyExt, Full};
use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use smol_hyper::rt::{FuturesIo, SmolTimer};
use std::cell::Cell;
use std::future::pending;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A time limit that is longer than any step of a test takes. A step that exceeds the limit hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// A time limit that a test waits for.
const SHORT: Duration = Duration::from_millis(50);
/// A time limit that is too long to expire during a test.
const LONG: Duration = Duration::from_secs(600);

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
const HALF_HEAD: &[u8] = b"GET / HTTP/1.1\r\nHo";
const HALF_BODY: &[u8] = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf";

type Reply = Response<Full<Bytes>>;

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("timed out")
}

/// Responds with the body of the request.
async fn echo(request: Request<TimedBody>) -> io::Result<Reply> {
    Ok(Response::new(Full::new(request.into_body().collect().await?.to_bytes())))
}

/// A server on the runtime tokio.
struct Server {
    registry: Registry<TokioSpawner>,
    address: SocketAddr,
    serve: JoinHandle<()>,
}

impl Server {
    /// Starts a server with long time limits. `configure` may change these limits.
    async fn start<H>(configure: impl FnOnce(HttpServer<TokioSpawner>) -> HttpServer<TokioSpawner>, service: H) -> Self
    where
        H: Service<Request<TimedBody>, Response = Reply, Error = io::Error, Future: Send> + Clone + Send + 'static,
    {
        let registry = Registry::builder(TokioSpawner).inspect().build();
        let server = HttpServer::new(&registry, TokioTimer::new());
        let server = configure(server.head_timeout(LONG).body_timeout(LONG).write_timeout(LONG).drain_timeout(LONG));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accept = async move || Ok(TokioIo::new(listener.accept().await?.0));
        let serve = tokio::spawn(async move { server.serve(accept, service).await });
        Self { registry, address, serve }
    }

    async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// Waits until exactly `count` connections are open.
    async fn wait_for_connections(&self, count: usize) {
        let connections = || self.registry.tasks().iter().filter(|task| task.name() == Some("connection")).count();
        soon(async {
            while connections() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    /// Shuts the registry down, and waits until the server has closed all connections.
    async fn stop(self) {
        self.registry.start_shutdown();
        soon(self.serve).await.unwrap();
        soon(self.registry.shutdown()).await;
    }
}

struct Client(TcpStream);

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn send(&mut self, bytes: &[u8]) {
        soon(self.0.write_all(bytes)).await.unwrap();
    }

    /// Reads the next response. Returns the status and the head of the response. If the head contains `Content-Length`, reads the body
    /// too.
    async fn receive(&mut self) -> (u16, String) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(soon(self.0.read_u8()).await.expect("the connection was closed"));
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
        soon(self.0.read_exact(&mut vec![0; length])).await.unwrap();
        (head[9..12].parse().unwrap(), head)
    }

    async fn get(&mut self) -> u16 {
        self.send(GET).await;
        self.receive().await.0
    }

    /// Waits until the server closes the connection. Returns the text that the server has sent before.
    async fn closed(&mut self) -> String {
        let mut rest = Vec::new();
        // The read fails if the server resets the connection, because the server has not read all bytes.
        let _ = soon(self.0.read_to_end(&mut rest)).await;
        String::from_utf8_lossy(&rest).into_owned()
    }
}

#[tokio::test]
async fn connections_above_the_limit_wait_until_one_closes() {
    let server = Server::start(|server| server.max_connections(1), service_fn(echo)).await;
    let mut first = server.connect().await;
    assert_eq!(first.get().await, 200);
    let mut second = server.connect().await;
    second.send(GET).await;
    for _ in 0..100 {
        assert_eq!(first.get().await, 200);
    }
    assert_eq!(second.0.try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(first);
    assert_eq!(second.receive().await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn server_at_its_limit_does_not_poll_the_listener() {
    let registry = Registry::new(TokioSpawner);
    let server = HttpServer::new(&registry, TokioTimer::new()).max_connections(2);
    let (calls, open) = (Cell::new(0), Cell::new(Vec::new()));
    let accept = async || {
        calls.set(calls.get() + 1);
        let (client, stream) = tokio::io::duplex(1024);
        let mut clients = open.take();
        clients.push(client);
        open.set(clients);
        Ok(TokioIo::new(stream))
    };
    let steps = async {
        for _ in 0..100 {
            yield_now().await;
        }
        assert_eq!(calls.get(), 2);
        // When one connection closes, the server must accept another connection.
        drop(open.take().pop());
        soon(async {
            while calls.get() < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    };
    or(server.serve(accept, service_fn(echo)), steps).await;
}

#[test]
fn default_limit_leaves_descriptors_for_the_work() {
    #[cfg(unix)]
    let soft = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    // Windows has no such limit of open files.
    #[cfg(windows)]
    let soft = u64::MAX;
    let server = format!("{:?}", HttpServer::new(&Registry::new(TokioSpawner), TokioTimer::new()));
    assert!(server.contains(&format!("max_connections: {},", (soft / 2).min(4096))), "{server}");
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed() {
    // A longer time than `SHORT`, because the time of the last client starts before its request.
    let server = Server::start(|server| server.head_timeout(Duration::from_secs(1)), service_fn(echo)).await;
    let mut half = server.connect().await;
    half.send(HALF_HEAD).await;
    let mut silent = server.connect().await;
    let mut idle = server.connect().await;
    assert_eq!(idle.get().await, 200);
    for client in [&mut half, &mut silent, &mut idle] {
        assert_eq!(client.closed().await, "");
    }
    server.stop().await;
}

#[tokio::test]
async fn large_heads_are_refused() {
    let server = Server::start(|server| server, service_fn(echo)).await;
    let mut client = server.connect().await;
    client.send(format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(32 * 1024)).as_bytes()).await;
    assert_eq!(client.receive().await.0, 431);
    server.stop().await;
}

#[tokio::test]
async fn shutdown_closes_connections_without_a_whole_head() {
    let server = Server::start(|server| server, service_fn(echo)).await;
    let mut clients = Vec::new();
    for has_request in [false, true] {
        for bytes in [&b""[..], HALF_HEAD] {
            let mut client = server.connect().await;
            if has_request {
                assert_eq!(client.get().await, 200);
            }
            client.send(bytes).await;
            clients.push(client);
        }
    }
    server.wait_for_connections(clients.len()).await;
    server.stop().await;
    for mut client in clients {
        assert_eq!(client.closed().await, "");
    }
}

/// A client that has connected just before the shutdown sends its first request in two parts after the shutdown has started.
#[tokio::test]
async fn first_request_may_be_late() {
    let server = Server::start(|server| server.late_head_timeout(LONG), service_fn(echo)).await;
    let (mut late, mut kept_alive) = (server.connect().await, server.connect().await);
    assert_eq!(kept_alive.get().await, 200);
    server.wait_for_connections(2).await;
    server.registry.start_shutdown();
    // The late head timeout applies only to the first request of a connection.
    assert_eq!(kept_alive.closed().await, "");
    // A correct server does nothing during this sleep. A server with a bug would close the connection too early.
    tokio::time::sleep(SHORT).await;
    late.send(&GET[..10]).await;
    late.send(&GET[10..]).await;
    assert_eq!(late.receive().await.0, 200);
    assert_eq!(late.closed().await, "");
    server.stop().await;

    let server = Server::start(|server| server.late_head_timeout(SHORT), service_fn(echo)).await;
    let mut half = server.connect().await;
    half.send(HALF_HEAD).await;
    server.wait_for_connections(1).await;
    server.stop().await;
    assert_eq!(half.closed().await, "");
}

#[tokio::test]
async fn request_that_has_arrived_before_the_shutdown_is_answered() {
    let server = Server::start(|server| server, service_fn(echo)).await;
    let (fresh, mut kept_alive) = (server.connect().await, server.connect().await);
    assert_eq!(kept_alive.get().await, 200);
    server.wait_for_connections(2).await;
    // There is no `await` before the shutdown starts, so the server cannot run earlier.
    fresh.0.try_write(GET).unwrap();
    kept_alive.0.try_write(GET).unwrap();
    server.registry.start_shutdown();
    for mut client in [fresh, kept_alive] {
        assert_eq!(client.receive().await.0, 200);
        assert_eq!(client.closed().await, "");
    }
    server.stop().await;
}

#[tokio::test]
async fn response_in_progress_finishes_after_the_shutdown() {
    let (called, finish) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let service = {
        let (called, finish) = (called.clone(), finish.clone());
        service_fn(move |request| {
            let (called, finish) = (called.clone(), finish.clone());
            async move {
                called.notify_one();
                finish.notified().await;
                echo(request).await
            }
        })
    };
    let server = Server::start(|server| server, service).await;
    let mut client = server.connect().await;
    client.send(GET).await;
    soon(called.notified()).await;
    server.registry.start_shutdown();
    // The server closes the listener before it closes the connections.
    soon(async { while TcpStream::connect(server.address).await.is_ok() {} }).await;
    assert!(!server.registry.is_drained() && !server.serve.is_finished());
    finish.notify_one();
    let (status, head) = client.receive().await;
    assert_eq!((status, head.contains("connection: close")), (200, true));
    assert_eq!(client.closed().await, "");
    server.stop().await;
}

#[tokio::test]
async fn server_accepts_connections_until_its_end() {
    let registry = Registry::new(TokioSpawner);
    let server = HttpServer::new(&registry, TokioTimer::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let end = Notify::new();
    let accept = async || Ok(TokioIo::new(listener.accept().await?.0));
    let steps = async {
        let _program = registry.guard().unwrap();
        registry.start_shutdown();
        let mut client = Client::connect(address).await;
        assert_eq!([client.get().await, client.get().await], [200, 200]);
        end.notify_one();
        assert_eq!(client.closed().await, "");
    };
    soon(futures_lite::future::zip(server.serve_until(end.notified(), accept, service_fn(echo)), steps)).await;
}

#[tokio::test]
async fn server_ends_while_connections_are_always_ready() {
    let server = HttpServer::new(&Registry::new(TokioSpawner), TokioTimer::new());
    let accept = async || io::Result::<TokioIo<TcpStream>>::Err(io::ErrorKind::ConnectionAborted.into());
    soon(server.serve_until(async { yield_now().await }, accept, service_fn(echo))).await;
}

#[tokio::test]
async fn full_registry_has_connections() {
    let registry = Registry::builder(TokioSpawner).max_in_flight(1).build();
    let _task = registry.guard().unwrap();
    let server = HttpServer::new(&registry, TokioTimer::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async || Ok(TokioIo::new(listener.accept().await?.0));
    or(server.serve(accept, service_fn(echo)), async { assert_eq!(Client::connect(address).await.get().await, 200) }).await;
}

#[tokio::test]
async fn dropped_server_closes_its_connections() {
    let server = Server::start(|server| server, service_fn(echo)).await;
    let mut client = server.connect().await;
    client.send(HALF_HEAD).await;
    server.wait_for_connections(1).await;
    server.serve.abort();
    assert_eq!(client.closed().await, "");
    assert!(!server.registry.is_shutting_down());
}

#[tokio::test]
async fn slow_body_is_answered_408() {
    let server = Server::start(|server| server.body_timeout(SHORT), service_fn(echo)).await;
    let mut client = server.connect().await;
    client.send(HALF_BODY).await;
    let (status, head) = client.receive().await;
    assert_eq!((status, head.contains("connection: close")), (408, true));
    assert_eq!(client.closed().await, "");
    server.stop().await;
}

#[tokio::test]
async fn service_decides_on_the_response_to_a_slow_body() {
    // If reading the body fails, the service responds with this status.
    for (status, expected) in
        [(StatusCode::ACCEPTED, 202), (StatusCode::BAD_REQUEST, 408), (StatusCode::INTERNAL_SERVER_ERROR, 408)]
    {
        let service = service_fn(move |request: Request<TimedBody>| async move {
            let mut body = request.into_body();
            let error = loop {
                if let Err(error) = body.frame().await.unwrap() {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(body.frame().await.is_none());
            Ok(Response::builder().status(status).body(Full::default()).unwrap())
        });
        let server = Server::start(|server| server.body_timeout(SHORT), service).await;
        let mut client = server.connect().await;
        client.send(HALF_BODY).await;
        let (status, head) = client.receive().await;
        assert_eq!((status, head.contains("connection: close")), (expected, true));
        server.stop().await;
    }
}

/// A connection whose client never stops sending the body of its request.
struct Endless {
    head: &'static [u8],
    closed: mpsc::Sender<()>,
}

impl Read for Endless {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let head = std::mem::take(&mut self.head);
        buffer.put_slice(if head.is_empty() { &[b'x'; 1024] } else { head });
        Poll::Ready(Ok(()))
    }
}

impl Write for Endless {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        assert!(bytes.starts_with(b"HTTP/1.1 408"));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = self.closed.try_send(());
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn endless_body_is_ended() {
    let registry = Registry::new(TokioSpawner);
    let server = HttpServer::new(&registry, TokioTimer::new()).body_timeout(SHORT).max_connections(1);
    let discard = service_fn(async |request: Request<TimedBody>| {
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            frame?;
        }
        io::Result::Ok(Reply::default())
    });
    let (closed, mut ends) = mpsc::channel(1);
    let head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n";
    let accept = async || Ok(Endless { head, closed: closed.clone() });
    soon(or(server.serve(accept, discard), async { ends.recv().await.unwrap() })).await;
}

#[tokio::test]
async fn half_a_body_does_not_hold_the_shutdown() {
    let server = Server::start(|server| server.drain_timeout(SHORT), service_fn(echo)).await;
    let (mut before, mut client) = (server.connect().await, server.connect().await);
    assert_eq!(before.get().await, 200);
    client.send(HALF_BODY).await;
    // After ten more responses to the other client, the service is probably waiting for the rest of the body.
    for _ in 0..10 {
        assert_eq!(before.get().await, 200);
    }
    server.registry.start_shutdown();
    assert_eq!(client.receive().await.0, 408);
    server.stop().await;
}

/// Sends many requests for large responses, and does not read the responses.
async fn send_without_reading(server: &Server) -> Client {
    let mut client = server.connect().await;
    client.send(&GET.repeat(50)).await;
    server.wait_for_connections(1).await;
    client
}

async fn respond_with_a_mebibyte(_: Request<TimedBody>) -> io::Result<Reply> {
    Ok(Response::new(Full::from(vec![b'x'; 1 << 20])))
}

#[tokio::test]
async fn client_that_does_not_read_is_disconnected() {
    let server = Server::start(|server| server.write_timeout(SHORT), service_fn(respond_with_a_mebibyte)).await;
    let _client = send_without_reading(&server).await;
    server.wait_for_connections(0).await;
    server.stop().await;
}

#[tokio::test]
async fn client_that_does_not_read_does_not_hold_the_shutdown() {
    let server = Server::start(|server| server.drain_timeout(SHORT), service_fn(respond_with_a_mebibyte)).await;
    let _client = send_without_reading(&server).await;
    server.stop().await;
}

/// A timer whose time passes only when the test changes it.
#[derive(Clone)]
struct ManualTimer {
    now: watch::Sender<Instant>,
}

struct ManualSleep(Pin<Box<dyn Future<Output = ()> + Send + Sync>>);

impl Future for ManualSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Sleep for ManualSleep {}

impl Timer for ManualTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let mut now = self.now.subscribe();
        Box::pin(ManualSleep(Box::pin(async move {
            let _ = now.wait_for(|now| *now >= deadline).await;
        })))
    }

    fn now(&self) -> Instant {
        *self.now.borrow()
    }
}

/// The service takes longer for each frame than the client, so the next frame is always ready. In the second case, only the drain timeout
/// applies.
#[tokio::test]
async fn body_that_is_always_ready_is_ended() {
    for is_draining in [false, true] {
        let timer = ManualTimer { now: watch::Sender::new(Instant::now()) };
        let registry = Registry::new(TokioSpawner);
        let body_timeout = if is_draining { Duration::MAX } else { LONG };
        let server = HttpServer::new(&registry, timer.clone()).body_timeout(body_timeout).drain_timeout(LONG);
        let server = server.head_timeout(Duration::MAX);
        let (ended, mut ends) = mpsc::channel(1);
        let (requests, now) = (registry.clone(), timer.now.clone());
        let read_slowly = service_fn(move |request: Request<TimedBody>| {
            let (ended, requests, now) = (ended.clone(), requests.clone(), now.clone());
            async move {
                let mut body = request.into_body();
                let mut last = Ok(());
                for _ in 0..100 {
                    last = body.frame().await.unwrap().map(drop);
                    if last.is_err() {
                        break;
                    }
                    if is_draining {
                        requests.start_shutdown();
                    }
                    now.send_modify(|now| *now += LONG * 2);
                    yield_now().await;
                }
                ended.try_send(last.as_ref().map_err(io::Error::kind).err()).unwrap();
                last.map(|()| Reply::default())
            }
        });
        let (closed, _closes) = mpsc::channel(1);
        let head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n";
        let mut connection = Some(Endless { head, closed });
        let accept = async || match connection.take() {
            Some(connection) => Ok(connection),
            None => pending().await,
        };
        let steps = async {
            assert_eq!(ends.recv().await, Some(Some(io::ErrorKind::TimedOut)), "is draining: {is_draining}");
            registry.start_shutdown();
        };
        soon(futures_lite::future::zip(server.serve(accept, read_slowly), steps)).await;
    }
}

#[tokio::test]
async fn last_frame_of_a_body_is_never_too_late() {
    let timer = ManualTimer { now: watch::Sender::new(Instant::now()) };
    let server = HttpServer::new(&Registry::new(TokioSpawner), timer.clone()).body_timeout(LONG).head_timeout(Duration::MAX);
    let half_read = Arc::new(Notify::new());
    let (read, now) = (half_read.clone(), timer.now.clone());
    let read_slowly = service_fn(move |request: Request<TimedBody>| {
        let (read, now) = (read.clone(), now.clone());
        async move {
            let mut body = request.into_body();
            body.frame().await.unwrap()?;
            read.notify_one();
            // The last frame arrives during these yields.
            for _ in 0..100 {
                yield_now().await;
            }
            now.send_modify(|now| *now += LONG * 2);
            body.frame().await.unwrap()?;
            io::Result::Ok(Reply::default())
        }
    });
    let (mut client, accept) = one_connection();
    let steps = async {
        client.write_all(HALF_BODY).await.unwrap();
        half_read.notified().await;
        client.write_all(b"a half").await.unwrap();
        let mut status = [0; 12];
        client.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
    };
    soon(or(server.serve(accept, read_slowly), steps)).await;
}

/// Returns the client's end of a connection with a small buffer, and a function that accepts this connection.
fn one_connection() -> (DuplexStream, impl AsyncFnMut() -> io::Result<TokioIo<DuplexStream>>) {
    let (client, stream) = tokio::io::duplex(1024);
    let mut stream = Some(TokioIo::new(stream));
    let accept = async move || match stream.take() {
        Some(stream) => Ok(stream),
        None => pending().await,
    };
    (client, accept)
}

#[tokio::test]
async fn client_that_reads_slowly_is_served() {
    let timer = ManualTimer { now: watch::Sender::new(Instant::now()) };
    let registry = Registry::new(TokioSpawner);
    let server = HttpServer::new(&registry, timer.clone()).max_connections(1).write_timeout(LONG).head_timeout(Duration::MAX);
    // The buffer is small, so the server makes progress whenever the client reads a part of a response.
    let (mut client, accept) = one_connection();
    let steps = async {
        client.write_all(&GET.repeat(11)).await.unwrap();
        for _ in 0..10 {
            client.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
            timer.now.send_modify(|now| *now += LONG * 2 / 3);
        }
        // From here on, the client does not read.
        let pass_time = async {
            loop {
                timer.now.send_modify(|now| *now += LONG);
                yield_now().await;
            }
        };
        or(registry.wait_idle(), pass_time).await;
    };
    soon(or(server.serve(accept, service_fn(respond_with_a_mebibyte)), steps)).await;
}

#[tokio::test]
async fn host_header_is_checked() {
    let server = Server::start(|server| server.host_name("Example.com").host_name("b.example"), service_fn(echo)).await;
    let any = Server::start(HttpServer::any_host_name, service_fn(echo)).await;
    for (request, expected, expected_of_any) in [
        ("GET / HTTP/1.1\r\n", 400, 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400, 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: example.com\r\n", 400, 400),
        ("GET / HTTP/1.1\r\nHost:\r\n", 400, 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n", 400, 400),
        ("GET / HTTP/1.1\r\nHost: user@localhost\r\n", 400, 400),
        ("GET http://example.com/ HTTP/1.1\r\nHost: localhost\r\n", 400, 400),
        ("GET http://example.com/ HTTP/1.1\r\n", 400, 400),
        ("GET / HTTP/1.1\r\nHost: evil.example\r\n", 421, 200),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n", 421, 200),
        ("GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n", 421, 200),
        ("GET / HTTP/1.0\r\nHost: evil.example\r\n", 421, 200),
        ("GET / HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n", 400, 400),
        ("GET / HTTP/1.0\r\n", 200, 200),
        ("GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n", 200, 200),
        ("GET / HTTP/1.1\r\nHost: LocalHost:3000\r\n", 200, 200),
        ("GET / HTTP/1.1\r\nHost: 192.168.0.1\r\n", 200, 200),
        ("GET / HTTP/1.1\r\nHost: [::1]:3000\r\n", 200, 200),
        ("GET / HTTP/1.1\r\nHost: example.COM:80\r\n", 200, 200),
        ("GET / HTTP/1.1\r\nHost: b.example\r\n", 200, 200),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n", 200, 200),
    ] {
        for (server, expected) in [(&server, expected), (&any, expected_of_any)] {
            let mut client = server.connect().await;
            client.send(format!("{request}\r\n").as_bytes()).await;
            let (status, _) = client.receive().await;
            assert_eq!(status, expected, "{request}");
            if expected != 200 {
                assert_eq!(client.closed().await, "", "{request}");
            }
        }
    }
}

#[tokio::test]
async fn panic_of_a_handler_closes_its_connection_only() {
    let service = service_fn(async |request: Request<TimedBody>| {
        assert!(request.uri().path() == "/", "expected");
        echo(request).await
    });
    let server = Server::start(|server| server, service).await;
    let (mut client, mut other) = (server.connect().await, server.connect().await);
    assert_eq!(other.get().await, 200);
    client.send(b"GET /panic HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(client.closed().await, "");
    assert_eq!([other.get().await, server.connect().await.get().await], [200, 200]);
    assert_eq!(server.registry.summary().panicked, 1);
    server.stop().await;
}

#[tokio::test]
async fn upgraded_connection_counts_until_it_closes() {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let service = service_fn(move |mut request: Request<TimedBody>| {
        let sender = sender.clone();
        async move {
            if request.uri().path() == "/" {
                return echo(request).await;
            }
            tokio::spawn(async move { sender.send(hyper::upgrade::on(&mut request).await.unwrap()) });
            let response = Response::builder().status(101).header("upgrade", "x").header("connection", "upgrade");
            Ok(response.body(Full::default()).unwrap())
        }
    });
    let server = Server::start(|server| server.max_connections(1), service).await;
    let mut client = server.connect().await;
    client.send(b"GET /up HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    assert_eq!(client.receive().await.0, 101);
    let upgraded = soon(receiver.recv()).await.unwrap();
    server.wait_for_connections(0).await;
    let mut other = server.connect().await;
    other.send(GET).await;
    let other = tokio::spawn(async move { other.receive().await.0 });
    let mut upgraded = TokioIo::new(upgraded);
    for _ in 0..100 {
        client.send(b"x").await;
        soon(upgraded.read_exact(&mut [0])).await.unwrap();
    }
    assert!(!other.is_finished());
    drop(upgraded);
    assert_eq!(soon(other).await.unwrap(), 200);
    server.stop().await;
}

#[cfg(feature = "tracing")]
#[tokio::test]
async fn errors_of_the_service_and_of_its_bodies_are_reported() {
    use futures_lite::stream;
    use http_body_util::StreamBody;
    use http_body_util::combinators::BoxBody;

    /// Sends a request to a server whose service selects the response by the path. Returns the lines that the server has logged when it has
    /// closed the connection. If the client disconnects, it does so as soon as the service has called `reached`.
    async fn lines_after(request: String, disconnects: bool) -> Vec<String> {
        let lines = lines::Lines::default();
        let _default = tracing::subscriber::set_default(lines.clone());
        let registry = Registry::new(TokioSpawner);
        let reached = Arc::new(Notify::new());
        let service = {
            let (reached, registry) = (reached.clone(), registry.clone());
            service_fn(move |request: Request<TimedBody>| {
                let (reached, registry) = (reached.clone(), registry.clone());
                async move {
                    let fails = || io::Error::new(io::ErrorKind::TimedOut, "expected");
                    let response = Response::builder();
                    let response: Response<BoxBody<Bytes, io::Error>> = match request.uri().path() {
                        "/error" => return Err(fails()),
                        "/drain" => {
                            registry.start_shutdown();
                            yield_now().await;
                            return Err(fails());
                        }
                        "/late" => {
                            registry.start_shutdown();
                            tokio::time::sleep(SHORT).await;
                            return Err(fails());
                        }
                        "/body" => response.body(BodyExt::boxed(StreamBody::new(stream::iter([Err(fails())])))).unwrap(),
                        "/read" => {
                            reached.notify_one();
                            let bytes = request.into_body().collect().await?.to_bytes();
                            response.body(Full::new(bytes).map_err(|never| match never {}).boxed()).unwrap()
                        }
                        "/forward" => {
                            reached.notify_one();
                            response.body(request.into_body().boxed()).unwrap()
                        }
                        _ => {
                            reached.notify_one();
                            pending().await
                        }
                    };
                    Ok(response)
                }
            })
        };
        let server = HttpServer::new(&registry, TokioTimer::new()).head_timeout(LONG).body_timeout(SHORT);
        let (mut client, accept) = one_connection();
        let steps = async {
            client.write_all(request.as_bytes()).await.unwrap();
            if disconnects {
                reached.notified().await;
                drop(client);
            } else {
                let _ = client.read_to_end(&mut Vec::new()).await;
            }
            registry.wait_idle().await;
        };
        soon(or(server.serve(accept, service), steps)).await;
        std::mem::take(&mut *lines.0.lock().unwrap())
    }

    let service = "failed to answer a request: error from user's Service: expected";
    let body = "failed to answer a request: error from user's Body stream: expected";
    for (path, line) in [("/error", service), ("/drain", service), ("/late", service), ("/body", body)] {
        assert_eq!(lines_after(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"), false).await, [line], "{path}");
    }
    let half = |path| format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf");
    let whole = "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned();
    let disconnects = [(half("/read"), true), (half("/forward"), true), (whole, true)];
    let times_out = [(half("/read"), false), (half("/forward"), false)];
    for (request, disconnects) in disconnects.into_iter().chain(times_out) {
        assert_eq!(lines_after(request.clone(), disconnects).await, [""; 0], "{request}, disconnects: {disconnects}");
    }
}

/// Collects the log lines of the host.
#[cfg(feature = "tracing")]
mod lines {
    use std::sync::{Arc, Mutex};
    use tracing::field::{Field, Visit};
    use tracing::{Event, Metadata, Subscriber, span};

    #[derive(Clone, Default)]
    pub(super) struct Lines(pub(super) Arc<Mutex<Vec<String>>>);

    impl Visit for Lines {
        fn record_debug(&mut self, _: &Field, value: &dyn std::fmt::Debug) {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }

    impl Subscriber for Lines {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "background_tasks_host"
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }
}

#[cfg(feature = "tracing")]
#[tokio::test]
async fn failures_to_accept_are_reported_once_and_retried() {
    let lines = lines::Lines::default();
    let _default = tracing::subscriber::set_default(lines.clone());
    let registry = Registry::new(TokioSpawner);
    let server = HttpServer::new(&registry, TokioTimer::new());
    let (mut results, (_client, stream)) = (mpsc::unbounded_channel(), tokio::io::duplex(1024));
    let too_many_files = || Err(io::Error::from_raw_os_error(24));
    results.0.send(too_many_files()).unwrap();
    results.0.send(Err(io::ErrorKind::ConnectionAborted.into())).unwrap();
    results.0.send(too_many_files()).unwrap();
    results.0.send(Ok(TokioIo::new(stream))).unwrap();
    results.0.send(too_many_files()).unwrap();
    let (calls, mut called) = mpsc::unbounded_channel();
    let accept = async move || {
        calls.send(()).unwrap();
        results.1.recv().await.unwrap()
    };
    let steps = async {
        for _ in 0..6 {
            called.recv().await.unwrap();
        }
    };
    soon(or(server.serve(accept, service_fn(echo)), steps)).await;
    let line = format!("failed to accept a connection: {}; trying again", io::Error::from_raw_os_error(24));
    assert_eq!(*lines.0.lock().unwrap(), [line.clone(), line]);
}

#[cfg(feature = "tower")]
#[tokio::test]
async fn axum_and_the_layer_of_requests_are_served() {
    use axum::extract::DefaultBodyLimit;
    use axum::routing::post;
    use background_tasks_host::RequestLayer;
    use hyper_util::service::TowerToHyperService;

    let registry = Registry::new(TokioSpawner);
    let app = axum::Router::new()
        .route("/", post(async |body: String| body).get(async || "hello"))
        .layer(RequestLayer::new(&registry))
        .layer(DefaultBodyLimit::max(1024));
    let server = HttpServer::new(&registry, TokioTimer::new()).body_timeout(SHORT);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async move || Ok(TokioIo::new(listener.accept().await?.0));
    let serve = tokio::spawn(async move { server.serve(accept, TowerToHyperService::new(app)).await });
    let mut client = Client::connect(address).await;
    assert_eq!(client.get().await, 200);
    client.send(HALF_BODY).await;
    assert_eq!(client.receive().await.0, 408);
    registry.start_shutdown();
    soon(serve).await.unwrap();
    // The three tasks are a connection and its two requests.
    assert_eq!(soon(registry.shutdown()).await.completed, 3);
}

#[cfg(feature = "tower")]
#[tokio::test]
async fn service_of_a_connection_knows_the_address_of_its_client() {
    use axum::Extension;
    use axum::extract::ConnectInfo;
    use axum::routing::get;
    use hyper_util::service::TowerToHyperService;
    use tower_layer::Layer;

    let registry = Registry::new(TokioSpawner);
    let address = async |ConnectInfo(address): ConnectInfo<SocketAddr>| [("client", address.to_string())];
    let app = axum::Router::new().route("/", get(address));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accept = async move || {
        let (stream, address) = listener.accept().await?;
        let app = Extension(ConnectInfo(address)).layer(app.clone());
        Ok((TokioIo::new(stream), TowerToHyperService::new(app)))
    };
    let server = HttpServer::new(&registry, TokioTimer::new());
    let signal = registry.signal();
    let serve = tokio::spawn(async move { server.serve_connections(signal, accept).await });
    let mut clients = [Client::connect(address).await, Client::connect(address).await];
    for _ in 0..2 {
        for client in &mut clients {
            client.send(GET).await;
            let (_, head) = client.receive().await;
            assert!(head.contains(&format!("client: {}\r\n", client.0.local_addr().unwrap())), "{head}");
        }
    }
    registry.start_shutdown();
    soon(serve).await.unwrap();
}

#[test]
fn server_on_smol_answers_and_closes_at_the_shutdown() {
    smol::block_on(or(
        async {
            let registry = Registry::new(SmolSpawner);
            let server = HttpServer::new(&registry, SmolTimer::new()).head_timeout(LONG);
            let listener = smol::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let accept = async move || Ok(FuturesIo::new(listener.accept().await?.0));
            let steps = async {
                let connect = || std::net::TcpStream::connect(address).unwrap();
                let [mut fresh, mut half, silent] = [connect(), connect(), connect()];
                half.write_all(HALF_HEAD).unwrap();
                while registry.in_flight() < 3 {
                    smol::Timer::after(Duration::from_millis(1)).await;
                }
                fresh.write_all(GET).unwrap();
                registry.start_shutdown();
                let mut texts = Vec::new();
                for mut stream in [fresh, half, silent].map(|stream| smol::Async::new(stream).unwrap()) {
                    let mut text = Vec::new();
                    let _ = smol::io::AsyncReadExt::read_to_end(&mut stream, &mut text).await;
                    texts.push(String::from_utf8(text).unwrap());
                }
                assert!(texts[0].starts_with("HTTP/1.1 200"), "{texts:?}");
                assert_eq!(texts[1..], ["", ""]);
            };
            futures_lite::future::zip(server.serve(accept, service_fn(echo)), steps).await;
        },
        async {
            smol::Timer::after(PATIENCE).await;
            panic!("timed out");
        },
    ));
}
