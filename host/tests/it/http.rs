//! `HttpServer` against clients that write and read raw bytes.

use background_tasks::{Registry, SmolSpawner, TokioSpawner};
use background_tasks_host::{HttpServer, TimedBody};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;

async fn echo(request: Request<TimedBody>) -> Result<Response<Full<bytes::Bytes>>, std::io::Error> {
    Ok(Response::new(Full::new(request.into_body().collect().await?.to_bytes())))
}

#[tokio::test]
async fn sendable() {
    let registry = Registry::new(TokioSpawner);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = HttpServer::new(&registry, TokioTimer::new());
    let s = server.clone();
    tokio::spawn(async move { s.serve(async move || Ok(TokioIo::new(listener.accept().await?.0)), service_fn(echo)).await });
    let app = axum::Router::new().route("/", axum::routing::get(async || "x"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let signal = registry.signal();
    tokio::spawn(async move {
        server
            .serve_until(
                async {
                    signal.await;
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await
                },
                async move || Ok(TokioIo::new(listener.accept().await?.0)),
                hyper_util::service::TowerToHyperService::new(app),
            )
            .await
    });
}
