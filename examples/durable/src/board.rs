//! The engine's board, which shows the queue, the jobs and the workers from the engine's tables.
//!
//! The board has its own socket, because its pages work only at the path `/`. It has no login and shows mail addresses. Therefore it listens
//! on a loopback address only, and rejects other host names, which DNS rebinding could point to that address. It rejects requests that write:
//! jobs that it pushes would not be valid for the worker.

use crate::signups::QUEUE;
use apalis_board_api::framework::{ApiBuilder, RegisterRoute};
use apalis_board_api::ui::ServeUI;
use apalis_postgres::PostgresStorage;
use apalis_sqlite::SqliteStorage;
use axum::Router;
use axum::extract::Request;
use axum::http::header::HOST;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use background_tasks::ShutdownSignal;
use background_tasks_durable::Durable;
use futures_util::stream::{self, StreamExt};
use serde_json::Value;
use std::convert::Infallible;
use std::net::SocketAddr;

pub(crate) fn router(jobs: &Durable, signal: ShutdownSignal) -> Router {
    // The board reports a system without a log stream as unhealthy. The log of this process says little about the workers, so the stream is
    // empty.
    let empty_log = async move || {
        Sse::new(stream::once(signal).filter_map(async |()| None::<Result<Event, Infallible>>)).keep_alive(KeepAlive::default())
    };
    let api = ApiBuilder::new(Router::new().route("/events", get(empty_log)));
    let api = match (jobs.sqlite_pool(), jobs.postgres_pool()) {
        (Some(pool), _) => {
            let config = apalis_sqlite::Config::default().queue(QUEUE);
            api.register(QUEUE, SqliteStorage::<Value>::new(pool).with_config(config))
        }
        (_, Some(pool)) => {
            let config = apalis_postgres::Config::default().queue(QUEUE);
            api.register(QUEUE, PostgresStorage::<Value>::new(pool).with_config(config))
        }
        _ => api,
    };
    Router::new().nest("/api/v1", api.build()).fallback_service(ServeUI::new()).layer(middleware::from_fn(guard))
}

async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_loopback) {
        return (StatusCode::FORBIDDEN, "open the board as localhost or at a loopback address\n").into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, "the board is read-only\n").into_response();
    }
    next.run(request).await
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost")
        || host.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_hosts_are_accepted() {
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1", "127.0.0.1:8081", "[::1]", "[::1]:8081"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com:8081", "10.0.0.1:8081", "[::2]:8081", "127.0.0.1.example.com"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
