//! Handles the HTTP requests of the service.

use crate::folder::{MAX_NOTE, ReadError};
use crate::page::page;
use crate::store::{Name, Store};
use background_tasks::{BlockingSpawner, Registry};
use background_tasks_host::{Dashboard, TimedBody};
use bytes::Bytes;
use futures_channel::oneshot;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

pub(crate) struct Notes<S> {
    pub(crate) registry: Registry<S>,
    pub(crate) store: Arc<Store>,
    /// This field contains the dashboard if the option `--dashboard` is set.
    pub(crate) dashboard: Option<Dashboard>,
}

pub(crate) type Reply = UnsyncBoxBody<Bytes, Infallible>;

impl<S: BlockingSpawner> Notes<S> {
    pub(crate) async fn handle(self: Arc<Self>, request: Request<TimedBody>) -> Result<Response<Reply>, Infallible> {
        let has_body = !request.body().is_end_stream();
        let mut response = self.route(request).await.unwrap_or_else(plain);
        if has_body && !response.status().is_success() {
            // The handler has not read the rest of the body, so the connection cannot serve another request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    async fn route(&self, request: Request<TimedBody>) -> Result<Response<Reply>, StatusCode> {
        let path = request.uri().path();
        if let Some(dashboard) = self.dashboard.as_ref().filter(|_| path == "/background" || path.starts_with("/background/")) {
            return Ok(dashboard.respond(&request).map(BodyExt::boxed_unsync));
        }
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match path {
            "/" | "/tasks" | "/readyz" if !is_read => return Ok(allow("GET, HEAD")),
            "/" => return self.page(),
            "/tasks" => return self.tasks(),
            "/readyz" if self.registry.is_shutting_down() => return Err(StatusCode::SERVICE_UNAVAILABLE),
            "/readyz" => return Ok(plain(StatusCode::OK)),
            _ => {}
        }
        let name = path.strip_prefix("/notes/").ok_or(StatusCode::NOT_FOUND)?;
        let name = Name::new(name).ok_or(StatusCode::BAD_REQUEST)?;
        match *request.method() {
            Method::PUT => self.put(name, request.into_body()).await.map(plain),
            _ if is_read => self.get(name).await,
            _ => Ok(allow("GET, HEAD, PUT")),
        }
    }

    /// Stores a note in memory and starts a background task that writes the note to disk.
    async fn put(&self, name: Name, body: TimedBody) -> Result<StatusCode, StatusCode> {
        let body = self.receive(body).await?;
        let draft = self.store.draft(name, body);
        let started = self.registry.named("write").try_run_blocking(move || draft.write());
        started.map(|()| StatusCode::ACCEPTED).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
    }

    /// Receives a body, if there is enough memory for the body. If the announced length exceeds the limit, returns an error without
    /// reading the body.
    async fn receive(&self, mut body: TimedBody) -> Result<Bytes, StatusCode> {
        // A chunked body announces no length, so it may become as long as the limit.
        let announced = body.size_hint().upper().map_or(Ok(MAX_NOTE), usize::try_from);
        let max = announced.ok().filter(|len| *len <= MAX_NOTE).ok_or(StatusCode::PAYLOAD_TOO_LARGE)?;
        let reservation = self.store.memory.reserve(max).ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
        let mut received = Vec::with_capacity(max);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| match error.kind() {
                ErrorKind::TimedOut => StatusCode::REQUEST_TIMEOUT,
                _ => StatusCode::BAD_REQUEST,
            })?;
            let data = frame.into_data().unwrap_or_default();
            if data.len() > max - received.len() {
                return Err(StatusCode::PAYLOAD_TOO_LARGE);
            }
            received.extend_from_slice(&data);
        }
        Ok(reservation.hold(received))
    }

    async fn get(&self, name: Name) -> Result<Response<Reply>, StatusCode> {
        let body = match self.store.recall(&name) {
            Some(body) => body,
            None => self.read(name).await?,
        };
        Ok(respond(StatusCode::OK, TEXT, body))
    }

    async fn read(&self, name: Name) -> Result<Bytes, StatusCode> {
        let (sender, result) = oneshot::channel();
        let store = self.store.clone();
        self.registry.named("read").run_blocking(move || {
            let (response, outcome) = match store.read(&name) {
                Ok(note) => (note.ok_or(StatusCode::NOT_FOUND), Ok(())),
                Err(ReadError::Memory) => (Err(StatusCode::SERVICE_UNAVAILABLE), Ok(())),
                Err(ReadError::Io(error)) => (Err(StatusCode::INTERNAL_SERVER_ERROR), Err(name.error(&error))),
            };
            // This call fails if the client has disconnected.
            let _ = sender.send(response);
            outcome
        });
        result.await.unwrap_or(Err(StatusCode::SERVICE_UNAVAILABLE))
    }

    fn page(&self) -> Result<Response<Reply>, StatusCode> {
        let page = page(self.registry.in_flight(), self.registry.summary(), &self.store.overview());
        self.respond("text/html; charset=utf-8", page)
    }

    fn tasks(&self) -> Result<Response<Reply>, StatusCode> {
        let tasks = serde_json::to_string(&self.registry.tasks()).expect("tasks can be represented in JSON");
        self.respond("application/json", tasks + "\n")
    }

    /// Returns a response. The body of the response counts as used memory until the body is sent.
    fn respond(&self, content: &'static str, body: String) -> Result<Response<Reply>, StatusCode> {
        let reservation = self.store.memory.reserve(body.len()).ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
        Ok(respond(StatusCode::OK, content, reservation.hold(body.into_bytes())))
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn respond(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Response<Reply> {
    let mut response = Response::new(Parts(body.into()).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    // A note comes from a client, so browsers must not interpret it as HTML.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn plain(status: StatusCode) -> Response<Reply> {
    respond(status, TEXT, format!("{status}\n"))
}

fn allow(methods: &'static str) -> Response<Reply> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}

/// A response body that is sent in small parts. Some servers copy data before sending. If the body has small parts, such a server copies
/// only one part at a time into memory that is not reserved.
struct Parts(Bytes);

const MAX_PART: usize = 16 << 10;

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let len = self.0.len().min(MAX_PART);
        Poll::Ready((len > 0).then(|| Ok(Frame::data(self.0.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}
