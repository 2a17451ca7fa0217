//! A web page that shows the tasks of a registry.

mod body;
mod origin;
mod state;

pub use body::DashboardBody;

use crate::authority::{authority, is_trusted};
use crate::host::Host;
use background_tasks::{AbortError, Registry, TaskId};
use body::Events;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use state::{HostSource, Source};
use std::fmt::{self, Display};
use std::sync::Arc;

const HTML: &str = include_str!("dashboard/dashboard.html");

/// Allows only the page's own script and style. If the page has changed, a test prints the new hashes.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    script-src 'sha256-+LoJTx7J1bcrLMrpbhRK2g5ODAMRWay2FlQbouSfKlY='; \
    style-src 'sha256-J0t5ZzmGqJekd2wsuqa73b0P1t19fOd6SIzJtWBwSiE='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The names that `Host`, `HttpServer` and `RequestLayer` give to tasks that serve.
const SERVING: [&str; 3] = ["program", "connection", "request"];

/// A web page that shows the tasks of a registry and aborts them.
///
/// The page shows the tasks in flight, the outcomes of ended tasks, the number of tasks that end per second, and the progress of a drain. It lists
/// [services](Registry::service) with their restarts and their last loss, and [child registries](Registry::child) as groups. With
/// [`phases`](Self::phases), it also shows the phases of a host, the rest of its grace period and late tasks. If the registry is not
/// [inspected](background_tasks::RegistryBuilder::inspect), the page lists only services: it shows the counts and says so.
///
/// The page works with the keyboard and with screen readers, and follows the color scheme of the browser. It asks before it aborts a task.
///
/// The dashboard serves three resources, selected by the last segment of the path: `…/events` is a stream of events for the page, a POST to
/// `…/abort?id=12-7` aborts a task, and every other path is the page itself. Mount it at any path that does not end with `events` or
/// `abort`, whether or not the server strips the prefix. The page loads nothing from other servers.
///
/// The dashboard and each open stream of events keep a handle of the registry. Over HTTP/1.1 a browser opens at most six connections to a host,
/// and each open page uses one.
///
/// The events are JSON for the page of the same release. They may change in every release, so other programs must not read them:
/// [`Registry::tasks`], [`Registry::services`] and [`Registry::summary`] serialize to documented JSON.
///
/// # Cost
///
/// Without an open page, the dashboard costs nothing. An event lists at most 200 tasks, 100 services and 50 groups, but the registry must
/// read the slots of all tasks for it. Events are made twice per second, and ten times per second during a drain. If an event is expensive,
/// the next one follows later, at most 2 seconds later, or 250 milliseconds during a drain. With at least a thousand tasks in flight, the
/// pages share events.
///
/// # Security
///
/// The page has no login. Everyone who can reach it can see the names of the tasks and abort them. Restrict access: listen on the loopback
/// address, or put the page behind the authentication of your service.
///
/// Other web pages that a visitor has open cannot use it. An abort is accepted only from the page's own origin, and the page is served only under
/// host names that [`allow_host`](Self::allow_host) lists, `localhost` and IP addresses. This prevents DNS rebinding.
///
/// # Shutdown
///
/// A server that drains waits for its open responses, and a stream of events is a response. So each stream ends on its own once shutdown
/// has started and only tasks that [serve](Self::serving) are in flight; without inspection, it ends when shutdown starts. Streams check
/// this every tenth of a second. So they delay a drain by at most this long, or by three times as long with many tasks. A client that does
/// not read its response can delay the drain until the grace period expires, unless the server limits this time.
///
/// # Examples
///
/// With hyper, in the service function:
///
/// ```
/// use background_tasks::Registry;
/// use background_tasks_host::Dashboard;
///
/// let registry = Registry::builder(()).inspect().build();
/// let dashboard = Dashboard::new(&registry);
/// let request = http::Request::get("/background").header("host", "localhost:8080").body(()).unwrap();
/// let response = dashboard.respond(&request);
/// assert_eq!(response.status(), 200);
/// ```
///
/// With axum and the feature `tower`: `Router::new().nest_service("/background", dashboard)`.
#[derive(Clone)]
pub struct Dashboard {
    source: Arc<Source>,
    allowed_hosts: Vec<String>,
}

impl fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dashboard").field("registry", &self.source.registry).finish_non_exhaustive()
    }
}

impl Dashboard {
    /// Returns the dashboard of a registry.
    pub fn new<S>(registry: &Registry<S>) -> Self {
        let source = Source::new(registry.with_spawner(()), SERVING.to_vec());
        Self { source: Arc::new(source), allowed_hosts: Vec::new() }
    }

    /// Shows all registries of a host as phases, with their tasks, groups and services. Also shows whether the host is
    /// [ready](Host::readiness), its [delay](Host::delay), the rest of its grace period, and tasks that exceed their [`Liveness`](crate::Liveness)
    /// timeout.
    ///
    /// The first registry of the host has the first name, and so on. A phase without a name is shown with its number.
    ///
    /// The registry that was passed to [`new`](Self::new) must be the one in which the requests of the page are in flight: a registry of the host, or
    /// a child of one. The page disconnects when this registry has only [serving](Self::serving) tasks in flight during its drain. To watch all
    /// phases until their end, serve the page in the last phase, as the repository's `host/examples/dashboard.rs` does.
    ///
    /// # Examples
    ///
    /// ```
    /// # use background_tasks::Registry;
    /// # use background_tasks_host::{Dashboard, Host};
    /// # use std::time::Duration;
    /// # let registry = || Registry::builder(()).inspect().build();
    /// let (requests, workers, admin) = (registry(), registry(), registry());
    /// let host = Host::new(&requests).then_with_reserve(&workers, Duration::from_secs(5)).then(&admin);
    /// let dashboard = Dashboard::new(&admin).phases(&host, &["requests", "workers", "admin"]);
    /// ```
    #[must_use = "this returns the dashboard"]
    pub fn phases(mut self, host: &Host, names: &'static [&'static str]) -> Self {
        self.configure().host = Some(HostSource { status: host.status(), names });
        self
    }

    /// Serves the page under this host name too, such as `"tasks.example.com"`, on any port. Default: only `localhost` and IP addresses.
    ///
    /// A request with another host name is answered 403.
    #[must_use = "this returns the dashboard"]
    pub fn allow_host(mut self, host: &str) -> Self {
        self.allowed_hosts.push(host.to_owned());
        self
    }

    /// Adds names of tasks that only serve requests, such as `"stream"`. A stream of events may keep such tasks in flight, so it does
    /// not wait for them during a drain. Default: `"request"`, which `RequestLayer` uses, `"connection"`, which `HttpServer` uses, and
    /// `"program"`, which [`Host`] uses.
    #[must_use = "this returns the dashboard"]
    pub fn serving(mut self, names: &'static [&'static str]) -> Self {
        self.configure().serving.extend(names);
        self
    }

    fn configure(&mut self) -> &mut Source {
        Arc::make_mut(&mut self.source)
    }

    /// Returns the response to a request, without reading its body.
    ///
    /// The response is ready immediately. The body of a stream of events produces events while it is polled.
    pub fn respond<B>(&self, request: &Request<B>) -> Response<DashboardBody> {
        let Some(authority) = authority(request).filter(|authority| is_trusted(authority, &self.allowed_hosts)) else {
            return text(
                StatusCode::FORBIDDEN,
                "unknown host: use localhost, an IP address, or a name passed to `Dashboard::allow_host`",
            );
        };
        let resource = request.uri().path().rsplit('/').next();
        match (resource, request.method()) {
            (Some("events"), &Method::GET) => self.events(),
            (Some("events"), _) => not_allowed("GET"),
            (Some("abort"), &Method::POST) if origin::is_same(request.headers(), authority.as_str()) => {
                self.abort(request.uri().query())
            }
            (Some("abort"), &Method::POST) => {
                text(StatusCode::FORBIDDEN, "cross-origin request rejected: only the dashboard can abort tasks")
            }
            (Some("abort"), _) => not_allowed("POST"),
            (_, &Method::GET) => html(DashboardBody::whole(HTML)),
            (_, &Method::HEAD) => html(DashboardBody::whole("")),
            _ => not_allowed("GET, HEAD"),
        }
    }

    fn events(&self) -> Response<DashboardBody> {
        let events = Events::new(self.source.clone());
        let mut response = respond(StatusCode::OK, "text/event-stream", DashboardBody::events(events));
        // Otherwise nginx buffers the events.
        response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        response
    }

    fn abort(&self, query: Option<&str>) -> Response<DashboardBody> {
        let id = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("id="));
        let id: TaskId = match id.map(str::parse) {
            Some(Ok(id)) => id,
            Some(Err(error)) => return text(StatusCode::BAD_REQUEST, error),
            None => return text(StatusCode::BAD_REQUEST, "missing task ID: use abort?id=12-7"),
        };
        match self.source.abort(id) {
            Ok(()) => {
                let mut response = Response::new(DashboardBody::whole(""));
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            Err(error @ AbortError::NotInFlight) => text(StatusCode::NOT_FOUND, error),
            Err(error) => text(StatusCode::CONFLICT, error),
        }
    }
}

fn html(body: DashboardBody) -> Response<DashboardBody> {
    let mut response = respond(StatusCode::OK, "text/html; charset=utf-8", body);
    let headers = response.headers_mut();
    // The response to a HEAD request has no body that gives the length.
    headers.insert(header::CONTENT_LENGTH, HTML.len().into());
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn text(status: StatusCode, text: impl Display) -> Response<DashboardBody> {
    respond(status, "text/plain; charset=utf-8", DashboardBody::whole(format!("{text}\n")))
}

fn not_allowed(methods: &'static str) -> Response<DashboardBody> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format_args!("allowed: {methods}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}

fn respond(status: StatusCode, content: &'static str, body: DashboardBody) -> Response<DashboardBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(feature = "tower")]
impl<B> tower_service::Service<Request<B>> for Dashboard {
    type Response = Response<DashboardBody>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        std::future::ready(Ok(self.respond(&request)))
    }
}
