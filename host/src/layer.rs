use background_tasks::{CompletionGuard, Guard, Registry, RejectReason};
use bytes::Buf;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// A layer that counts each request as in flight, with a [`CompletionGuard`]. The layer works with servers that run tower services, such as
/// axum, tonic and hyper.
///
/// A request is in flight from the call to its service until the server drops the response body. A server drops the body when it has taken
/// the last frame of the body, or when the client has disconnected. So the drain waits for every response that has started. While the
/// registry drains, a request in flight can still start background tasks.
///
/// The layer answers a request that arrives after the drain with status 503 and an empty body, and does not call the service. In HTTP/1,
/// this response also closes the connection, so that the client sends its next request to another server. In HTTP/2, the server closes its
/// connections without the help of this layer.
///
/// # Limits
///
/// Requests take [no permits](Registry::without_permit) of a registry that has a [limit](background_tasks::RegistryBuilder::max_in_flight).
/// The limit applies only to the tasks that requests start, so the registry accepts a request even if tasks hold all permits. Requests and
/// other tasks without a permit have a separate limit of 4,194,303 tasks (1,023 on 32-bit targets). Above this limit, the layer answers
/// with status 503. To limit the number of requests, add another layer, such as `ConcurrencyLimitLayer` of the crate `tower`.
///
/// If the registry is full, `run` drops the task. Only the registry's observers and its summary then report the rejection, and the handler
/// does not notice it. A handler that answers with status 202 must not lose work in this way. It has two options:
///
/// - It can call [`try_run`](Registry::try_run), and answer with status 503 after a rejection, as in the example.
/// - It can await `registry.follow_up().run_when_ready(task)`, which waits for a permit, even while the registry drains.
///
/// [`Host::fail_if`](crate::Host::fail_if) makes rejections visible in the exit code.
///
/// # Outcomes
///
/// | outcome | meaning |
/// | --- | --- |
/// | completed | The server has taken the whole response body, or the service returned an error. The status of the response does not matter. |
/// | panicked | The service or the body panicked. The panic continues to unwind. |
/// | abandoned | The future of the service or the response body was dropped before its end. Possible reasons: the client disconnected, the task of the connection was aborted, a timeout ended the call, or the body returned an error. |
/// | rejected | The layer answered with status 503, as described above. |
///
/// In responses to HEAD and in responses with a status such as 101, 204 or 304, a server sends no body. Such a request counts as completed
/// when the server drops the response body, even if it has not taken the body. If the length of a body is known, the request also counts as
/// completed when the server has taken this number of bytes. The header `Content-Length` or the body itself gives the length.
///
/// # Other layers
///
/// You can put this layer anywhere in a stack of layers. If a layer outside this layer answers a request itself, for example a CORS
/// preflight, this layer does not count the request. If an outer layer drops the response body and sends another body, the request counts
/// as abandoned.
///
/// # Limitations
///
/// The layer does not count connections. When the server drops a response body, the last bytes of the response can still be in the server's
/// buffer. To send them before the process exits, use the server's own graceful shutdown. Start it with the registry's
/// [`signal`](Registry::signal), and wait until the server has ended. The example does this. During the server's shutdown, the server
/// accepts no connections, and closes each connection after its last response. If the drain must wait for connections, use `HttpServer`
/// (feature `http`).
///
/// Apply the layer only to the routes for which the drain must wait. A response that does not end on its own, such as a stream of events,
/// must end when the [`signal`](Registry::signal) is triggered. Otherwise the drain waits until the client of this response disconnects. If
/// the client disconnects before the response ends, the request counts as abandoned.
///
/// An upgraded connection (a WebSocket) continues after the response to the request that opened it. The layer then no longer counts it.
/// Wrap the connection in [`UntilShutdown`](crate::UntilShutdown), which counts it as in flight, and ends it when the signal is triggered.
/// `UntilShutdown` also ends streams.
///
/// If the client disconnects, the server drops the future of the handler at its current await point. With a
/// [`DetachLayer`](crate::DetachLayer), the handler continues after the disconnect.
///
/// # Examples
///
/// ```no_run
/// use axum::{Router, http::StatusCode, routing::post};
/// use background_tasks::{Registry, TokioSpawner};
/// use background_tasks_host::{Host, RequestLayer};
/// use std::process::ExitCode;
///
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     let registry = Registry::builder(TokioSpawner).inspect().max_in_flight(1000).build();
///     Host::new(&registry).fail_if(|summary| summary.rejected > 0).run(serve(registry)).await
/// }
///
/// async fn serve(registry: Registry<TokioSpawner>) -> std::io::Result<()> {
///     let (signal, tasks) = (registry.signal(), registry.clone());
///     let sign_up = async move || match tasks.named("welcome-mail").try_run(async { /* send it */ }) {
///         Ok(()) => StatusCode::ACCEPTED,
///         Err(_) => StatusCode::SERVICE_UNAVAILABLE,
///     };
///     let app = Router::new().route("/signups", post(sign_up)).layer(RequestLayer::new(&registry));
///     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
///     axum::serve(listener, app).with_graceful_shutdown(signal).await
/// }
/// ```
#[derive(Debug, Clone)]
pub struct RequestLayer {
    registry: Registry<()>,
    name: &'static str,
    location: &'static Location<'static>,
}

impl RequestLayer {
    /// Creates a layer that counts requests in `registry`. The requests have the name `request`. Their call site is this call to `new`.
    ///
    /// The layer and each service that it creates hold a handle of the registry.
    #[track_caller]
    pub fn new<S>(registry: &Registry<S>) -> Self {
        Self { registry: registry.with_spawner(()), name: "request", location: Location::caller() }
    }

    /// Sets the name of the requests; see [`Registry::named`]. Default: `request`.
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

/// The service of a [`RequestLayer`]. A request is in flight until the server drops its response body.
#[derive(Debug, Clone)]
pub struct RequestService<I> {
    inner: I,
    layer: RequestLayer,
}

impl<I, B, R> Service<Request<B>> for RequestService<I>
where
    I: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    type Response = Response<RequestBody<R>>;
    type Error = I::Error;
    type Future = RequestFuture<I::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> RequestFuture<I::Future> {
        let RequestLayer { registry, name, location } = &self.layer;
        let guard = registry.named(name).location(location).without_permit().guard();
        let drained = guard.as_ref().is_err_and(|rejected| rejected.reason() == RejectReason::Drained);
        let close_connection = drained && request.version() < Version::HTTP_2;
        let (method, guard) = (request.method().clone(), guard.ok().map(Guard::require_completion));
        let guarded = guard.map(|guard| Guarded { inner: Some(self.inner.call(request)), guard: Some(guard) });
        RequestFuture { guarded, method, close_connection }
    }
}

pin_project! {
    /// The future of a [`RequestService`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct RequestFuture<F> {
        // `None` if the request was rejected.
        #[pin]
        guarded: Option<Guarded<F>>,
        method: Method,
        close_connection: bool,
    }
}

impl<F, R, E> Future for RequestFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body,
{
    type Output = Result<Response<RequestBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(mut guarded) = this.guarded.as_pin_mut() else { return Poll::Ready(Ok(rejection(*this.close_connection))) };
        let result = ready!(guarded.as_mut().poll_with(|future| future.poll(cx)).expect("polled after completion"));
        let result = result.map(|response| {
            let unsent = unsent_bytes(this.method, &response);
            response.map(|body| RequestBody::new(Some(body), guarded.as_mut().project().guard.take(), unsent))
        });
        guarded.complete(); // after an error; after a response, the body has taken the guard
        Poll::Ready(result)
    }
}

/// Returns how many bytes of the response body a server sends. Returns `None` if only the end of the body shows this number.
fn unsent_bytes<R: Body>(method: &Method, response: &Response<R>) -> Option<u64> {
    let status = response.status();
    let has_no_body = status.is_informational()
        || [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
        || method == Method::HEAD
        || (method == Method::CONNECT && status.is_success());
    let content_length = || response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    if has_no_body { Some(0) } else { content_length().or_else(|| response.body().size_hint().exact()) }
}

/// Returns the response for a request that the registry has rejected.
pub(crate) fn rejection<R: Body>(close_connection: bool) -> Response<RequestBody<R>> {
    let mut response = Response::new(RequestBody::new(None, None, None));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    if close_connection {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

pin_project! {
    /// The body of a response that a [`RequestLayer`] returns. The request is in flight until this body is dropped.
    ///
    /// The default value belongs to no request. Other layers use it if they answer in place of the service. The response bodies of a
    /// [`DetachLayer`](crate::DetachLayer) also belong to no request.
    #[derive(Debug)]
    pub struct RequestBody<B>
    where
        B: Body,
    {
        #[pin]
        guarded: Guarded<B>,
        // The number of bytes that the server has not taken yet, if the number is known.
        unsent: Option<u64>,
        // Whether the body has returned an error.
        has_failed: bool,
    }

    impl<B> PinnedDrop for RequestBody<B>
    where
        B: Body,
    {
        fn drop(this: Pin<&mut Self>) {
            if !this.has_failed && (this.unsent == Some(0) || this.is_end_stream()) {
                this.project().guarded.complete();
            }
        }
    }
}

impl<B: Body> RequestBody<B> {
    /// Returns a body that belongs to no request.
    pub(crate) fn without_request(inner: B) -> Self {
        Self::new(Some(inner), None, None)
    }

    fn new(inner: Option<B>, guard: Option<CompletionGuard>, unsent: Option<u64>) -> Self {
        Self { guarded: Guarded { inner, guard }, unsent, has_failed: false }
    }
}

impl<B: Body + Default> Default for RequestBody<B> {
    fn default() -> Self {
        Self::without_request(B::default())
    }
}

impl<B: Body> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let polled = this.guarded.poll_with(|body| body.poll_frame(cx)).unwrap_or(Poll::Ready(None));
        match &polled {
            // Trailers end a body, and servers do not poll a body after its trailers.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => *this.unsent = Some(0),
            Poll::Ready(Some(Ok(frame))) => {
                let taken = frame.data_ref().map_or(0, Buf::remaining) as u64;
                *this.unsent = this.unsent.map(|unsent| unsent.saturating_sub(taken));
            }
            Poll::Ready(None) => *this.unsent = Some(0),
            Poll::Ready(Some(Err(_))) => *this.has_failed = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.guarded.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.guarded.inner.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

pin_project! {
    // The future or the response body of a request, and the guard that counts the request. The guard is dropped last, so the request is in
    // flight until the inner value has been dropped.
    #[derive(Debug)]
    struct Guarded<T> {
        #[pin]
        inner: Option<T>,
        guard: Option<CompletionGuard>,
    }
}

impl<T> Guarded<T> {
    /// Drops the inner value. Then counts the request as completed, unless the guard has moved to the response body.
    fn complete(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.inner.set(None);
        if let Some(guard) = this.guard.take() {
            guard.complete();
        }
    }

    /// Polls the inner value, unless it has been dropped.
    ///
    /// If the inner value panics, this method drops it and then the guard. It drops them while the panic unwinds, so that the request
    /// counts as panicked.
    fn poll_with<P>(self: Pin<&mut Self>, poll: impl FnOnce(Pin<&mut T>) -> P) -> Option<P> {
        let mut this = self.project();
        let inner = this.inner.as_mut().as_pin_mut()?;
        let polled = catch_unwind(AssertUnwindSafe(|| poll(inner)));
        Some(polled.unwrap_or_else(|panic| {
            let _guard = this.guard.take();
            this.inner.set(None);
            resume_unwind(panic)
        }))
    }
}
