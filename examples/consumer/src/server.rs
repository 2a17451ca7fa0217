//! The HTTP server. The server accepts sign-ups and shows the status of their mails.

use crate::broker::{Broker, MAILS, NOTICES};
use crate::options::Options;
use crate::page::{self, Wants};
use crate::signups::{Notice, Signup, Signups, Welcome};
use crate::{Tasks, mail};
use axum::extract::rejection::FormRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Form, Json, Router};
use background_tasks::{ShutdownSignal, TokioSpawner};
use background_tasks_consumer::Delivery;
use background_tasks_host::{HttpServer, RequestLayer};
use futures_util::stream::{self, Stream};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::json;
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

#[derive(Clone)]
struct Service {
    tasks: Tasks,
    broker: Broker,
    signups: Signups,
}

/// An HTTP server that is already bound to its address.
pub(crate) struct Server {
    service: Service,
    http: HttpServer<TokioSpawner>,
    listener: TcpListener,
}

impl Server {
    /// Binds the socket, and starts to consume the notices that the workers send.
    pub(crate) async fn bind(tasks: Tasks, broker: &Broker, options: &Options) -> Result<Self, String> {
        let listen = options.listen;
        let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
        // During a drain, the server waits for the rest of a request body for at most this time. Because this time is shorter than the
        // grace period, a client that sends only half of a body cannot use up the grace period.
        let http = HttpServer::new(&tasks, TokioTimer::new()).drain_timeout(Duration::from_secs(5).min(options.grace / 2));
        let signups = Signups::default();
        let known = signups.clone();
        let handler = move |delivery: Delivery| {
            let known = known.clone();
            async move {
                known.apply(delivery.json::<Notice>()?);
                Ok(())
            }
        };
        broker.serve(NOTICES, &tasks, "notice", options.lease, handler).await?;
        Ok(Self { service: Service { tasks, broker: broker.clone(), signups }, http, listener })
    }

    /// Serves requests until shutdown has started and all connections are closed.
    pub(crate) async fn run(self) -> Result<(), String> {
        let Self { service, http, listener } = self;
        let app = Router::new()
            .route("/", get(async || page::form()))
            .route("/signups", get(async || Redirect::to("/")).post(sign_up))
            .route("/signups/{id}", get(show))
            .route("/signups/{id}/events", get(events))
            .fallback(async |wants: Wants| Refusal::not_found().answer(&wants))
            .layer(DefaultBodyLimit::max(1024))
            .layer(RequestLayer::new(&service.tasks))
            .with_state(service);
        info!("listening on http://{}", listener.local_addr().map_err(|error| error.to_string())?);
        background_tasks_host::notify_ready();
        http.serve(async move || Ok(TokioIo::new(listener.accept().await?.0)), TowerToHyperService::new(app)).await;
        Ok(())
    }
}

#[derive(Deserialize)]
struct Body {
    email: String,
}

/// Responds after the broker has confirmed the message. A crash of this process after the response cannot lose the mail.
async fn sign_up(State(service): State<Service>, wants: Wants, body: Result<Form<Body>, FormRejection>) -> Response {
    match accept(&service, body).await {
        Ok(signup) if wants == Wants::Page => Redirect::to(&path(signup.id)).into_response(),
        Ok(signup) => (StatusCode::ACCEPTED, [(header::LOCATION, path(signup.id))], response(&signup)).into_response(),
        Err(refusal) => refusal.answer(&wants),
    }
}

async fn accept(service: &Service, body: Result<Form<Body>, FormRejection>) -> Result<Signup, Refusal> {
    let Form(Body { email }) = body.map_err(|rejection| Refusal { status: rejection.status(), reason: rejection.body_text() })?;
    let to = email.trim().to_owned();
    // Rejects an address to which no mail can be composed.
    if !mail::is_valid(&to) {
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "This is not a valid mail address."));
    }
    let signup = Signup::accepted(Uuid::new_v4(), to.clone());
    // Stores the sign-up before it sends the message, because the worker's first notice may arrive before `send` returns.
    service.signups.insert(signup.clone());
    let payload = serde_json::to_string(&Welcome { id: signup.id, to }).expect("a mail can be serialized as JSON");
    service.broker.send(MAILS, &signup.id.to_string(), payload).await.map_err(|error| {
        warn!("cannot send a message: {error}");
        let reason = "The queue has not confirmed the sign-up. Please sign up again: you may then receive two mails.";
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    })?;
    Ok(signup)
}

async fn show(State(service): State<Service>, wants: Wants, Path(id): Path<String>) -> Response {
    match find(&service, &id).map(|changes| changes.borrow().clone()) {
        Ok(signup) if wants == Wants::Page => page::signup(&signup),
        Ok(signup) => response(&signup).into_response(),
        Err(refusal) => refusal.answer(&wants),
    }
}

fn find(service: &Service, id: &str) -> Result<watch::Receiver<Signup>, Refusal> {
    id.parse().ok().and_then(|id| service.signups.find(id)).ok_or_else(Refusal::not_found)
}

fn path(id: Uuid) -> String {
    format!("/signups/{id}")
}

fn response(signup: &Signup) -> impl IntoResponse {
    let mut body = json!(signup);
    body["url"] = path(signup.id).into();
    body["events"] = format!("{}/events", path(signup.id)).into();
    ([(header::CACHE_CONTROL, "no-store"), (header::VARY, "accept")], Json(body))
}

/// Streams each change of the status until the status is final or shutdown starts. If a shutdown ends the stream, the browser connects
/// again, to the next server.
async fn events(State(service): State<Service>, Path(id): Path<String>) -> Response {
    match find(&service, &id) {
        Ok(mut changes) => {
            changes.mark_changed(); // makes the stream start with the current status
            let no_buffer = [("x-accel-buffering", "no")]; // nginx would buffer the events
            (no_buffer, Sse::new(stream_of(changes, service.tasks.signal())).keep_alive(KeepAlive::default())).into_response()
        }
        Err(refusal) => refusal.answer(&Wants::Data),
    }
}

fn stream_of(changes: watch::Receiver<Signup>, signal: ShutdownSignal) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(Some(changes), move |changes| {
        let signal = signal.clone();
        async move {
            let mut changes = changes?;
            signal.run_until_shutdown(changes.changed()).await?.ok()?;
            let signup = changes.borrow_and_update().clone();
            let event = Event::default().json_data(&signup).expect("a sign-up can be serialized as JSON");
            Some((Ok(event), (!signup.ended).then_some(changes)))
        }
    })
}

/// An error response with a message.
struct Refusal {
    status: StatusCode,
    reason: String,
}

impl Refusal {
    fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "This server does not know such a sign-up. It forgets sign-ups when it restarts.")
    }

    fn new(status: StatusCode, reason: &str) -> Self {
        Self { status, reason: reason.into() }
    }

    fn answer(self, wants: &Wants) -> Response {
        let Self { status, reason } = self;
        wants.refused(status, &reason)
    }
}
