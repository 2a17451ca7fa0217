use crate::layer::{RequestBody, rejection};
use background_tasks::{JoinHandle, Registry, RejectReason, Spawner};
use http::{Request, Response, Version};
use http_body::Body;
use std::fmt;
use std::panic::{Location, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// A layer that runs each call to its service as a task of a registry, so that the call continues if the client disconnects.
///
/// Without this layer, a server drops the future of a handler when the client disconnects. The handler then stops at its current await
/// point, for example between two writes that belong together. With this layer, the handler continues to its end, although the server does
/// not send its response. The handler runs as a task of the registry, so the drain waits for it. If the task is still in flight when the
/// grace period expires, a [`Host`](crate::Host) aborts it, provided that the registry is
/// [inspected](background_tasks::RegistryBuilder::inspect).
///
/// The layer does not change the request, so the service sees the body limits and the extensions that outer layers have added. If the
/// client disconnects before it has sent the whole request body, a handler that reads the body receives an error.
///
/// # Outcomes
///
/// | outcome | meaning |
/// | --- | --- |
/// | completed | The service returned a response or an error. |
/// | panicked | The service panicked. If the client is still connected, the panic continues in the task of the connection. |
/// | aborted | The task was aborted. The layer answers with status 503. |
/// | abandoned | The executor dropped the task. The layer answers with status 503. |
/// | rejected | The registry has drained or is [full](RejectReason::Full). The layer answers with status 503, and drops the future of the service before its first poll. |
///
/// The tasks take [no permits](Registry::without_permit) of a registry that has a limit. Tasks without a permit have their own, much higher
/// limit; see [`RejectReason::Full`].
///
/// # Other layers
///
/// A task ends when the service returns its response. If the response body is a stream that does further work, this work still ends when
/// the client disconnects. To make the drain wait for response bodies too, put a [`RequestLayer`](crate::RequestLayer) around this layer.
/// The registry then counts each request in addition to its task. If the client disconnects, the request counts as abandoned, and the task
/// counts with its own outcome.
///
/// If you put a timeout layer inside this layer, the timeout ends the handler. If you put it outside this layer, the timeout ends only the
/// wait for the response, and the handler continues.
///
/// The task does not run in the tracing span of the request. To run the task in this span, use the spawner
/// [`InSpan`](https://docs.rs/background-tasks/latest/background_tasks/struct.InSpan.html).
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::post};
/// use background_tasks::{Registry, TokioSpawner};
/// use background_tasks_host::{DetachLayer, RequestLayer};
///
/// fn app(registry: &Registry<TokioSpawner>) -> Router {
///     let order = async || { /* charges the card, and then stores the order */ };
///     Router::new().route("/orders", post(order)).layer(DetachLayer::new(registry)).layer(RequestLayer::new(registry))
/// }
/// ```
#[derive(Debug, Clone)]
pub struct DetachLayer<S> {
    registry: Registry<S>,
    name: &'static str,
    location: &'static Location<'static>,
}

impl<S: Clone> DetachLayer<S> {
    /// Creates a layer that runs calls as tasks of `registry`. The tasks have the name `handler`. Their call site is this call to `new`.
    ///
    /// The layer and each service that it creates hold a handle of the registry.
    #[track_caller]
    pub fn new(registry: &Registry<S>) -> Self {
        Self { registry: registry.clone(), name: "handler", location: Location::caller() }
    }

    /// Sets the name of the tasks; see [`Registry::named`]. Default: `handler`.
    #[must_use]
    pub fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }
}

impl<S: Clone, I> Layer<I> for DetachLayer<S> {
    type Service = DetachService<S, I>;

    fn layer(&self, inner: I) -> DetachService<S, I> {
        DetachService { inner, layer: self.clone() }
    }
}

/// The service of a [`DetachLayer`], which runs each call as a task.
#[derive(Debug, Clone)]
pub struct DetachService<S, I> {
    inner: I,
    layer: DetachLayer<S>,
}

impl<S, I, B, R> Service<Request<B>> for DetachService<S, I>
where
    S: Spawner,
    I: Service<Request<B>, Response = Response<R>, Error: Send + 'static, Future: Send + 'static>,
    R: Body + Send + 'static,
{
    type Response = Response<RequestBody<R>>;
    type Error = I::Error;
    type Future = DetachFuture<Response<R>, I::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let DetachLayer { registry, name, location } = &self.layer;
        let has_connections = request.version() < Version::HTTP_2;
        let call = self.inner.call(request);
        let started = registry.named(name).location(location).without_permit().try_spawn(call);
        let is_open = started.as_ref().is_err_and(|rejected| rejected.reason() != RejectReason::Drained);
        DetachFuture { task: started.ok(), close_connection: has_connections && !is_open }
    }
}

/// The future of a [`DetachService`]. If this future is dropped, its task continues.
#[must_use = "futures do nothing unless polled"]
pub struct DetachFuture<T, E> {
    /// `None` if the registry has rejected the task.
    task: Option<JoinHandle<Result<T, E>>>,
    /// Whether the connection closes if the layer answers with status 503.
    close_connection: bool,
}

impl<R: Body, E> Future for DetachFuture<Response<R>, E> {
    type Output = Result<Response<RequestBody<R>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = match &mut self.task {
            Some(task) => Some(ready!(Pin::new(task).poll(cx))),
            None => None,
        };
        let lost = match ended {
            Some(Ok(result)) => return Poll::Ready(result.map(|response| response.map(RequestBody::without_request))),
            Some(Err(error)) => error.try_into_panic().ok(),
            None => None,
        };
        match lost {
            Some(payload) => resume_unwind(payload),
            None => Poll::Ready(Ok(rejection(self.close_connection))),
        }
    }
}

impl<T, E> fmt::Debug for DetachFuture<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DetachFuture").field("task", &self.task).finish_non_exhaustive()
    }
}
