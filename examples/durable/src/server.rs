//! HTTP: takes sign-ups, and tells what became of their mails.

use crate::page;
use crate::signups::{Failed, Signup, Signups};
use crate::{Tasks, board};
use axum::extract::rejection::{FormRejection, JsonRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Form, Json, Router, serve};
use background_tasks::ShutdownSignal;
use background_tasks_durable::JobId;
use background_tasks_host::RequestLayer;
use futures_util::stream::{self, Stream};
use lettre::Address;
use serde::Deserialize;
use serde_json::json;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tracing::{info, warn};

/// How often an open page has the database asked.
const GLANCE: Duration = Duration::from_millis(250);

#[derive(Clone)]
struct Service {
    tasks: Tasks,
    signups: Signups,
}

/// Its sockets are bound, and nobody has been answered.
pub(crate) struct Server {
    service: Service,
    listener: TcpListener,
    board: Option<TcpListener>,
}

impl Server {
    pub(crate) async fn bind(
        tasks: Tasks,
        signups: Signups,
        listen: SocketAddr,
        board: Option<SocketAddr>,
    ) -> Result<Self, String> {
        let listener = self::bind(listen).await?;
        let board = match board {
            Some(address) => Some(self::bind(address).await?),
            None => None,
        };
        Ok(Self { service: Service { tasks, signups }, listener, board })
    }

    /// Serves until the shutdown has begun and all connections are done.
    pub(crate) async fn run(self) -> Result<(), String> {
        let Self { service, listener, board } = self;
        let tasks = service.tasks.clone();
        let board_app = board::router(&service.signups.jobs, tasks.signal());
        let app = Router::new()
            .route("/", get(async || page::form()))
            .route("/signups", get(async || Redirect::to("/")).post(sign_up))
            .route("/signups/{id}", get(show))
            .route("/signups/{id}/events", get(events))
            .fallback(async |wants: Wants| Refusal::NOT_FOUND.answer(&wants))
            .layer(DefaultBodyLimit::max(1024))
            .layer(RequestLayer::new(&tasks))
            .with_state(service);

        info!("listening on http://{}", address(&listener)?);
        let shown = async {
            let Some(board) = board else { return Ok(()) };
            info!("the board is at http://{}", address(&board)?);
            serve(board, board_app).with_graceful_shutdown(tasks.signal()).await.map_err(|error| error.to_string())
        };
        let served = async {
            background_tasks_host::notify_ready();
            serve(listener, app).with_graceful_shutdown(tasks.signal()).await.map_err(|error| error.to_string())
        };
        tokio::try_join!(served, shown).map(drop)
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}"))
}

fn address(listener: &TcpListener) -> Result<SocketAddr, String> {
    listener.local_addr().map_err(|error: io::Error| error.to_string())
}

/// Answers once the sign-up and its job are committed: whatever happens from here on, the mail is going to be sent.
async fn sign_up(State(service): State<Service>, wants: Wants, email: Result<Email, Refusal>) -> Response {
    match accept(&service, email).await {
        Ok((signup, _)) if wants == Wants::Page => Redirect::to(&path(signup.id)).into_response(),
        Ok((signup, new)) => {
            let status = if new { StatusCode::ACCEPTED } else { StatusCode::OK };
            (status, [(header::LOCATION, path(signup.id))], told(&signup)).into_response()
        }
        Err(refusal) => refusal.answer(&wants),
    }
}

async fn accept(service: &Service, email: Result<Email, Refusal>) -> Result<(Signup, bool), Refusal> {
    let Email(address) = email?;
    let (id, new) = service.signups.add(&address).await?;
    if new {
        return Ok((Signup::begun(id, address), true));
    }
    let mut signup = service.signups.look(id).await?.ok_or(Refusal::NOT_FOUND)?;
    signup.message.insert_str(0, "This address had signed up before. ");
    Ok((signup, false))
}

async fn show(State(service): State<Service>, wants: Wants, Path(id): Path<String>) -> Response {
    match find(&service, &id).await {
        Ok((_, signup)) if wants == Wants::Page => page::signup(&signup),
        Ok((_, signup)) => told(&signup).into_response(),
        Err(refusal) => refusal.answer(&wants),
    }
}

async fn find(service: &Service, id: &str) -> Result<(JobId, Signup), Refusal> {
    let id = id.parse().map_err(|_| Refusal::NOT_FOUND)?;
    Ok((id, service.signups.look(id).await?.ok_or(Refusal::NOT_FOUND)?))
}

fn path(id: JobId) -> String {
    format!("/signups/{id}")
}

fn told(signup: &Signup) -> impl IntoResponse {
    let mut told = json!(signup);
    told["url"] = path(signup.id).into();
    told["events"] = format!("{}/events", path(signup.id)).into();
    ([(header::CACHE_CONTROL, "no-store"), (header::VARY, "accept")], Json(told))
}

/// Tells each change until there is none to come, or the server is about to end: the browser then asks the next one.
async fn events(State(service): State<Service>, Path(id): Path<String>) -> Response {
    match find(&service, &id).await {
        Ok((id, signup)) => {
            let changes = Changes { id, signup: Some(signup), last: None, signal: service.tasks.signal(), service };
            let no_buffer = [("x-accel-buffering", "no")]; // nginx would collect them
            (no_buffer, Sse::new(changes.stream()).keep_alive(KeepAlive::default())).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

struct Changes {
    service: Service,
    id: JobId,
    /// What was seen and has not been told.
    signup: Option<Signup>,
    /// What has been told.
    last: Option<Signup>,
    signal: ShutdownSignal,
}

impl Changes {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut changes| {
            let event = changes.next().await?;
            Some((Ok(event), changes))
        })
    }

    async fn next(&mut self) -> Option<Event> {
        while self.last.as_ref().is_none_or(|last| !last.ended) {
            if let Some(signup) = self.signup.take().filter(|signup| self.last.as_ref() != Some(signup)) {
                let event = Event::default().json_data(&signup).expect("JSON has all that a sign-up has");
                self.last = Some(signup);
                return Some(event);
            }
            self.signal.run_until_shutdown(sleep(GLANCE)).await?;
            // A database that does not answer now may do so the next time.
            self.signup = self.service.signups.look(self.id).await.unwrap_or_else(|error| {
                warn!("cannot look after a mail: {error}");
                None
            });
        }
        None
    }
}

/// What the client reads.
#[derive(Debug, PartialEq)]
enum Wants {
    Page,
    Data,
}

impl<S: Sync> FromRequestParts<S> for Wants {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let accepts = parts.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        Ok(if accepts.is_some_and(|accept| accept.contains("text/html")) { Self::Page } else { Self::Data })
    }
}

/// An address that a mail can be sent to, from a form or from JSON.
struct Email(String);

#[derive(Deserialize)]
struct Body {
    email: String,
}

impl<S: Send + Sync> FromRequest<S> for Email {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let Body { email } = if is_json(request.headers()) {
            Json::from_request(request, state).await?.0
        } else {
            Form::from_request(request, state).await?.0
        };
        let address: Address = email.trim().parse().map_err(|_| Refusal::unprocessable("that is not an address of a mailbox"))?;
        // What is before the @ is its server's to tell apart; what is after it is the same in any case.
        Ok(Self(format!("{}@{}", address.user(), address.domain().to_ascii_lowercase())))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content = headers.get(header::CONTENT_TYPE).and_then(|content| content.to_str().ok());
    content.is_some_and(|content| content.starts_with("application/json"))
}

/// A sentence in place of what was asked for.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    why: String,
}

impl Refusal {
    const NOT_FOUND: Self = Self { status: StatusCode::NOT_FOUND, why: String::new() };

    fn unprocessable(why: &str) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, why: why.into() }
    }

    fn answer(self, wants: &Wants) -> Response {
        let Self { status, why } = self;
        let why = if why.is_empty() { "There is no such sign-up.".into() } else { why };
        match wants {
            Wants::Page => page::refused(status, &why),
            Wants::Data => (status, Json(json!({ "error": why }))).into_response(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.answer(&Wants::Data)
    }
}

impl From<Failed> for Refusal {
    fn from(error: Failed) -> Self {
        warn!("the database fails: {error}");
        let why = if error.surely {
            "The database cannot be reached, so nothing was done. Please try again later."
        } else {
            "The database went away before it had answered. Please sign up again: an address gets one mail, however often it signs up."
        };
        Self { status: StatusCode::SERVICE_UNAVAILABLE, why: why.into() }
    }
}

impl From<FormRejection> for Refusal {
    fn from(rejection: FormRejection) -> Self {
        Self { status: rejection.status(), why: rejection.body_text() }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self { status: rejection.status(), why: rejection.body_text() }
    }
}
