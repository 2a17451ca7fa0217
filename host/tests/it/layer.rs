//! Tests `RequestLayer` in the servers of axum, hyper and tonic.

use axum::Router;
use axum::routing::get;
use background_tasks::{Registry, RejectReason, TaskKind, TokioSpawner};
use background_tasks_host::{RequestFuture, RequestLayer};
use bytes::Bytes;
use futures_lite::stream::{self, StreamExt};
use http_body_util::channel::Channel;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::header::{
    ACCEPT_ENCODING, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_METHOD, CONNECTION,
    CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, ORIGIN,
};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tower::{ServiceBuilder, ServiceExt};
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_layer::Layer;
use tower_service::Service;

/// A time limit that is longer than any step of a test takes. A step that exceeds the limit hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("timed out")
}

/// Returns the numbers of requests that completed, panicked, were abandoned and were rejected.
fn outcomes<S>(registry: &Registry<S>) -> [u64; 4] {
    let summary = registry.summary();
    [summary.completed, summary.panicked, summary.abandoned, summary.rejected]
}

/// A request that has reached its handler. The handler waits until the test sends a body for the response.
type Call = oneshot::Sender<Channel<Bytes>>;

async fn receive_body(calls: mpsc::UnboundedSender<Call>) -> Channel<Bytes> {
    let (call, body) = oneshot::channel();
    calls.send(call).unwrap();
    body.await.unwrap()
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Starts a server with axum and the layer. The handler sends each request to the test as a `Call`.
async fn serve_axum(registry: &Registry<TokioSpawner>) -> (SocketAddr, mpsc::UnboundedReceiver<Call>) {
    let (calls, receiver) = mpsc::unbounded_channel();
    let handler = async move || axum::body::Body::new(receive_body(calls).await);
    let app = Router::new().route("/", get(handler)).layer(RequestLayer::new(registry));
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, receiver)
}

/// Starts a server with hyper that speaks HTTP/1 and HTTP/2.
pub(crate) async fn serve_hyper<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                server.serve_connection(TokioIo::new(stream), service).await.unwrap();
            });
        }
    });
    address
}

/// A client with one HTTP/1 connection.
pub(crate) struct Client {
    sender: http1::SendRequest<Empty<Bytes>>,
    pub(crate) connection: AbortHandle,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http1::handshake(stream).await.unwrap();
        Self { sender, connection: tokio::spawn(connection).abort_handle() }
    }

    pub(crate) async fn get(&mut self) -> hyper::Result<Response<Incoming>> {
        soon(self.sender.ready()).await?;
        soon(self.sender.send_request(request())).await
    }
}

pub(crate) fn request() -> Request<Empty<Bytes>> {
    Request::get("http://localhost/").body(Empty::new()).unwrap()
}

pub(crate) async fn connect_http2(address: SocketAddr) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(soon(response.into_body().collect()).await.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test]
async fn request_is_in_flight_until_its_body_is_sent() {
    let registry = Registry::builder(TokioSpawner).inspect().build();
    let (address, mut calls) = serve_axum(&registry).await;
    let mut client = Client::connect(address).await;

    let response = tokio::spawn(async move { client.get().await.unwrap() });
    let call = soon(calls.recv()).await.unwrap();
    let listed: Vec<_> = registry.tasks().iter().map(|task| (task.name(), task.kind())).collect();
    assert_eq!(listed, [(Some("request"), Some(TaskKind::Guard))]);

    let (mut sender, body) = Channel::new(1);
    call.send(body).unwrap();
    let mut response = soon(response).await.unwrap();
    assert_eq!((response.status(), registry.in_flight()), (StatusCode::OK, 1));
    sender.send_data("a part".into()).await.unwrap();
    let part = soon(response.frame()).await.unwrap().unwrap();
    assert_eq!((part.into_data().unwrap(), registry.in_flight()), ("a part".into(), 1));

    drop(sender);
    assert_eq!(text(response).await, "");
    soon(registry.wait_idle()).await;
    assert_eq!(outcomes(&registry), [1, 0, 0, 0]);
}

#[tokio::test]
async fn disconnected_client_abandons_its_request() {
    let registry = Registry::new(TokioSpawner);
    let (address, mut calls) = serve_axum(&registry).await;

    // In the first case, the client disconnects while the handler runs.
    let mut client = Client::connect(address).await;
    let connection = client.connection.clone();
    let response = tokio::spawn(async move { client.get().await.map(drop) });
    let mut call = soon(calls.recv()).await.unwrap();
    assert_eq!(registry.in_flight(), 1);
    connection.abort();
    soon(call.closed()).await;
    soon(registry.wait_idle()).await;
    assert!(soon(response).await.unwrap().is_err());

    // In the second case, the client disconnects while the server sends the body.
    let mut client = Client::connect(address).await;
    let (_sender, body) = Channel::new(1);
    let (response, ()) =
        soon(async { tokio::join!(client.get(), async { calls.recv().await.unwrap().send(body).unwrap() }) }).await;
    assert_eq!((response.unwrap().status(), registry.in_flight()), (StatusCode::OK, 1));
    client.connection.abort();
    soon(registry.wait_idle()).await;
    assert_eq!(outcomes(&registry), [0, 0, 2, 0]);
}

#[tokio::test]
async fn panic_of_a_handler_is_counted() {
    let registry = Registry::new(TokioSpawner);
    let panics = async || -> &str { panic!("expected") };
    let app = Router::new().route("/", get(panics)).layer(RequestLayer::new(&registry));
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    assert!(Client::connect(address).await.get().await.is_err());
    let summary = soon(registry.shutdown()).await;
    assert_eq!((summary.completed, summary.panicked), (0, 1));
}

#[tokio::test]
async fn request_starts_tasks_until_its_end_during_a_drain() {
    let registry = Registry::new(TokioSpawner);
    let (address, mut calls) = serve_axum(&registry).await;
    let mut client = Client::connect(address).await;
    let response = tokio::spawn(async move { text(client.get().await.unwrap()).await });
    let call = soon(calls.recv()).await.unwrap();
    let drained = registry.shutdown();

    // The test starts one task while the handler runs, and one task while the server sends the body.
    let (done, mut dones) = mpsc::unbounded_channel();
    let (first, second) = (done.clone(), done);
    registry.try_run(async move { first.send("from the handler").unwrap() }).unwrap();
    assert_eq!(soon(dones.recv()).await, Some("from the handler"));
    let (mut sender, body) = Channel::new(1);
    call.send(body).unwrap();
    sender.send_data("late".into()).await.unwrap();
    registry.try_run(async move { second.send("from the body").unwrap() }).unwrap();
    assert_eq!(soon(dones.recv()).await, Some("from the body"));
    assert!(!registry.is_drained());

    drop(sender);
    assert_eq!(soon(response).await.unwrap(), "late");
    let summary = soon(drained).await;
    assert_eq!((summary.completed, summary.rejected), (3, 0));
}

/// A service that calls a function.
#[derive(Clone)]
struct FnService<F>(F);

impl<F, Q, A, B, E> Service<Request<Q>> for FnService<F>
where
    F: FnMut(Request<Q>) -> A,
    A: Future<Output = Result<Response<B>, E>>,
{
    type Response = Response<B>;
    type Error = E;
    type Future = A;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> A {
        self.0(request)
    }
}

#[tokio::test]
async fn request_after_the_drain_is_rejected() {
    let registry = Registry::new(TokioSpawner);
    let called = Arc::new(AtomicUsize::new(0));
    let calls = called.clone();
    let service = FnService(move |_| {
        calls.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(Response::new(Full::from("here"))))
    });
    let address = serve_hyper(RequestLayer::new(&registry).layer(service)).await;

    let (mut client, mut client2) = (Client::connect(address).await, connect_http2(address).await);
    let accepted = client.get().await.unwrap();
    assert_eq!((accepted.status(), accepted.headers().get(CONNECTION)), (StatusCode::OK, None));
    assert_eq!(text(accepted).await, "here");
    assert_eq!(text(soon(client2.send_request(request())).await.unwrap()).await, "here");
    soon(registry.shutdown()).await;

    let rejected = client.get().await.unwrap();
    assert_eq!((rejected.status(), &rejected.headers()[CONNECTION]), (StatusCode::SERVICE_UNAVAILABLE, &"close".parse().unwrap()));
    assert_eq!(text(rejected).await, "");
    assert!(client.get().await.is_err(), "the connection is still open");
    let rejected = soon(client2.send_request(request())).await.unwrap();
    assert_eq!((rejected.status(), rejected.headers().get(CONNECTION)), (StatusCode::SERVICE_UNAVAILABLE, None));
    assert_eq!(text(rejected).await, "");
    assert_eq!((called.load(Ordering::Relaxed), outcomes(&registry)), (2, [2, 0, 0, 2]));
}

#[tokio::test]
async fn requests_take_no_permits_of_their_tasks() {
    const LIMIT: usize = 4;
    let registry = Registry::builder(TokioSpawner).max_in_flight(LIMIT).build();
    // The handlers start their tasks when all requests are in flight. The tasks run until the shutdown.
    let all_in_flight = Arc::new(Barrier::new(LIMIT));
    let tasks = registry.clone();
    let service = FnService(move |_| {
        let (all_in_flight, tasks) = (all_in_flight.clone(), tasks.clone());
        async move {
            all_in_flight.wait().await;
            let started = tasks.try_run(tasks.signal()).map_err(|rejected| rejected.reason());
            Ok(Response::new(Full::from(format!("{started:?}"))))
        }
    });
    let address = serve_hyper(RequestLayer::new(&registry).layer(service)).await;
    let responses: Vec<_> =
        (0..LIMIT).map(|_| tokio::spawn(async move { text(Client::connect(address).await.get().await.unwrap()).await })).collect();
    for response in responses {
        assert_eq!(soon(response).await.unwrap(), "Ok(())");
    }
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    let summary = soon(registry.shutdown()).await;
    assert_eq!((summary.completed, summary.rejected), (2 * LIMIT as u64, 1));
}

/// The handler in the README must answer 503 to work that a full registry rejects.
#[tokio::test]
async fn handler_of_a_full_registry_answers_503() {
    let registry = Registry::builder(TokioSpawner).max_in_flight(4).build();
    let tasks = registry.clone();
    let sign_up = async move || match tasks.named("welcome-mail").try_run(tasks.signal()) {
        Ok(()) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let app = Router::new().route("/", get(sign_up)).layer(RequestLayer::new(&registry));
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let mut client = Client::connect(address).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        let response = client.get().await.unwrap();
        statuses.push(response.status().as_u16());
        text(response).await;
    }
    assert_eq!(statuses, [202, 202, 202, 202, 503, 503]);
    let summary = soon(registry.shutdown()).await;
    assert_eq!((summary.completed, summary.rejected), (10, 2));
}

#[tokio::test]
async fn request_enters_a_full_registry() {
    let registry = Registry::builder(TokioSpawner).max_in_flight(1).build();
    let service = FnService(|_| std::future::ready(Ok(Response::new(Full::from("here")))));
    let address = serve_hyper(RequestLayer::new(&registry).layer(service)).await;
    let mut client = Client::connect(address).await;
    let _guard = registry.guard().unwrap();
    let accepted = client.get().await.unwrap();
    assert_eq!((accepted.status(), accepted.headers().get(CONNECTION)), (StatusCode::OK, None));
    assert_eq!(text(accepted).await, "here");
}

/// Selects the response by the path of the request.
async fn respond_by_path(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let response = Response::builder();
    let endless = StreamBody::new(stream::once(Ok(Frame::data(Bytes::from("four")))).chain(stream::pending()));
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), 0.into())]);
    let response = match request.uri().path() {
        "/full" => response.body(Full::from("four").boxed()),
        "/empty" => response.body(Empty::new().boxed()),
        "/trailers" => response.body(Full::from("four").with_trailers(async { Some(Ok(trailers)) }).boxed()),
        // This body does not know its end, and the server does not poll the body after the trailers.
        "/stream-trailers" => {
            let frames = [Frame::data(Bytes::from("four")), Frame::trailers(trailers)];
            response.body(BodyExt::boxed(StreamBody::new(stream::iter(frames.map(Ok)))))
        }
        // The server stops before the end of this body, because it has already sent the announced number of bytes.
        "/length" => response.header(CONTENT_LENGTH, 4).body(BodyExt::boxed(endless)),
        status => response.status(&status[1..]).body(BodyExt::boxed(endless)),
    };
    Ok(response.unwrap())
}

#[tokio::test]
async fn request_whose_body_is_sent_to_its_end_is_completed() {
    let registry = Registry::new(TokioSpawner);
    let address = serve_hyper(RequestLayer::new(&registry).layer(tower::service_fn(respond_by_path))).await;
    let (mut client, mut client2) = (Client::connect(address).await, connect_http2(address).await);
    let mut expected = 0;
    for (method, path, body) in [
        ("GET", "/full", "four"),
        ("GET", "/empty", ""),
        ("GET", "/trailers", "four"),
        ("GET", "/stream-trailers", "four"),
        ("GET", "/length", "four"),
        ("GET", "/204", ""),
        ("GET", "/304", ""),
        ("HEAD", "/full", ""),
        ("HEAD", "/200", ""),
    ] {
        let request = || Request::builder().method(method).uri(format!("http://localhost{path}")).body(Empty::new()).unwrap();
        soon(client.sender.ready()).await.unwrap();
        let response = soon(client.sender.send_request(request())).await.unwrap();
        assert_eq!(text(response).await, body, "{method} {path}");
        expected += 1;
        // In HTTP/2, hyper sends each body to its end, so only requests with a finite body are sent.
        if method == "GET" && ["/full", "/empty", "/trailers", "/stream-trailers"].contains(&path) {
            let response = soon(client2.send_request(request())).await.unwrap();
            assert_eq!(text(response).await, body, "{method} {path}, HTTP/2");
            expected += 1;
        }
        soon(registry.wait_idle()).await;
        assert_eq!(outcomes(&registry), [expected, 0, 0, 0], "{method} {path}");
    }
}

#[tokio::test]
async fn request_whose_body_fails_is_abandoned() {
    let registry = Registry::new(TokioSpawner);
    let fails = async || {
        let frames = [Ok("a part"), Err(std::io::Error::other("expected"))];
        axum::body::Body::from_stream(stream::iter(frames))
    };
    let app = Router::new().route("/", get(fails)).layer(RequestLayer::new(&registry));
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let response = Client::connect(address).await.get().await;
    // The server may close the connection before it has sent the head of the response.
    if let Ok(response) = response {
        assert!(soon(response.into_body().collect()).await.is_err());
    }
    soon(registry.wait_idle()).await;
    assert_eq!(outcomes(&registry), [0, 0, 1, 0]);
}

/// axum's router drops the body of a response to HEAD outside of the layer. The request must still count as completed.
#[tokio::test]
async fn head_request_to_axum_is_completed() {
    let registry = Registry::new(TokioSpawner);
    let app = Router::new().route("/", get(async || "here")).layer(RequestLayer::new(&registry));
    let response = app.oneshot(Request::head("/").body(axum::body::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
    assert_eq!(outcomes(&registry), [1, 0, 0, 0]);
}

const TEXT: &str = "A text that is long enough for the compression layer to compress.";

async fn respond_unless_slow(request: Request<Empty<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() == "/slow" { std::future::pending().await } else { Ok(Response::new(Full::from(TEXT))) }
}

/// Sends three requests: one is answered, one times out, and one is a CORS preflight. Returns their outcomes.
async fn outcomes_in_stack<S, B>(registry: &Registry<()>, stack: S) -> [u64; 4]
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible> + Clone,
    B: Body<Data: std::fmt::Debug, Error: std::fmt::Debug>,
{
    let before = outcomes(registry);
    let request = |path| Request::get(path).header(ORIGIN, "http://localhost").header(ACCEPT_ENCODING, "gzip");
    let send = async |request: hyper::http::request::Builder| {
        let (head, body) = stack.clone().oneshot(request.body(Empty::new()).unwrap()).await.unwrap().into_parts();
        (head, body.collect().await.unwrap().to_bytes())
    };
    let (head, body) = send(request("/")).await;
    assert_eq!((head.status, &head.headers[CONTENT_ENCODING]), (StatusCode::OK, &"gzip".parse().unwrap()));
    assert_eq!((&head.headers[ACCESS_CONTROL_ALLOW_ORIGIN], &body[..2]), (&"*".parse().unwrap(), &[0x1f, 0x8b][..]));
    assert_eq!(send(request("/slow")).await.0.status, StatusCode::REQUEST_TIMEOUT);
    let preflight = request("/").method("OPTIONS").header(ACCESS_CONTROL_REQUEST_METHOD, "GET");
    assert_eq!(send(preflight).await.0.headers[ACCESS_CONTROL_ALLOW_METHODS], "*");
    assert_eq!(registry.in_flight(), 0);
    let after = outcomes(registry);
    std::array::from_fn(|outcome| after[outcome] - before[outcome])
}

#[tokio::test]
async fn layer_has_any_position_in_a_stack() {
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(20));
    let (trace, cors, gzip) = (TraceLayer::new_for_http(), CorsLayer::permissive(), CompressionLayer::new());
    let cors = cors.allow_methods(tower_http::cors::Any);
    let registry = Registry::new(());
    let requests = RequestLayer::new(&registry);
    // If the layer is inside the timeout layer, the slow request is abandoned. If the layer is inside the CORS layer, the preflight
    // request does not reach it and is not counted.
    macro_rules! assert_outcomes {
        ($($expected:expr => [$($layer:ident)*]),* $(,)?) => {$({
            let stack = ServiceBuilder::new()$(.layer($layer.clone()))*.service(tower::service_fn(respond_unless_slow));
            assert_eq!(outcomes_in_stack(&registry, stack).await, $expected, "{}", stringify!($($layer)*));
        })*};
    }
    assert_outcomes! {
        [3, 0, 0, 0] => [requests trace timeout cors gzip],
        [3, 0, 0, 0] => [trace requests timeout cors gzip],
        [2, 0, 1, 0] => [trace timeout requests cors gzip],
        [1, 0, 1, 0] => [trace timeout cors requests gzip],
        [1, 0, 1, 0] => [trace timeout cors gzip requests],
        [2, 0, 0, 0] => [trace cors requests gzip timeout],
        [1, 0, 1, 0] => [trace gzip cors timeout requests],
    }
}

/// The tonic service has no methods, because methods would need the protobuf compiler. The layer receives the request even without
/// methods.
#[tokio::test]
async fn tonic_accepts_the_layer() {
    let registry = Registry::new(TokioSpawner);
    let (listener, address) = listen().await;
    let mut server = tonic::transport::Server::builder().layer(RequestLayer::new(&registry).named("call"));
    let server = server.add_routes(tonic::service::Routes::default());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let server = tokio::spawn(server.serve_with_incoming_shutdown(incoming, registry.signal()));

    let mut client = connect_http2(address).await;
    let response = soon(client.send_request(request())).await.unwrap();
    assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"12".parse().unwrap()));
    let summary = soon(registry.shutdown()).await;
    assert_eq!(summary.completed, 1);
    soon(server).await.unwrap().unwrap();
}

type Recorded = Arc<Mutex<Vec<usize>>>;

/// A type that is both a future and a body. When a value is dropped, it records the number of requests in flight.
struct Recorder {
    registry: Registry<()>,
    recorded: Recorded,
    then: Then,
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Respond,
    Fail,
    Panic,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.recorded.lock().unwrap().push(self.registry.in_flight());
    }
}

impl Future for Recorder {
    type Output = Result<Response<Recorder>, &'static str>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.then {
            Then::Respond => Poll::Ready(Ok(Response::new(Self {
                registry: self.registry.clone(),
                recorded: self.recorded.clone(),
                then: Then::Panic,
            }))),
            Then::Fail => Poll::Ready(Err("expected")),
            Then::Panic => panic!("expected"),
        }
    }
}

impl Body for Recorder {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("expected")
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(7)
    }
}

fn recorder(then: Then) -> (Registry<()>, Recorded, RequestFuture<Recorder>) {
    let (registry, recorded) = (Registry::new(()), Recorded::default());
    let service = FnService(|_| Recorder { registry: registry.clone(), recorded: recorded.clone(), then });
    let future = RequestLayer::new(&registry).layer(service).call(Request::new(()));
    (registry, recorded, future)
}

/// Returns a copy, so the lock is free when an assertion fails. The failing test drops another `Recorder`, which needs the lock.
fn copy(recorded: &Recorded) -> Vec<usize> {
    recorded.lock().unwrap().clone()
}

/// Polls one time. Returns `None` if the poll panics.
fn poll_once<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(|| poll(&mut Context::from_waker(Waker::noop())))) {
        Ok(Poll::Ready(value)) => Some(value),
        Ok(Poll::Pending) => panic!("still pending"),
        Err(_) => None,
    }
}

#[test]
fn future_is_dropped_before_its_request_is_released() {
    for (then, expected) in [(Then::Fail, [1, 0, 0, 0]), (Then::Panic, [0, 1, 0, 0])] {
        let (registry, recorded, future) = recorder(then);
        let mut future = pin!(future);
        assert_eq!((registry.in_flight(), outcomes(&registry)), (1, [0; 4]));
        match poll_once(|cx| future.as_mut().poll(cx)) {
            Some(response) => assert_eq!(response.map(drop), Err("expected")),
            None => assert!(matches!(then, Then::Panic)),
        }
        assert_eq!((copy(&recorded), outcomes(&registry), registry.in_flight()), (vec![1], expected, 0), "{then:?}");
    }
    let (registry, recorded, future) = recorder(Then::Respond);
    drop(future);
    assert_eq!((copy(&recorded), outcomes(&registry)), (vec![1], [0, 0, 1, 0]));
}

#[test]
fn body_is_dropped_before_its_request_is_released() {
    for (panics, expected) in [(false, [0, 0, 1, 0]), (true, [0, 1, 0, 0])] {
        let (registry, recorded, future) = recorder(Then::Respond);
        let mut future = pin!(future);
        let response = poll_once(|cx| future.as_mut().poll(cx)).unwrap().unwrap();
        let mut body = Box::pin(response.into_body());
        assert_eq!((copy(&recorded), registry.in_flight()), (vec![1], 1), "the future has not been dropped yet");
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(7), false));
        if panics {
            assert!(poll_once(|cx| body.as_mut().poll_frame(cx)).is_none());
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
            assert!(poll_once(|cx| body.as_mut().poll_frame(cx)).unwrap().is_none());
        } else {
            drop(body);
        }
        assert_eq!((copy(&recorded), outcomes(&registry), registry.in_flight()), (vec![1, 1], expected, 0));
    }
}

/// A body that fails and then reports its end, like a body that drops its source after an error.
#[derive(Default)]
struct FailingBody {
    has_failed: bool,
}

impl Body for FailingBody {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.has_failed = true;
        Poll::Ready(Some(Err("expected")))
    }

    fn is_end_stream(&self) -> bool {
        self.has_failed
    }
}

#[tokio::test]
async fn request_whose_body_ends_with_an_error_is_abandoned() {
    let registry = Registry::new(());
    let service = FnService(|_| std::future::ready(Ok::<_, Infallible>(Response::new(FailingBody::default()))));
    let response = RequestLayer::new(&registry).layer(service).oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap_err(), "expected");
    assert_eq!(outcomes(&registry), [0, 0, 1, 0]);
}

/// HTTP/2 forbids the header `connection`, so the layer must not set it. hyper would remove it.
#[test]
fn rejection_in_http2_has_no_connection_header() {
    let registry = Registry::new(());
    assert!(registry.shutdown().wait().is_clean());
    let mut service = RequestLayer::new(&registry).layer(FnService(|_: Request<()>| -> Recorder { unreachable!() }));
    for (version, close_connection) in [(Version::HTTP_11, true), (Version::HTTP_2, false)] {
        let mut request = Request::new(());
        *request.version_mut() = version;
        let mut future = pin!(service.call(request));
        let response = poll_once(|cx| future.as_mut().poll(cx)).unwrap().unwrap();
        assert_eq!(
            (response.status(), response.headers().contains_key(CONNECTION)),
            (StatusCode::SERVICE_UNAVAILABLE, close_connection)
        );
    }
}

#[test]
fn panic_of_a_call_is_counted() {
    let registry = Registry::new(());
    let mut service = RequestLayer::new(&registry).layer(FnService(|_: Request<()>| -> Recorder { panic!("expected") }));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(service.call(Request::new(()))))).is_err());
    assert_eq!(outcomes(&registry), [0, 1, 0, 0]);
}

/// A service whose `poll_ready` first returns `Pending`, then success, and then an error. `call` panics if the service is not ready.
struct Slow(u32);

impl Service<Request<()>> for Slow {
    type Response = Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0 += 1;
        [Poll::Pending, Poll::Ready(Ok(())), Poll::Ready(Err("broken"))][self.0 as usize - 1]
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert_eq!(self.0, 2);
        std::future::pending()
    }
}

#[test]
fn layer_is_ready_when_its_service_is() {
    let registry = Registry::new(());
    let mut service = RequestLayer::new(&registry).layer(Slow(0));
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!((service.poll_ready(&mut cx), registry.in_flight()), (Poll::Pending, 0));
    assert_eq!((service.poll_ready(&mut cx), registry.in_flight()), (Poll::Ready(Ok(())), 0));
    let response = service.call(Request::new(()));
    assert_eq!((service.poll_ready(&mut cx), registry.in_flight()), (Poll::Ready(Err("broken")), 1));
    drop(response);
    assert_eq!(registry.in_flight(), 0);
}
