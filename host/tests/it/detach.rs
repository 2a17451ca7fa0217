//! Tests `DetachLayer`.

use crate::layer::{Client, connect_http2, listen, request, serve_hyper, soon, text};
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Extension, Router};
use background_tasks::{Registry, TokioSpawner};
use background_tasks_host::{DetachLayer, RequestLayer};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::CONNECTION;
use hyper::{Request, Response, StatusCode};
use std::convert::Infallible;
use std::future::pending;
use std::io::Write;
use std::net::SocketAddr;
use tokio::sync::{mpsc, oneshot};
use tower::{ServiceBuilder, ServiceExt};

async fn serve(app: Router) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

#[tokio::test]
async fn disconnected_client_does_not_cancel_its_handler() {
    let (requests, handlers) = (Registry::new(TokioSpawner), Registry::new(TokioSpawner));
    let (calls, mut started) = mpsc::unbounded_channel();
    let handler = async move || {
        let (release, released) = oneshot::channel::<()>();
        calls.send(release).unwrap();
        released.await.unwrap();
    };
    let app = Router::new().route("/", get(handler)).layer(DetachLayer::new(&handlers)).layer(RequestLayer::new(&requests));
    let mut client = Client::connect(serve(app).await).await;
    let connection = client.connection.clone();
    tokio::spawn(async move { client.get().await.map(drop) });
    let release = soon(started.recv()).await.unwrap();

    connection.abort();
    // The registry of the requests becomes idle when the server has dropped the call.
    soon(requests.wait_idle()).await;
    assert_eq!((requests.summary().abandoned, handlers.in_flight()), (1, 1));
    let drained = handlers.shutdown();
    assert!(!handlers.is_drained());
    release.send(()).unwrap();
    let summary = soon(drained).await;
    assert_eq!((summary.completed, summary.abandoned), (1, 0));
}

/// A client of HTTP/2 cancels one request. Its connection stays open.
#[tokio::test]
async fn cancelled_http2_request_does_not_cancel_its_handler() {
    let (requests, handlers) = (Registry::new(TokioSpawner), Registry::new(TokioSpawner));
    let (calls, mut started) = mpsc::unbounded_channel();
    let handler = move |_: Request<Incoming>| {
        let calls = calls.clone();
        async move {
            let (release, released) = oneshot::channel::<()>();
            calls.send(release).unwrap();
            released.await.unwrap();
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    };
    let stack = ServiceBuilder::new().layer(RequestLayer::new(&requests)).layer(DetachLayer::new(&handlers));
    let mut client = connect_http2(serve_hyper(stack.service_fn(handler)).await).await;
    let response = tokio::spawn(client.send_request(request()));
    let release = soon(started.recv()).await.unwrap();

    response.abort();
    soon(requests.wait_idle()).await;
    assert_eq!((requests.summary().abandoned, handlers.in_flight()), (1, 1));
    release.send(()).unwrap();
    soon(handlers.wait_idle()).await;
    let response = tokio::spawn(client.send_request(request()));
    soon(started.recv()).await.unwrap().send(()).unwrap();
    assert_eq!(soon(response).await.unwrap().unwrap().status(), StatusCode::OK);
    let summary = soon(handlers.shutdown()).await;
    assert_eq!((summary.completed, summary.abandoned), (2, 0));

    // A connection of HTTP/2 stays open after a rejection.
    let rejected = soon(client.send_request(request())).await.unwrap();
    assert_eq!((rejected.status(), rejected.headers().get(CONNECTION)), (StatusCode::SERVICE_UNAVAILABLE, None));
}

/// The client disconnects after a part of its request body. The handler receives an error in place of the body, and continues.
#[tokio::test]
async fn handler_continues_without_the_rest_of_its_body() {
    let registry = Registry::new(TokioSpawner);
    let (calls, mut started) = mpsc::unbounded_channel();
    let handler = async move |request: axum::extract::Request| {
        let has_body = request.into_body().collect().await.is_ok();
        let (release, released) = oneshot::channel::<()>();
        calls.send((has_body, release)).unwrap();
        released.await.unwrap();
    };
    let address = serve(Router::new().route("/", post(handler)).layer(DetachLayer::new(&registry))).await;
    let mut client = std::net::TcpStream::connect(address).unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
    drop(client);
    let (has_body, release) = soon(started.recv()).await.unwrap();
    assert!(!has_body);
    let drained = registry.shutdown();
    release.send(()).unwrap();
    let summary = soon(drained).await;
    assert_eq!((summary.completed, summary.abandoned), (1, 0));
}

#[tokio::test]
async fn aborted_and_rejected_calls_are_answered_503() {
    let registry = Registry::builder(TokioSpawner).inspect().build();
    let (calls, mut started) = mpsc::unbounded_channel();
    let handler = async move || {
        calls.send(()).unwrap();
        pending::<()>().await;
    };
    let address = serve(Router::new().route("/", get(handler)).layer(DetachLayer::new(&registry).named("order"))).await;
    let mut client = Client::connect(address).await;
    let response = tokio::spawn(async move { client.get().await.unwrap() });
    soon(started.recv()).await.unwrap();
    assert_eq!(registry.tasks()[0].name(), Some("order"));
    // A host makes the same call at the end of the grace period.
    soon(registry.shutdown_or_abort(std::time::Duration::ZERO, crate::layer::PATIENCE)).await.unwrap();
    let aborted = soon(response).await.unwrap();
    let rejected = Client::connect(address).await.get().await.unwrap();
    for response in [aborted, rejected] {
        assert_eq!(
            (response.status(), &response.headers()[CONNECTION]),
            (StatusCode::SERVICE_UNAVAILABLE, &"close".parse().unwrap())
        );
        assert_eq!(text(response).await, "");
    }
    let summary = registry.summary();
    assert_eq!((summary.completed, summary.aborted, summary.rejected), (0, 1, 1));
}

#[tokio::test]
async fn limits_and_extensions_are_preserved() {
    let registry = Registry::builder(TokioSpawner).max_in_flight(1).build();
    let _full = registry.guard().unwrap();
    let handler = async |Extension(number): Extension<u8>, body: Bytes| (Extension(number + 1), format!("{number} {}", body.len()));
    let app = Router::new()
        .route("/", post(handler))
        .layer(DetachLayer::new(&registry))
        .layer(DefaultBodyLimit::max(4))
        .layer(Extension(7_u8));
    for (body, status) in [("four", StatusCode::OK), ("fifth", StatusCode::PAYLOAD_TOO_LARGE)] {
        let request = Request::post("/").body(axum::body::Body::from(body)).unwrap();
        let response = soon(app.clone().oneshot(request)).await.unwrap();
        let number = (status == StatusCode::OK).then_some(8);
        assert_eq!((response.status(), response.extensions().get::<u8>().copied()), (status, number));
    }
    assert_eq!((registry.summary().completed, registry.summary().rejected), (2, 0));
}

#[tokio::test]
async fn panic_of_a_handler_continues_in_its_connection() {
    let registry = Registry::new(TokioSpawner);
    let panics = async || -> &str { panic!("expected") };
    let address = serve(Router::new().route("/", get(panics)).layer(DetachLayer::new(&registry))).await;
    assert!(Client::connect(address).await.get().await.is_err());
    let summary = soon(registry.shutdown()).await;
    assert_eq!((summary.completed, summary.panicked), (0, 1));
}
