//! Serves a web page that shows the tasks of a registry.

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
use std::sync::{Arc, LazyLock};

const HTML: &str = include_str!("dashboard/dashboard.html");

/// A hash of the page. The page and each event contain this ID. After a deployment, the IDs of an open page and of an event can differ. The
/// page then cannot read the event.
static PAGE_ID: LazyLock<String> = LazyLock::new(|| {
    let fnv = |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    format!("{:08x}", HTML.bytes().fold(0x811c_9dc5, fnv))
});
static PAGE: LazyLock<String> = LazyLock::new(|| HTML.replacen("00000000", &PAGE_ID, 1));

/// With this policy, the browser uses only the script and the style of the page, which have these hashes. After a change of the page, a
/// test fails and prints the new hashes.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    script-src 'sha256-v/YBM+dVYcGlGJnI9igX9l1XBWLdJOxmht1mTLyA66o='; \
    style-src 'sha256-J0t5ZzmGqJekd2wsuqa73b0P1t19fOd6SIzJtWBwSiE='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The names of the tasks that serve requests: `Host`, `HttpServer` and `RequestLayer` use these names.
const SERVING: [&str; 3] = ["program", "connection", "request"];

/// A web page that shows the tasks of a registry and aborts them.
///
/// The page shows the tasks in flight, the outcomes of ended tasks, and the progress of a drain. It also shows how many tasks end per
/// second. It lists [services](Registry::service) with their restarts and their last loss, and [child registries](Registry::child) with
/// their number of tasks. With [`phases`](Self::phases), the page also shows the phases of a host, the rest of the grace period, and tasks
/// that report no progress. If the registry is not [inspected](background_tasks::RegistryBuilder::inspect), the page shows only counts and
/// services, and explains why.
///
/// The page works with the keyboard and with screen readers, and follows the color scheme of the browser. Before the page aborts a task, it
/// asks the user for confirmation.
///
/// You can mount the dashboard at any path that does not end with `events` or `abort`. Only the last segment of a request's path matters,
/// so the server can strip the prefix of the path or keep it. `…/events` is a stream of events for the page. A POST to `…/abort?id=12-7`
/// aborts a task. Every other path returns the page. The page loads nothing from other servers.
///
/// The dashboard and each open stream of events hold a handle of the registry. Over HTTP/1.1, each open page uses one connection, and a
/// browser opens at most six connections to one host name.
///
/// The events contain JSON for the page of the same release. After a deployment of another release, open pages reload. Do not read this
/// JSON in other programs, because it can change in every release. Instead, use [`Registry::tasks`], [`Registry::services`] and
/// [`Registry::summary`], whose results serialize to documented JSON.
///
/// # Cost
///
/// While no page is open, the dashboard costs nothing. Each open page receives two events per second, and ten events per second during a
/// drain. An event lists at most 200 tasks, 100 services and 50 child registries. But to make an event, the dashboard reads the state of
/// all tasks in flight. If this takes long, the time between two events grows to at most 2 seconds, or 250 milliseconds during a drain. If
/// at least a thousand tasks are in flight, all open pages share their events, so that each event is made only once.
///
/// # Security
///
/// The page has no login. Everyone who can reach the page can see the names of the tasks, and can abort the tasks. Therefore restrict the
/// access: listen on the loopback address, or put the page behind the authentication of your service.
///
/// Other web pages in the same browser cannot use the dashboard. The dashboard aborts a task only if the request comes from its own page.
/// To prevent DNS rebinding, the dashboard answers only requests to `localhost`, IP addresses, and the host names that you have passed to
/// [`allow_host`](Self::allow_host).
///
/// # Shutdown
///
/// A server that drains waits for its open responses, so an open stream of events would delay the drain. Therefore, during a drain, each
/// stream ends on its own when only tasks that [serve requests](Self::serving) are still in flight. If the registry is not inspected, its
/// tasks are not known, so the stream already ends when shutdown starts. During a drain, a stream checks every tenth of a second whether it
/// must end. So a stream delays the drain by at most a tenth of a second, or by up to 0.3 seconds if there are many tasks. A client that
/// does not read its response can delay the drain until the grace period expires. To prevent this, use a server that limits this time, such
/// as `HttpServer`.
///
/// # Examples
///
/// With hyper, call [`respond`](Self::respond) in the service function:
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
/// With axum and the feature `tower`, use `Router::new().nest_service("/background", dashboard)`.
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
    /// Creates a dashboard that shows this registry.
    pub fn new<S>(registry: &Registry<S>) -> Self {
        let source = Source::new(registry.with_spawner(()), SERVING.to_vec());
        Self { source: Arc::new(source), allowed_hosts: Vec::new() }
    }

    /// Makes the page show all registries of a host, with their tasks, child registries and services. Each registry is one phase of the
    /// drain. In addition, the page shows whether the host is [ready](Host::readiness), the rest of its [delay](Host::delay) and grace
    /// period, and tasks that exceed their [`Liveness`](crate::Liveness) timeout.
    ///
    /// Pass the names in the order of the host's registries. If a phase has no name, the page shows its number.
    ///
    /// The registry that you have passed to [`new`](Self::new) must be the registry that counts the requests of the page. It must be a
    /// registry of the host, or a child of such a registry. During the drain of this registry, the page disconnects when only tasks that
    /// [serve requests](Self::serving) are in flight. If this registry is the last one of the host, the page therefore shows the drain of
    /// all earlier phases to their end. The repository's `host/examples/dashboard.rs` does this.
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

    /// Adds a host name, such as `"tasks.example.com"`, to which the dashboard accepts requests, on any port. Default: only `localhost` and
    /// IP addresses.
    ///
    /// If a request has another host name, the dashboard answers with status 403.
    #[must_use = "this returns the dashboard"]
    pub fn allow_host(mut self, host: &str) -> Self {
        self.allowed_hosts.push(host.to_owned());
        self
    }

    /// Adds names of tasks that only serve requests, such as `"stream"`. An open page keeps the tasks that serve its requests in flight. So
    /// during a drain, the page disconnects as soon as only tasks with these names are in flight. Default: `"request"`, which
    /// `RequestLayer` uses, `"connection"`, which `HttpServer` uses, and `"program"`, which [`Host`] uses.
    #[must_use = "this returns the dashboard"]
    pub fn serving(mut self, names: &'static [&'static str]) -> Self {
        self.configure().serving.extend(names);
        self
    }

    fn configure(&mut self) -> &mut Source {
        Arc::make_mut(&mut self.source)
    }

    /// Returns the response to a request, without reading the body of the request.
    ///
    /// This method returns immediately. If the response is a stream of events, its body makes the events while the server polls the body.
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
            (_, &Method::GET) => html(DashboardBody::whole(PAGE.as_str())),
            (_, &Method::HEAD) => html(DashboardBody::whole("")),
            _ => not_allowed("GET, HEAD"),
        }
    }

    fn events(&self) -> Response<DashboardBody> {
        let events = Events::new(self.source.clone());
        let mut response = respond(StatusCode::OK, "text/event-stream", DashboardBody::events(events));
        // Without this header, an nginx proxy would buffer the events, and the page would show them late.
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
    // The server cannot compute this header for a HEAD request, because the response has no body.
    headers.insert(header::CONTENT_LENGTH, PAGE.len().into());
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
