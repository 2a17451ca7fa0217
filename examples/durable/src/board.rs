//! The engine's board, which shows the queue, the jobs and the workers from the engine's tables.
//!
//! The board has its own socket, because its pages work only at the path `/`. It has no login and shows mail addresses. Therefore it listens
//! on a loopback address only, and its server rejects host names, which DNS rebinding could point to that address. The board rejects requests
//! that write: jobs that it pushes would not be valid for the worker.

use crate::signups::QUEUE;
use apalis_board_api::framework::{ApiBuilder, RegisterRoute};
use apalis_board_api::ui::ServeUI;
use apalis_postgres::PostgresStorage;
use apalis_sqlite::SqliteStorage;
use axum::Router;
use axum::extract::Request;
use axum::http::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
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

/// Allows only the board's own files and the script in its page. The version of the board is exact in Cargo.toml, because the hash is. Its
/// WebAssembly sets styles of elements.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; connect-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
    script-src 'self' 'wasm-unsafe-eval' 'sha256-r4HUiKO/PLcxGdG30zpQj9OoYnEN4S4xpTrtJlqANt4='; \
    base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
);

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
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, "the board is read-only\n").into_response();
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
