//! A web page for operators, called the board. The board shows the queues, and the jobs that wait, run or are dead. An operator can pause
//! a queue, and retry, discard or cancel jobs.
//!
//! The board has no login and shows mail addresses. Therefore the board listens on a separate socket with a loopback address. Pages
//! of other sites must not be able to use the board in the operator's browser. With DNS rebinding, another site could make its own
//! host name point to the board. The server of the board therefore accepts only `localhost` and IP addresses as host names. The
//! board also checks the headers `Sec-Fetch-Site` and `Origin`, and rejects a form that another site submits. The page needs no
//! script.

use crate::signups::{self, Welcome};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use background_tasks_durable::{Durable, Error, JobId, JobInfo, JobStatus, QueueCounts, QueueInfo};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
);

pub(crate) fn router(jobs: &Durable) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/board.css", get(async || ([(CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("board.css"))))
        .route("/queues/{queue}/{action}", post(change_queue))
        .route("/jobs/{job}/{action}", post(change_job))
        .route("/api/mails", get(async |State(jobs)| mails_as_json(&jobs).await.map(Json)))
        .with_state(jobs.clone())
        .layer(middleware::from_fn(guard))
}

/// The reason why a request fails.
enum Refusal {
    Store(Error),
    Status(StatusCode, &'static str),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Store(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            Self::Status(status, text) => (status, text.to_owned()),
        };
        (status, Html(document(&format!("<p role=alert>{}</p><p><a href=/>Back to the board</a></p>", escaped(&text)))))
            .into_response()
    }
}

async fn mails_as_json(jobs: &Durable) -> Result<Value, Refusal> {
    let mails = signups::queue(jobs);
    let dead = mails.dead().await?;
    let dead = dead.iter().map(|job| {
        let to = job.payload::<Welcome>().map_or_else(|_| "?".to_owned(), |mail| mail.to);
        json!({ "id": job.id(), "to": to, "attempts": job.attempts(), "error": job.error() })
    });
    Ok(json!({ "counts": mails.counts().await?, "dead": dead.collect::<Vec<_>>() }))
}

async fn change_queue(State(jobs): State<Durable>, Path((queue, action)): Path<(String, String)>) -> Result<Redirect, Refusal> {
    // An outdated page can contain the form of a queue that does not exist. Such a form must not create the queue.
    if !jobs.queues().await?.iter().any(|info| info.name == queue) {
        return Err(Refusal::Status(StatusCode::NOT_FOUND, "There is no such queue."));
    }
    let queue = jobs.untyped_queue(queue);
    match &*action {
        "pause" => queue.pause().await?,
        "resume" => queue.resume().await?,
        "retry" => drop(queue.retry_all().await?),
        "discard" => drop(queue.discard_all().await?),
        _ => return Err(Refusal::Status(StatusCode::NOT_FOUND, "There is no such action.")),
    }
    Ok(board_of(queue.name()))
}

async fn change_job(State(jobs): State<Durable>, Path((job, action)): Path<(String, String)>) -> Result<Redirect, Refusal> {
    let id = job.parse::<JobId>().ok();
    let info = if let Some(id) = id { jobs.job(id).await? } else { None };
    let Some(info) = info else { return Err(Refusal::Status(StatusCode::NOT_FOUND, "There is no such job.")) };
    let queue = jobs.untyped_queue(info.queue().to_owned());
    let is_changed = match &*action {
        "retry" => queue.retry(info.id()).await?,
        "discard" => queue.discard(info.id()).await?,
        "cancel" => queue.cancel(info.id()).await?,
        _ => return Err(Refusal::Status(StatusCode::NOT_FOUND, "There is no such action.")),
    };
    if !is_changed {
        return Err(Refusal::Status(StatusCode::CONFLICT, "The status of the job has changed meanwhile, so nothing was done."));
    }
    Ok(board_of(queue.name()))
}

fn board_of(queue: &str) -> Redirect {
    Redirect::to(&format!("/?queue={}", encoded(queue)))
}

#[derive(Deserialize)]
struct Selection {
    queue: Option<String>,
}

async fn page(State(jobs): State<Durable>, Query(selection): Query<Selection>) -> Result<Html<String>, Refusal> {
    let queues = jobs.queues().await?;
    let selected = selection.queue.unwrap_or_else(|| signups::QUEUE.to_owned());
    let mut html = queue_table(&queues);
    if let Some(info) = queues.iter().find(|queue| queue.name == selected) {
        let queue = jobs.untyped_queue(selected);
        html.push_str(&dead_table(info, &queue.jobs(JobStatus::Dead, None).await?));
        let mut open = Vec::new();
        for status in [JobStatus::Running, JobStatus::Retrying, JobStatus::Waiting] {
            open.extend(queue.jobs(status, None).await?);
        }
        html.push_str(&open_table(info, &open));
    }
    Ok(Html(document(&html)))
}

fn document(body: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>\
        <link rel=icon href='data:,'><link rel=stylesheet href=/board.css><title>Mails</title><h1>Mails</h1><main>{body}</main></html>"
    )
}

fn queue_table(queues: &[QueueInfo]) -> String {
    let rows = queues.iter().fold(String::new(), |mut rows, queue| {
        let (name, path) = (escaped(&queue.name), encoded(&queue.name));
        let QueueCounts { waiting, running, retrying, done, dead, cancelled, .. } = queue.counts;
        let (state, action, label) = if queue.is_paused { ("paused", "resume", "Resume") } else { ("", "pause", "Pause") };
        let oldest = queue.oldest.map_or_else(|| "–".to_owned(), span);
        let counts = [waiting, running, retrying, done, dead, cancelled].map(|count| cell("number", &number(count))).concat();
        let _ = write!(
            rows,
            "<tr><td><a href='/?queue={path}'>{name}</a> <span class=paused>{state}</span></td>{counts}{}{}<td><div class=actions>{}</div></td></tr>",
            cell("number", &oldest),
            cell("number", &queue.workers.to_string()),
            form(&format!("/queues/{path}/{action}"), label, &format!("{label} {name}"), ""),
        );
        rows
    });
    let head =
        heads(&["queue", "#waiting", "#running", "#retrying", "#done", "#dead", "#cancelled", "#oldest due", "#workers", ""]);
    format!(
        "<section aria-labelledby=queues><header><h2 id=queues>Queues</h2></header>\
        <div class=scroll><table>{head}{rows}</table></div></section>"
    )
}

fn dead_table(info: &QueueInfo, jobs: &[JobInfo]) -> String {
    let path = encoded(&info.name);
    let rows = jobs.iter().fold(String::new(), |mut rows, job| {
        let id = job.id();
        let _ = write!(
            rows,
            "<tr>{}{}{}{}{}<td><div class=actions>{}{}</div></td></tr>",
            cell("", &format!("<code>{id}</code>")),
            cell("wide", &format!("<code>{}</code>", escaped(&job.payload_json()))),
            cell("wide error", &escaped(job.error().unwrap_or("–"))),
            cell("number", &job.attempts().to_string()),
            cell("number", &job.ended().map_or_else(String::new, ago)),
            form(&format!("/jobs/{id}/retry"), "Retry", &format!("Retry {id}"), ""),
            form(&format!("/jobs/{id}/discard"), "Discard", &format!("Discard {id}"), "danger"),
        );
        rows
    });
    let bulk = if jobs.is_empty() {
        String::new()
    } else {
        // The button that deletes all jobs appears after the first click, so the deletion needs a second click.
        format!(
            "<div class=bulk>{}<details><summary class=danger>Discard all</summary>{}</details></div>",
            form(&format!("/queues/{path}/retry"), "Retry all", "Retry all dead jobs", ""),
            form(
                &format!("/queues/{path}/discard"),
                &format!("Delete {} jobs", number(info.counts.dead)),
                "Delete all dead jobs",
                "danger"
            ),
        )
    };
    let head = heads(&["job", "payload", "error", "#attempts", "#ended", ""]);
    section("dead", &format!("Dead in {}", escaped(&info.name)), &bulk, &head, &rows, jobs.len(), info.counts.dead)
}

fn open_table(info: &QueueInfo, jobs: &[JobInfo]) -> String {
    let rows = jobs.iter().fold(String::new(), |mut rows, job| {
        let (id, status) = (job.id(), job.status());
        let _ = write!(
            rows,
            "<tr>{}{}{}{}{}<td><div class=actions>{}</div></td></tr>",
            cell("", &format!("<code>{id}</code>")),
            cell(&status.to_string(), &status.to_string()),
            cell("wide", &format!("<code>{}</code>", escaped(&job.payload_json()))),
            cell("wide error", &escaped(job.error().unwrap_or_default())),
            cell("number", &ago(job.due())),
            form(&format!("/jobs/{id}/cancel"), "Cancel", &format!("Cancel {id}"), "danger"),
        );
        rows
    });
    let head = heads(&["job", "status", "payload", "error", "#due", ""]);
    let all = info.counts.waiting + info.counts.running + info.counts.retrying;
    section("open", &format!("Waiting, running and retrying in {}", escaped(&info.name)), "", &head, &rows, jobs.len(), all)
}

/// Returns a section with a table. If the table has no rows, the section contains a sentence instead.
fn section(id: &str, title: &str, actions: &str, head: &str, rows: &str, shown: usize, all: u64) -> String {
    let table = if rows.is_empty() {
        "<p class=quiet>No jobs.</p>".to_owned()
    } else {
        format!("<div class=scroll><table>{head}{rows}</table></div>")
    };
    let more =
        if all > shown as u64 { format!("<p class=quiet>{shown} of {} jobs are shown.</p>", number(all)) } else { String::new() };
    format!("<section aria-labelledby={id}><header><h2 id={id}>{title}</h2>{actions}</header>{table}{more}</section>")
}

/// Returns the head of a table. If the name of a column starts with `#`, the column contains numbers.
fn heads(names: &[&str]) -> String {
    let head = |name: &&str| match name.strip_prefix('#') {
        Some(name) => format!("<th class=number>{name}"),
        None => format!("<th>{name}"),
    };
    format!("<tr>{}</tr>", names.iter().map(head).collect::<String>())
}

fn cell(class: &str, html: &str) -> String {
    format!("<td class='{class}'>{html}</td>")
}

/// Returns a button that sends a POST request. For screen readers, `description` distinguishes this button from the other buttons.
fn form(action: &str, label: &str, description: &str, class: &str) -> String {
    format!("<form method=post action='{action}'><button class='{class}' aria-label='{description}'>{label}</button></form>")
}

fn number(count: u64) -> String {
    if count > QueueCounts::LIMIT { format!("{}+", QueueCounts::LIMIT) } else { count.to_string() }
}

fn ago(time: SystemTime) -> String {
    match SystemTime::now().duration_since(time) {
        Ok(age) if age.as_secs() == 0 => "now".to_owned(),
        Ok(age) => format!("{} ago", span(age)),
        Err(error) => format!("in {}", span(error.duration())),
    }
}

fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

/// Encodes a part of a URL: replaces special characters by their percent encoding.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

async fn guard(request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if is_read || is_same_origin(request.headers()) {
        next.run(request).await
    } else {
        Refusal::Status(StatusCode::FORBIDDEN, "Only the board itself can change jobs.").into_response()
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    // With the policy `no-referrer`, a browser would send `Origin: null` with the forms of the board. If this browser does not send
    // `Sec-Fetch-Site`, `is_same_origin` would then reject these forms.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Returns whether a form of the board sent the request. Browsers send the header `Sec-Fetch-Site` or `Origin`, and pages of other sites
/// cannot change these headers.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let value = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let site = HeaderName::from_static("sec-fetch-site");
    if headers.contains_key(&site) {
        return value(site) == Some("same-origin");
    }
    value(ORIGIN).and_then(|origin| origin.strip_prefix("http://")).is_some_and(|origin| Some(origin) == value(HOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_jobs_is_escaped() {
        assert_eq!(escaped("<b title='\"&\">"), "&lt;b title=&#39;&quot;&amp;&quot;&gt;");
        assert_eq!(encoded("mail/a b'.."), "mail%2Fa%20b%27%2E%2E");
    }
}
