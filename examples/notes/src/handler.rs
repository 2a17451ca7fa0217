//! Handles requests.

use crate::page::page;
use crate::store::{Name, Store};
use background_tasks::{BlockingSpawner, Registry};
use background_tasks_host::Dashboard;
use bytes::Bytes;
use futures_channel::oneshot;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::convert::Infallible;
use std::sync::Arc;

const MAX_BODY: usize = 1 << 20;

pub(crate) struct Notes<S> {
    pub(crate) registry: Registry<S>,
    pub(crate) store: Arc<Store>,
    /// Enabled by `--dashboard`.
    pub(crate) dashboard: Option<Dashboard>,
}

pub(crate) type Reply = UnsyncBoxBody<Bytes, Infallible>;

impl<S: BlockingSpawner> Notes<S> {
    pub(crate) async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Reply>, Infallible> {
        let has_body = !request.body().is_end_stream();
        let mut response = self.route(request).await.unwrap_or_else(plain);
        if has_body && response.status().is_client_error() {
            // The rest of the body has not been read, so the connection cannot serve another request.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Reply>, StatusCode> {
        let path = request.uri().path();
        if let Some(dashboard) = self.dashboard.as_ref().filter(|_| path == "/background" || path.starts_with("/background/")) {
            return Ok(dashboard.respond(&request).map(BodyExt::boxed_unsync));
        }
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match path {
            "/" | "/tasks" | "/readyz" if !is_read => return Ok(allow("GET, HEAD")),
            "/" => return Ok(self.page()),
            "/tasks" => return Ok(self.tasks()),
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

    /// Stores a note in memory and starts a background task that writes it to disk.
    async fn put(&self, name: Name, body: Incoming) -> Result<StatusCode, StatusCode> {
        let body = receive(body).await?;
        let draft = self.store.draft(name, body).ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
        let started = self.registry.named("write").try_run_blocking(move || draft.write());
        started.map(|()| StatusCode::ACCEPTED).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
    }

    async fn get(&self, name: Name) -> Result<Response<Reply>, StatusCode> {
        let body = match self.store.recall(&name) {
            Some(body) => Some(body),
            None => self.read(name).await?,
        };
        body.map(|body| respond(StatusCode::OK, TEXT, body)).ok_or(StatusCode::NOT_FOUND)
    }

    async fn read(&self, name: Name) -> Result<Option<Bytes>, StatusCode> {
        let (sender, result) = oneshot::channel();
        let store = self.store.clone();
        self.registry.named("read").run_blocking(move || {
            let note = store.read(&name);
            // Fails if the client has disconnected.
            let _ = sender.send(note.clone());
            note.map(drop)
        });
        match result.await {
            Ok(note) => note.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR),
            Err(oneshot::Canceled) => Err(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    fn page(&self) -> Response<Reply> {
        let page = page(self.registry.in_flight(), self.registry.summary(), &self.store.overview());
        respond(StatusCode::OK, "text/html; charset=utf-8", page)
    }

    fn tasks(&self) -> Response<Reply> {
        let tasks = serde_json::to_string(&self.registry.tasks()).expect("tasks can be represented in JSON");
        respond(StatusCode::OK, "application/json", tasks + "\n")
    }
}

/// Reads a body up to the limit. Does not read a body whose announced length is above the limit.
async fn receive(body: Incoming) -> Result<Bytes, StatusCode> {
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let status = |error: Box<dyn std::error::Error + Send + Sync>| {
        if error.is::<LengthLimitError>() { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST }
    };
    Limited::new(body, MAX_BODY).collect().await.map(http_body_util::Collected::to_bytes).map_err(status)
}

const TEXT: &str = "text/plain; charset=utf-8";

fn respond(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Response<Reply> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    // Browsers must not interpret a note, which comes from a client, as HTML.
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
