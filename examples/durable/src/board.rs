//! A board that shows the number of mails in each status, and the mails that could not be sent.
//!
//! The board has no login and shows mail addresses. Therefore it has its own socket on a loopback address, and its server rejects host names,
//! which DNS rebinding could point to that address. It only reads.

use crate::signups::{self, Welcome};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use background_tasks_durable::{Durable, Error, Queue};
use serde_json::{Value, json};

const POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");

pub(crate) fn router(jobs: &Durable) -> Router {
    Router::new()
        .route("/", get(async |State(mails)| page(&mails).await))
        .route("/api/mails", get(async |State(mails)| answer(mails_as_json(&mails).await.map(Json))))
        .with_state(signups::queue(jobs))
        .layer(middleware::from_fn(guard))
}

async fn mails_as_json(mails: &Queue<Welcome>) -> Result<Value, Error> {
    let dead: Vec<_> = mails
        .dead()
        .await?
        .iter()
        .map(|job| {
            let to = job.payload::<Welcome>().map_or_else(|_| "?".to_owned(), |mail| mail.to);
            json!({ "id": job.id(), "to": to, "attempts": job.attempts(), "error": job.error() })
        })
        .collect();
    Ok(json!({ "counts": mails.counts().await?, "dead": dead }))
}

async fn page(mails: &Queue<Welcome>) -> Response {
    answer(mails_as_json(mails).await.map(|all| {
        let row = |cells: &[&Value]| {
            let cell = |value: &&Value| format!("<td>{}</td>", escaped(value.as_str().unwrap_or(&value.to_string())));
            format!("<tr>{}</tr>", cells.iter().map(cell).collect::<String>())
        };
        let counts: String =
            all["counts"].as_object().into_iter().flatten().map(|(name, count)| row(&[&json!(name), count])).collect();
        let dead = all["dead"].as_array().into_iter().flatten();
        let dead: String = dead.map(|job| row(&[&job["id"], &job["to"], &job["attempts"], &job["error"]])).collect();
        Html(format!(
            "<!doctype html><html lang=en><meta charset=utf-8><title>Mails</title><h1>Mails</h1><table>{counts}</table>\
            <h2>Not sent</h2><table><tr><th>job<th>to<th>attempts<th>error</tr>{dead}</table>"
        ))
    }))
}

fn answer(answer: Result<impl IntoResponse, Error>) -> Response {
    match answer {
        Ok(answer) => answer.into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
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
