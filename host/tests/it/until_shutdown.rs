//! Tests `UntilShutdown`.

use crate::layer::{Client, listen, soon};
use axum::Router;
use axum::body::Body;
use axum::routing::get;
use background_tasks::{Registry, TokioSpawner};
use background_tasks_host::{RequestLayer, UntilShutdown};
use bytes::Bytes;
use futures_lite::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use std::convert::Infallible;

#[tokio::test]
async fn stream_ends_at_the_signal_and_is_in_flight_until_it_is_dropped() {
    let registry = Registry::builder(TokioSpawner).inspect().build();
    let mut silent = UntilShutdown::new(&registry, stream::pending::<()>());
    let mut endless = UntilShutdown::new(&registry, stream::repeat(1));
    assert_eq!(soon(endless.next()).await, Some(1));
    assert_eq!(registry.tasks()[0].name(), Some("stream"));
    let waiting = tokio::spawn(async move { (silent.next().await, silent) });
    tokio::task::yield_now().await;
    let drained = registry.shutdown();
    let (end, silent) = soon(waiting).await.unwrap();
    assert_eq!((end, soon(endless.next()).await), (None, None));
    assert_eq!((registry.in_flight(), endless.get_mut().next().await), (2, Some(1)));
    drop((silent, endless.into_inner()));
    assert_eq!(soon(drained).await.completed, 2);

    let mut late = UntilShutdown::new(&registry, stream::repeat(1));
    assert_eq!(soon(late.next()).await, None);
}

#[tokio::test]
async fn response_of_a_stream_ends_without_an_error() {
    let registry = Registry::new(TokioSpawner);
    let streams = registry.clone();
    let events = async move || {
        let events = stream::once("event").chain(stream::pending());
        Body::from_stream(UntilShutdown::new(&streams, events).map(Ok::<_, Infallible>))
    };
    let app = Router::new().route("/", get(events)).layer(RequestLayer::new(&registry));
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let mut response = Client::connect(address).await.get().await.unwrap();
    assert_eq!(soon(response.frame()).await.unwrap().unwrap().into_data().unwrap(), "event");
    let drained = registry.shutdown();
    assert!(soon(response.frame()).await.is_none());
    let summary = soon(drained).await;
    assert_eq!((summary.completed, summary.abandoned), (2, 0));
}

#[tokio::test]
async fn body_has_no_announced_length() {
    let registry = Registry::new(TokioSpawner);
    let mut body = UntilShutdown::new(&registry, Full::new(Bytes::from("text")));
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (None, false));
    registry.start_shutdown();
    assert!(soon(body.frame()).await.is_none());
}

/// A client switches its connection to another protocol. When shutdown starts, the server must still be able to send a last message.
#[cfg(feature = "http")]
#[tokio::test(flavor = "multi_thread")]
async fn upgraded_connection_ends_at_the_signal() {
    use hyper::rt::{Read, ReadBuf, Write};
    use std::future::poll_fn;
    use std::io::{Read as _, Write as _};
    use std::pin::pin;

    let registry = Registry::new(TokioSpawner);
    let connections = registry.clone();
    let upgrade = async move |request: axum::extract::Request| {
        let registry = connections.clone();
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(request).await.unwrap();
            let mut connection = pin!(UntilShutdown::new(&registry, upgraded));
            loop {
                let mut bytes = [0; 16];
                let mut buffer = ReadBuf::new(&mut bytes);
                poll_fn(|cx| connection.as_mut().poll_read(cx, buffer.unfilled())).await.unwrap();
                let answer = if buffer.filled().is_empty() { "bye" } else { "pong" };
                poll_fn(|cx| connection.as_mut().poll_write(cx, answer.as_bytes())).await.unwrap();
                if answer == "bye" {
                    return;
                }
            }
        });
        let headers = [("connection", "upgrade"), ("upgrade", "ping")];
        (axum::http::StatusCode::SWITCHING_PROTOCOLS, headers)
    };
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(upgrade))).await.unwrap() });
    let client = move |registry: Registry<()>| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(crate::layer::PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: ping\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        stream.write_all(b"ping").unwrap();
        let mut pong = [0; 4];
        stream.read_exact(&mut pong).unwrap();
        assert_eq!((&pong, registry.in_flight()), (b"pong", 1));
        registry.start_shutdown();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "bye");
    };
    let registry_of_client = registry.with_spawner(());
    soon(tokio::task::spawn_blocking(move || client(registry_of_client))).await.unwrap();
    assert_eq!(soon(registry.shutdown()).await.completed, 1);
}
