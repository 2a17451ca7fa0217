//! The live page.

mod body;
mod origin;

pub use body::PageBody;

use background_tasks::{AbortError, Registry, TaskId};
use body::Events;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use std::fmt::Display;

const HTML: &str = include_str!("page/page.html");

/// Lets the page's own script and style run and nothing else; a test says the hashes when they have changed.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    script-src 'sha256-NpZKAnUxDNrfdwQ3HRKcwKI72s7RlFa+NK/n5VMQIKg='; \
    style-src 'sha256-WDpG9D+aPUkUuRbbXHTvz8S89sz37NTxeUoDI/mq2hU='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const NAMED_BY_HOST: [&str; 2] = ["program", "request"];

/// A page on which a person watches the tasks of a registry, and aborts them.
///
/// It shows what is in flight, how what has ended did so, how much ends in a second, and a drain as it goes. A registry that is not
/// [inspected](background_tasks::RegistryBuilder::inspect) cannot list its tasks: the page then shows the counts alone, and says so.
///
/// It serves three resources, told by the last segment of the path, so it can be mounted at any path (that ends in none of their names),
/// whether the server strips that or not: `…/events` is what the page listens to, `…/abort?id=12-7` takes its orders, and anything
/// else is the page itself. It needs no network but its server's.
///
/// It holds a handle of the registry, and so does each open stream of events. Over HTTP/1.1 a browser opens six connections to a host and
/// no more, and each page that it shows takes one.
///
/// # Who may see it
///
/// It has no login. Whoever reaches it can see the tasks' names and abort them, so mount it where only those can come who should, such
/// as a listener on the loopback address, or behind what your service has for that.
///
/// Pages of others that a visitor has open cannot use it: an order is taken from the page itself and from no other origin, and nothing is
/// served under a host name that it was not told of ([`allow_host`](Self::allow_host)), which ends DNS rebinding.
///
/// # The drain
///
/// A server that drains waits for its open responses, and a stream of events is one. So each ends by itself once the shutdown has begun
/// and all that is in flight only [serves](Self::serving); without inspection, when it begins. It looks every tenth of a second then: that is the most
/// that a drain waits for it. A client that does not read what it is sent holds its response up as any other does; the grace ends that.
///
/// # Examples
///
/// With hyper, in the function that answers requests:
///
/// ```
/// use background_tasks::Registry;
/// use background_tasks_host::Page;
///
/// let registry = Registry::builder(()).inspect().build();
/// let page = Page::new(&registry);
/// let request = http::Request::get("/background").header("host", "localhost:8080").body(()).unwrap();
/// let response = page.respond(&request);
/// assert_eq!(response.status(), 200);
/// ```
///
/// With axum and the feature `tower`: `Router::new().nest_service("/background", page)`.
#[derive(Clone, Debug)]
pub struct Page {
    registry: Registry<()>,
    /// In lower case.
    hosts: Vec<String>,
    serving: Vec<&'static str>,
}

impl Page {
    /// Returns the page of a registry.
    pub fn new<S>(registry: &Registry<S>) -> Self {
        Self { registry: registry.with_spawner(()), hosts: Vec::new(), serving: NAMED_BY_HOST.to_vec() }
    }

    /// Has the page served under this host name as well, such as `"tasks.example.com"`, on any port.
    ///
    /// Without it the page is served under `localhost` and IP addresses alone, and everything else is answered 403.
    #[must_use = "it returns the page"]
    pub fn allow_host(mut self, host: &str) -> Self {
        self.hosts.push(host.to_ascii_lowercase());
        self
    }

    /// Tells tasks by name that only serve, so that the page's own stream may be what keeps them: connections, say.
    ///
    /// `"request"`, as `RequestLayer` names them, and the `"program"` of a [`Host`](crate::Host) are known.
    #[must_use = "it returns the page"]
    pub fn serving(mut self, names: &'static [&'static str]) -> Self {
        self.serving.extend(names);
        self
    }

    /// Answers a request, whose body is not read.
    ///
    /// The answer is there at once; events are told by its body, while somebody polls that.
    pub fn respond<B>(&self, request: &Request<B>) -> Response<PageBody> {
        let Some(authority) = origin::authority(request).filter(|authority| self.is_at(authority)) else {
            return text(
                StatusCode::FORBIDDEN,
                "this page is served under localhost, an IP address, or a name that it was told of",
            );
        };
        let resource = request.uri().path().rsplit('/').next();
        match (resource, request.method()) {
            (Some("events"), &Method::GET) => self.events(),
            (Some("events"), _) => not_allowed("GET"),
            (Some("abort"), &Method::POST) if origin::is_same(request.headers(), authority.as_str()) => {
                self.abort(request.uri().query())
            }
            (Some("abort"), &Method::POST) => text(StatusCode::FORBIDDEN, "this order did not come from the page"),
            (Some("abort"), _) => not_allowed("POST"),
            (_, &Method::GET) => html(PageBody::whole(HTML)),
            (_, &Method::HEAD) => html(PageBody::whole("")),
            _ => not_allowed("GET, HEAD"),
        }
    }

    fn is_at(&self, authority: &http::uri::Authority) -> bool {
        let host = authority.host();
        origin::cannot_be_rebound(host) || self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }

    fn events(&self) -> Response<PageBody> {
        let events = Events::new(self.registry.clone(), self.serving.clone());
        let mut response = respond(StatusCode::OK, "text/event-stream", PageBody::events(events));
        // nginx would collect them.
        response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        response
    }

    fn abort(&self, query: Option<&str>) -> Response<PageBody> {
        let id = query.unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("id="));
        let id: TaskId = match id.map(str::parse) {
            Some(Ok(id)) => id,
            Some(Err(error)) => return text(StatusCode::BAD_REQUEST, error),
            None => return text(StatusCode::BAD_REQUEST, "which task? abort?id=12-7"),
        };
        match self.registry.abort_task(id) {
            Ok(()) => {
                let mut response = Response::new(PageBody::whole(""));
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            Err(error @ AbortError::NotInFlight) => text(StatusCode::NOT_FOUND, error),
            Err(error) => text(StatusCode::CONFLICT, error),
        }
    }
}

fn html(body: PageBody) -> Response<PageBody> {
    let mut response = respond(StatusCode::OK, "text/html; charset=utf-8", body);
    let headers = response.headers_mut();
    // For a HEAD, which has no body to tell it.
    headers.insert(header::CONTENT_LENGTH, HTML.len().into());
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn text(status: StatusCode, text: impl Display) -> Response<PageBody> {
    respond(status, "text/plain; charset=utf-8", PageBody::whole(format!("{text}\n")))
}

fn not_allowed(methods: &'static str) -> Response<PageBody> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format_args!("allowed: {methods}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    response
}

fn respond(status: StatusCode, content: &'static str, body: PageBody) -> Response<PageBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
impl<B> tower_service::Service<Request<B>> for Page {
    type Response = Response<PageBody>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        std::future::ready(Ok(self.respond(&request)))
    }
}
