//! The layer, in the servers of axum, hyper and tonic.
#![cfg(feature = "tower")]

use axum::Router;
use axum::routing::get;
use background_tasks::{Registry, TaskKind, TokioSpawner};
use background_tasks_host::{RequestFuture, RequestLayer};
use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::header::CONNECTION;
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
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tower_layer::Layer;
use tower_service::Service;

/// Longer than anything takes here; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<F: Future>(what: F) -> F::Output {
    timeout(PATIENCE, what).await.expect("it hangs")
}

/// How many have completed, panicked, and were rejected.
fn ended<S>(registry: &Registry<S>) -> [u64; 3] {
    let summary = registry.summary();
    [summary.completed, summary.panicked, summary.rejected]
}

/// A request that has come to its handler, which waits for the test to give it a body.
type Call = oneshot::Sender<Channel<Bytes>>;

async fn ask(calls: mpsc::UnboundedSender<Call>) -> Channel<Bytes> {
    let (call, answered) = oneshot::channel();
    calls.send(call).unwrap();
    answered.await.unwrap()
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Serves by axum, with a layer, what asks the test.
async fn serve_axum(registry: &Registry<TokioSpawner>) -> (SocketAddr, mpsc::UnboundedReceiver<Call>) {
    let (calls, receiver) = mpsc::unbounded_channel();
    let handler = async move || axum::body::Body::new(ask(calls).await);
    let app = Router::new().route("/", get(handler)).layer(RequestLayer::new(registry));
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, receiver)
}

/// Serves HTTP/1 and HTTP/2 by hyper alone.
async fn serve_hyper<S, B>(service: S) -> SocketAddr
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

/// A connection by HTTP/1.
struct Client {
    sender: http1::SendRequest<Empty<Bytes>>,
    connection: AbortHandle,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http1::handshake(stream).await.unwrap();
        Self { sender, connection: tokio::spawn(connection).abort_handle() }
    }

    async fn get(&mut self) -> hyper::Result<Response<Incoming>> {
        soon(self.sender.ready()).await?;
        soon(self.sender.send_request(request())).await
    }
}

fn request() -> Request<Empty<Bytes>> {
    Request::get("http://localhost/").body(Empty::new()).unwrap()
}

async fn connect_http2(address: SocketAddr) -> http2::SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(soon(response.into_body().collect()).await.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test]
async fn a_request_is_in_flight_until_its_body_is_sent() {
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
    assert_eq!(ended(&registry), [1, 0, 0]);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let registry = Registry::new(TokioSpawner);
    let (address, mut calls) = serve_axum(&registry).await;

    // While its handler runs.
    let mut client = Client::connect(address).await;
    let connection = client.connection.clone();
    let response = tokio::spawn(async move { client.get().await.map(drop) });
    let mut call = soon(calls.recv()).await.unwrap();
    assert_eq!(registry.in_flight(), 1);
    connection.abort();
    soon(call.closed()).await;
    soon(registry.wait_idle()).await;
    assert!(soon(response).await.unwrap().is_err());

    // While its body is sent.
    let mut client = Client::connect(address).await;
    let (_sender, body) = Channel::new(1);
    let (response, ()) =
        soon(async { tokio::join!(client.get(), async { calls.recv().await.unwrap().send(body).unwrap() }) }).await;
    assert_eq!((response.unwrap().status(), registry.in_flight()), (StatusCode::OK, 1));
    client.connection.abort();
    soon(registry.wait_idle()).await;
    assert_eq!(ended(&registry), [2, 0, 0]);
}

#[tokio::test]
async fn a_handler_that_panics_is_counted() {
    let registry = Registry::new(TokioSpawner);
    let panics = async || -> &str { panic!("planted") };
    let app = Router::new().route("/", get(panics)).layer(RequestLayer::new(&registry));
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    assert!(Client::connect(address).await.get().await.is_err());
    let summary = soon(registry.shutdown()).await;
    assert_eq!((summary.completed, summary.panicked), (0, 1));
}

#[tokio::test]
async fn a_request_may_start_work_until_its_end_while_the_registry_drains() {
    let registry = Registry::new(TokioSpawner);
    let (address, mut calls) = serve_axum(&registry).await;
    let mut client = Client::connect(address).await;
    let response = tokio::spawn(async move { text(client.get().await.unwrap()).await });
    let call = soon(calls.recv()).await.unwrap();
    let drained = registry.shutdown();

    // From its handler, and from its body.
    let (done, mut dones) = mpsc::unbounded_channel();
    let (first, second) = (done.clone(), done);
    registry.try_run(async move { first.send("of the handler").unwrap() }).unwrap();
    assert_eq!(soon(dones.recv()).await, Some("of the handler"));
    let (mut sender, body) = Channel::new(1);
    call.send(body).unwrap();
    sender.send_data("late".into()).await.unwrap();
    registry.try_run(async move { second.send("of the body").unwrap() }).unwrap();
    assert_eq!(soon(dones.recv()).await, Some("of the body"));
    assert!(!registry.is_drained());

    drop(sender);
    assert_eq!(soon(response).await.unwrap(), "late");
    let summary = soon(drained).await;
    assert_eq!((summary.completed, summary.rejected), (3, 0));
}

/// A service made of a function.
#[derive(Clone)]
struct Answer<F>(F);

impl<F, Q, A, B, E> Service<Request<Q>> for Answer<F>
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
async fn what_comes_after_the_drain_is_refused() {
    let registry = Registry::new(TokioSpawner);
    let called = Arc::new(AtomicUsize::new(0));
    let calls = called.clone();
    let answers = Answer(move |_| {
        calls.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(Response::new(Full::from("here"))))
    });
    let address = serve_hyper(RequestLayer::new(&registry).layer(answers)).await;

    let (mut client, mut client2) = (Client::connect(address).await, connect_http2(address).await);
    let accepted = client.get().await.unwrap();
    assert_eq!((accepted.status(), accepted.headers().get(CONNECTION)), (StatusCode::OK, None));
    assert_eq!(text(accepted).await, "here");
    assert_eq!(text(soon(client2.send_request(request())).await.unwrap()).await, "here");
    soon(registry.shutdown()).await;

    let refused = client.get().await.unwrap();
    assert_eq!((refused.status(), &refused.headers()[CONNECTION]), (StatusCode::SERVICE_UNAVAILABLE, &"close".parse().unwrap()));
    assert_eq!(text(refused).await, "");
    assert!(client.get().await.is_err(), "the connection is still open");
    let refused = soon(client2.send_request(request())).await.unwrap();
    assert_eq!((refused.status(), refused.headers().get(CONNECTION)), (StatusCode::SERVICE_UNAVAILABLE, None));
    assert_eq!(text(refused).await, "");
    assert_eq!((called.load(Ordering::Relaxed), ended(&registry)), (2, [2, 0, 2]));
}

#[tokio::test]
async fn what_is_too_much_is_refused_on_a_connection_that_stays() {
    let registry = Registry::builder(TokioSpawner).max_in_flight(1).build();
    let answers = Answer(|_| std::future::ready(Ok(Response::new(Full::from("here")))));
    let address = serve_hyper(RequestLayer::new(&registry).layer(answers)).await;
    let mut client = Client::connect(address).await;
    let guard = registry.guard().unwrap();
    let refused = client.get().await.unwrap();
    assert_eq!((refused.status(), refused.headers().get(CONNECTION)), (StatusCode::SERVICE_UNAVAILABLE, None));
    assert_eq!(text(refused).await, "");
    drop(guard);
    assert_eq!(text(client.get().await.unwrap()).await, "here");
}

/// In the service of no method, as a real one needs a compiler of its files: what is asked is what the layer is around.
#[tokio::test]
async fn tonic_takes_it() {
    let registry = Registry::new(TokioSpawner);
    let (listener, address) = listen().await;
    let mut server = tonic::transport::Server::builder().layer(RequestLayer::new(&registry).named("call"));
    let server = server.add_routes(tonic::service::Routes::default());
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let over = tokio::spawn(server.serve_with_incoming_shutdown(incoming, registry.signal()));

    let mut client = connect_http2(address).await;
    let response = soon(client.send_request(request())).await.unwrap();
    assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"12".parse().unwrap()));
    let summary = soon(registry.shutdown()).await;
    assert_eq!(summary.completed, 1);
    soon(over).await.unwrap().unwrap();
}

type Seen = Arc<Mutex<Vec<usize>>>;

/// A future and a body that notes, when it is dropped, how many are in flight.
struct Witness {
    registry: Registry<()>,
    seen: Seen,
    then: Then,
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Answer,
    Fail,
    Panic,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.seen.lock().unwrap().push(self.registry.in_flight());
    }
}

impl Future for Witness {
    type Output = Result<Response<Witness>, &'static str>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.then {
            Then::Answer => {
                Poll::Ready(Ok(Response::new(Self { registry: self.registry.clone(), seen: self.seen.clone(), then: Then::Panic })))
            }
            Then::Fail => Poll::Ready(Err("planted")),
            Then::Panic => panic!("planted"),
        }
    }
}

impl Body for Witness {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("planted")
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(7)
    }
}

fn witness(then: Then) -> (Registry<()>, Seen, RequestFuture<Witness>) {
    let (registry, seen) = (Registry::new(()), Seen::default());
    let answer = Answer(|_| Witness { registry: registry.clone(), seen: seen.clone(), then });
    let future = RequestLayer::new(&registry).layer(answer).call(Request::new(()));
    (registry, seen, future)
}

/// A copy: the next witness must find it unlocked, whatever is asserted of it.
fn noted(seen: &Seen) -> Vec<usize> {
    seen.lock().unwrap().clone()
}

/// Returns `None` for a panic.
fn caught<T>(what: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(|| what(&mut Context::from_waker(Waker::noop())))) {
        Ok(Poll::Ready(value)) => Some(value),
        Ok(Poll::Pending) => panic!("it waits"),
        Err(_) => None,
    }
}

#[test]
fn a_future_is_gone_before_its_request_is() {
    for (then, expected) in [(Then::Fail, [1, 0, 0]), (Then::Panic, [0, 1, 0])] {
        let (registry, seen, future) = witness(then);
        let mut future = pin!(future);
        assert_eq!((registry.in_flight(), ended(&registry)), (1, [0; 3]));
        match caught(|cx| future.as_mut().poll(cx)) {
            Some(answer) => assert_eq!(answer.map(drop), Err("planted")),
            None => assert!(matches!(then, Then::Panic)),
        }
        assert_eq!((noted(&seen), ended(&registry), registry.in_flight()), (vec![1], expected, 0), "{then:?}");
    }
    let (registry, seen, future) = witness(Then::Answer);
    drop(future);
    assert_eq!((noted(&seen), ended(&registry)), (vec![1], [1, 0, 0]));
}

#[test]
fn a_body_is_gone_before_its_request_is() {
    for (panics, expected) in [(false, [1, 0, 0]), (true, [0, 1, 0])] {
        let (registry, seen, future) = witness(Then::Answer);
        let mut future = pin!(future);
        let response = caught(|cx| future.as_mut().poll(cx)).unwrap().unwrap();
        let mut body = Box::pin(response.into_body());
        assert_eq!((noted(&seen), registry.in_flight()), (vec![1], 1), "the future is there still");
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(7), false));
        if panics {
            assert!(caught(|cx| body.as_mut().poll_frame(cx)).is_none());
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
            assert!(caught(|cx| body.as_mut().poll_frame(cx)).unwrap().is_none());
        } else {
            drop(body);
        }
        assert_eq!((noted(&seen), ended(&registry), registry.in_flight()), (vec![1, 1], expected, 0));
    }
}

/// Where the header would be an error; hyper leaves it out by itself.
#[test]
fn a_refusal_in_http2_has_no_header_of_a_connection() {
    let registry = Registry::new(());
    assert!(registry.shutdown().wait().is_clean());
    let mut service = RequestLayer::new(&registry).layer(Answer(|_: Request<()>| -> Witness { unreachable!() }));
    for (version, closes) in [(Version::HTTP_11, true), (Version::HTTP_2, false)] {
        let mut request = Request::new(());
        *request.version_mut() = version;
        let mut future = pin!(service.call(request));
        let response = caught(|cx| future.as_mut().poll(cx)).unwrap().unwrap();
        assert_eq!((response.status(), response.headers().contains_key(CONNECTION)), (StatusCode::SERVICE_UNAVAILABLE, closes));
    }
}

#[test]
fn a_call_that_panics_is_counted() {
    let registry = Registry::new(());
    let mut service = RequestLayer::new(&registry).layer(Answer(|_: Request<()>| -> Witness { panic!("planted") }));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(service.call(Request::new(()))))).is_err());
    assert_eq!(ended(&registry), [0, 1, 0]);
}

/// Not ready, then ready, then broken; it must not be called before it is ready.
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
fn it_is_ready_when_its_service_is() {
    let registry = Registry::new(());
    let mut service = RequestLayer::new(&registry).layer(Slow(0));
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!((service.poll_ready(&mut cx), registry.in_flight()), (Poll::Pending, 0));
    assert_eq!((service.poll_ready(&mut cx), registry.in_flight()), (Poll::Ready(Ok(())), 0));
    let answer = service.call(Request::new(()));
    assert_eq!((service.poll_ready(&mut cx), registry.in_flight()), (Poll::Ready(Err("broken")), 1));
    drop(answer);
    assert_eq!(registry.in_flight(), 0);
}
