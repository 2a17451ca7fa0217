//! The engine's board: its queue, its jobs, its workers, read from the engine's tables.
//!
//! It has an address of its own, as its pages know no other path than `/`. It has no login, and whoever reaches it sees addresses:
//! hence a loopback address, no name that a name server could point there (which would let a page of others read it), and no request but to
//! read: what it could push is no job that the worker knows.

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
    // It takes a system for unhealthy that has no stream of its log. That of this process says little of the workers', so this is silent.
    let silence = async move || {
        Sse::new(stream::once(signal).filter_map(async |()| None::<Result<Event, Infallible>>)).keep_alive(KeepAlive::default())
    };
    let api = ApiBuilder::new(Router::new().route("/events", get(silence)));
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
        return (StatusCode::FORBIDDEN, "the board is shown under localhost or a loopback address\n").into_response();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, "the board shows, and does nothing\n").into_response();
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
    fn the_hosts() {
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1", "127.0.0.1:8081", "[::1]", "[::1]:8081"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com:8081", "10.0.0.1:8081", "[::2]:8081", "127.0.0.1.example.com"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
