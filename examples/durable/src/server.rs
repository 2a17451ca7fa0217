//! The HTTP server. The server accepts sign-ups and shows the status of their mails.

use crate::options::Options;
use crate::page::{self, Wants};
use crate::signups::{Signup, Signups, StoreError};
use crate::{Tasks, board, mail};
use axum::extract::rejection::{FormRejection, JsonRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Form, Json, Router};
use background_tasks::{ShutdownSignal, TokioSpawner};
use background_tasks_durable::JobId;
use background_tasks_host::{HttpServer, RequestLayer};
use futures_util::stream::{self, Stream};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lettre::Address;
use serde::Deserialize;
use serde_json::json;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::{info, warn};

/// The interval between two queries of the database for one open page.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Clone)]
struct Service {
    tasks: Tasks,
    signups: Signups,
}

/// The maximum number of open connections to the board. The server needs the other file descriptors for its own connections.
const BOARD_CONNECTIONS: usize = 16;

/// An HTTP server that is already bound to its addresses.
pub(crate) struct Server {
    service: Service,
    http: HttpServer<TokioSpawner>,
    hosts: Vec<String>,
    listener: TcpListener,
    board: Option<TcpListener>,
}

impl Server {
    pub(crate) async fn bind(tasks: Tasks, signups: Signups, options: &Options) -> Result<Self, String> {
        let listener = self::bind(options.listen).await?;
        let board = match options.board.0 {
            Some(address) => Some(self::bind(address).await?),
            None => None,
        };
        // A client that sends only half of a body can delay the end of the drain for at most this time, which is shorter than the grace
        // period.
        let http = HttpServer::new(&tasks, TokioTimer::new()).drain_timeout(Duration::from_secs(5).min(options.grace / 2));
        Ok(Self { service: Service { tasks, signups }, http, hosts: options.hosts.clone(), listener, board })
    }

    /// Serves requests until shutdown has started and all connections are closed.
    pub(crate) async fn run(self) -> Result<(), String> {
        let Self { service, http, hosts, listener, board } = self;
        let tasks = service.tasks.clone();
        let board_app = board::router(&service.signups.jobs);
        let app = Router::new()
            .route("/", get(async || page::form()))
            .route("/signups", get(async || Redirect::to("/")).post(sign_up))
            .route("/signups/{id}", get(show))
            .route("/signups/{id}/events", get(events))
            .fallback(async |wants: Wants| Refusal::NOT_FOUND.answer(&wants))
            .layer(DefaultBodyLimit::max(1024))
            .layer(RequestLayer::new(&tasks))
            .with_state(service);

        let server = hosts.iter().fold(http.clone(), |server, host| server.host_name(host));
        info!("listening on http://{}", address(&listener)?);
        let serve_board = async {
            let Some(board) = board else { return Ok(()) };
            info!("the board is at http://{}", address(&board)?);
            // The board has no `host_name`, so it accepts only `localhost` and IP addresses. DNS rebinding could make any other
            // host name point to this server.
            http.max_connections(BOARD_CONNECTIONS).serve(connections(board), TowerToHyperService::new(board_app)).await;
            Ok(())
        };
        let serve_app = async {
            background_tasks_host::notify_ready();
            server.serve(connections(listener), TowerToHyperService::new(app)).await;
            Ok(())
        };
        tokio::try_join!(serve_app, serve_board).map(drop)
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}"))
}

fn connections(listener: TcpListener) -> impl AsyncFnMut() -> io::Result<TokioIo<TcpStream>> {
    async move || Ok(TokioIo::new(listener.accept().await?.0))
}

fn address(listener: &TcpListener) -> Result<SocketAddr, String> {
    listener.local_addr().map_err(|error: io::Error| error.to_string())
}

/// Sends the response after the sign-up and its job are committed. After the response, no crash can lose the mail.
async fn sign_up(State(service): State<Service>, wants: Wants, email: Result<Email, Refusal>) -> Response {
    match accept(&service, email).await {
        Ok((signup, _)) if wants == Wants::Page => Redirect::to(&path(signup.id)).into_response(),
        Ok((signup, is_new)) => {
            let status = if is_new { StatusCode::ACCEPTED } else { StatusCode::OK };
            (status, [(header::LOCATION, path(signup.id))], response(&signup)).into_response()
        }
        Err(refusal) => refusal.answer(&wants),
    }
}

async fn accept(service: &Service, email: Result<Email, Refusal>) -> Result<(Signup, bool), Refusal> {
    let Email(address) = email?;
    let (id, is_new) = service.signups.add(&address).await?;
    if is_new {
        return Ok((Signup::committed(id, address), true));
    }
    let mut signup = service.signups.find(id).await?.ok_or(Refusal::NOT_FOUND)?;
    signup.message.insert_str(0, "This address has already signed up. ");
    Ok((signup, false))
}

async fn show(State(service): State<Service>, wants: Wants, Path(id): Path<String>) -> Response {
    match find(&service, &id).await {
        Ok((_, signup)) if wants == Wants::Page => page::signup(&signup),
        Ok((_, signup)) => response(&signup).into_response(),
        Err(refusal) => refusal.answer(&wants),
    }
}

async fn find(service: &Service, id: &str) -> Result<(JobId, Signup), Refusal> {
    let id = id.parse().map_err(|_| Refusal::NOT_FOUND)?;
    Ok((id, service.signups.find(id).await?.ok_or(Refusal::NOT_FOUND)?))
}

fn path(id: JobId) -> String {
    format!("/signups/{id}")
}

fn response(signup: &Signup) -> impl IntoResponse {
    let mut body = json!(signup);
    body["url"] = path(signup.id).into();
    body["events"] = format!("{}/events", path(signup.id)).into();
    ([(header::CACHE_CONTROL, "no-store"), (header::VARY, "accept")], Json(body))
}

/// Streams each change of the status. The stream ends when the status is final or shutdown starts. After a shutdown, the browser
/// reconnects and reaches the next server.
async fn events(State(service): State<Service>, Path(id): Path<String>) -> Response {
    match find(&service, &id).await {
        Ok((id, signup)) => {
            let changes = Changes { id, signup: Some(signup), last: None, signal: service.tasks.signal(), service };
            let no_buffer = [("x-accel-buffering", "no")]; // nginx would buffer the events
            (no_buffer, Sse::new(changes.stream()).keep_alive(KeepAlive::default())).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

struct Changes {
    service: Service,
    id: JobId,
    /// The latest status, if it has not been sent yet.
    signup: Option<Signup>,
    /// The status that was sent last.
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
                let event = Event::default().json_data(&signup).expect("a sign-up can be serialized as JSON");
                self.last = Some(signup);
                return Some(event);
            }
            self.signal.run_until_shutdown(sleep(POLL_INTERVAL)).await?;
            // After an error, the loop continues, because the next query may succeed.
            self.signup = self.service.signups.find(self.id).await.unwrap_or_else(|error| {
                warn!("cannot query the status of a mail: {error}");
                None
            });
        }
        None
    }
}

/// A valid mail address from a request, sent as a form or as JSON.
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
        let address = email.trim().parse().ok();
        // The domain is not case-sensitive. The part before the @ may be case-sensitive.
        let address = address.map(|address: Address| format!("{}@{}", address.user(), address.domain().to_ascii_lowercase()));
        // Rejects an address if no mail to this address can be composed, for example an address in quotes.
        let address = address.filter(|address| mail::is_valid(address));
        address.map(Self).ok_or_else(|| Refusal::unprocessable("This is not a valid mail address."))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let content = headers.get(header::CONTENT_TYPE).and_then(|content| content.to_str().ok());
    content.is_some_and(|content| content.starts_with("application/json"))
}

/// An error response with a message.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    reason: String,
}

impl Refusal {
    const NOT_FOUND: Self = Self { status: StatusCode::NOT_FOUND, reason: String::new() };

    fn unprocessable(reason: &str) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, reason: reason.into() }
    }

    fn answer(self, wants: &Wants) -> Response {
        let Self { status, reason } = self;
        let reason = if reason.is_empty() { "There is no such sign-up.".into() } else { reason };
        wants.refused(status, &reason)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.answer(&Wants::Data)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        warn!("database error: {error}");
        let reason = if error.is_rolled_back {
            "The database cannot be reached, so nothing was saved. Please try again later."
        } else {
            "The connection to the database was lost. Please sign up again: each address receives one mail, even if it signs up twice."
        };
        Self { status: StatusCode::SERVICE_UNAVAILABLE, reason: reason.into() }
    }
}

impl From<FormRejection> for Refusal {
    fn from(rejection: FormRejection) -> Self {
        Self { status: rejection.status(), reason: rejection.body_text() }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self { status: rejection.status(), reason: rejection.body_text() }
    }
}
