use background_tasks::{Guard, Registry, RejectReason};
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// A layer that holds a [`Guard`] for each request, for whatever serves tower's services: axum, tonic, hyper.
///
/// A request is in flight from the call of its service until the body of its response has been dropped, which a server does when it has
/// taken all of it, or when its client has gone. So the drain waits for each response that has begun, and what a request starts in the
/// background is accepted even if it starts it late, from the last frame of its body.
///
/// A request that comes after the drain, or [too many](background_tasks::RegistryBuilder::max_in_flight), is answered 503 with an empty body,
/// without a call of the service. After the drain the answer also closes its connection, so that its client goes elsewhere (HTTP/1; in
/// HTTP/2 that is said by the server, for all of a connection).
///
/// A panic of the service, or of a body, goes on unwinding, and the request counts as panicked. In all other cases it counts as completed:
/// a guard does not know what its response said, nor whether its client waited for it.
///
/// # What it does not cover
///
/// The last bytes of a response may still be in the server's buffer when its body is gone, and connections are not counted. Both are the
/// server's: have its own graceful shutdown begin with the registry's [`signal`](Registry::signal), and wait for it, as the example does.
///
/// Put it around what should hold the exit up. A response that never ends by itself, such as a stream of events, has to end at the
/// [`signal`](Registry::signal), or the drain waits for its client to leave.
///
/// A connection that has been upgraded (a WebSocket) goes on after the response, whose guard is gone. Give it one of its own while the
/// request is in flight: `let guard = registry.named("socket").guard();` in the handler, moved into what then has the connection.
///
/// # Examples
///
/// ```no_run
/// use axum::{Router, http::StatusCode, routing::post};
/// use background_tasks::{Registry, TokioSpawner};
/// use background_tasks_host::RequestLayer;
///
/// #[tokio::main]
/// async fn main() -> std::io::Result<()> {
///     let registry = Registry::new(TokioSpawner);
///     let tasks = registry.clone();
///     let sign_up = async move || {
///         tasks.named("welcome-mail").run(async { /* send it */ });
///         StatusCode::ACCEPTED
///     };
///     let app = Router::new().route("/signups", post(sign_up)).layer(RequestLayer::new(&registry));
///
///     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
///     axum::serve(listener, app).with_graceful_shutdown(registry.signal()).await?;
///     println!("drained: {}", registry.shutdown().await);
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct RequestLayer {
    registry: Registry<()>,
    name: &'static str,
    site: &'static Location<'static>,
}

impl RequestLayer {
    /// Returns a layer that counts requests on `registry`, by the name `request`, as started at this call.
    ///
    /// It keeps a handle of the registry, as do the services that it makes.
    #[track_caller]
    pub fn new<S>(registry: &Registry<S>) -> Self {
        Self { registry: registry.with_spawner(()), name: "request", site: Location::caller() }
    }

    /// Gives the requests another name; see [`Registry::named`].
    #[must_use]
    pub fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }
}

impl<I> Layer<I> for RequestLayer {
    type Service = RequestService<I>;

    fn layer(&self, inner: I) -> RequestService<I> {
        RequestService { inner, layer: self.clone() }
    }
}

/// A service whose requests are in flight until their responses have been sent; see [`RequestLayer`].
#[derive(Debug, Clone)]
pub struct RequestService<I> {
    inner: I,
    layer: RequestLayer,
}

impl<I, B, R> Service<Request<B>> for RequestService<I>
where
    I: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<RequestBody<R>>;
    type Error = I::Error;
    type Future = RequestFuture<I::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> RequestFuture<I::Future> {
        let RequestLayer { registry, name, site } = &self.layer;
        let guard = registry.named(name).location(site).guard();
        let drained = guard.as_ref().is_err_and(|rejected| rejected.reason() == RejectReason::Drained);
        let closes = drained && request.version() < Version::HTTP_2;
        let held = guard.ok().map(|guard| Held { work: Some(self.inner.call(request)), guard: Some(guard) });
        RequestFuture { held, closes }
    }
}

pin_project! {
    /// The future of a [`RequestService`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct RequestFuture<F> {
        // `None`: it was refused.
        #[pin]
        held: Option<Held<F>>,
        // A refusal closes its connection.
        closes: bool,
    }
}

impl<F, R, E> Future for RequestFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<RequestBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(mut held) = this.held.as_pin_mut() else { return Poll::Ready(Ok(refusal(*this.closes))) };
        let answer = ready!(held.as_mut().poll_with(|future| future.poll(cx)).expect("polled after it had resolved"));
        let mut held = held.project();
        let answer = answer.map(|response| response.map(|body| RequestBody::new(Some(body), held.guard.take())));
        held.work.set(None);
        *held.guard = None; // an error has no body to take it
        Poll::Ready(answer)
    }
}

fn refusal<R>(closes: bool) -> Response<RequestBody<R>> {
    let mut response = Response::new(RequestBody::new(None, None));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    if closes {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

pin_project! {
    /// The body of a response, with which its request ends to be in flight.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        #[pin]
        held: Held<B>,
    }
}

impl<B> RequestBody<B> {
    fn new(work: Option<B>, guard: Option<Guard>) -> Self {
        Self { held: Held { work, guard } }
    }
}

impl<B: Body> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().held.poll_with(|body| body.poll_frame(cx)).unwrap_or(Poll::Ready(None))
    }

    fn is_end_stream(&self) -> bool {
        self.held.work.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.held.work.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

pin_project! {
    // Some part of a request's work and the guard of the request, which is dropped after it.
    #[derive(Debug)]
    struct Held<T> {
        #[pin]
        work: Option<T>,
        guard: Option<Guard>,
    }
}

impl<T> Held<T> {
    /// Polls the work, if it is there. When that panics the work is dropped, and then the guard, while the panic unwinds: it counts as one.
    fn poll_with<P>(self: Pin<&mut Self>, poll: impl FnOnce(Pin<&mut T>) -> P) -> Option<P> {
        let mut this = self.project();
        let work = this.work.as_mut().as_pin_mut()?;
        let polled = catch_unwind(AssertUnwindSafe(|| poll(work)));
        Some(polled.unwrap_or_else(|panic| {
            let _guard = this.guard.take();
            this.work.set(None);
            resume_unwind(panic)
        }))
    }
}
