use background_tasks::{Registry, WaitIdle};
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// A layer for platforms that freeze the process between two events. A call to the layer's service ends only when no task of a registry is
/// in flight.
///
/// An example is AWS Lambda. The Lambda runtime, a library in the process, asks Lambda for the next event. Lambda then freezes the process
/// until an event arrives. If a task of the handler is in flight at this time, the freeze interrupts the task. The task continues only if
/// another event arrives.
///
/// Put this layer around the service that handles an event and sends the response. The caller then receives the response immediately, but
/// the runtime asks for the next event only after the tasks have ended.
///
/// The service, its requests, its responses and its errors can have any type. With the crate `lambda_runtime`, add the layer to the
/// runtime: `Runtime::new(handler).layer(SettleLayer::new(&registry)).run().await`. In this position, the layer is around the service that
/// sends the response.
///
/// # Tasks that do not end
///
/// Like [`Registry::wait_idle`], the layer waits for all tasks and guards, and for each open [child registry](Registry::child), even if the
/// child registry has no tasks. The layer does not wait for the [services](Registry::service) of the registry itself. If a task does not
/// end, for example because it waits for the registry's signal, the runtime cannot ask for the next event. The platform then kills the
/// process after a timeout. Start work that does not end as a service of this registry, or with [`every`](Registry::every). The platform
/// also freezes services between events, so a service must tolerate a freeze.
///
/// # Shutdown
///
/// Lambda sends SIGTERM before it ends the process, but only if an extension is registered. The function `spawn_graceful_shutdown_handler`
/// of the crate `lambda_runtime` registers an extension and handles SIGTERM. Call [`Registry::shutdown_or_abort`] in the closure that you
/// pass to this function. Do not combine this function with a [`Host`](crate::Host). If the registry has no services, you do not need to
/// handle SIGTERM, because all tasks have ended when the platform freezes the process.
///
/// # Examples
///
/// ```
/// use background_tasks::{Registry, TokioSpawner};
/// use background_tasks_host::SettleLayer;
/// use tower_layer::Layer;
/// # use tower::service_fn;
///
/// let registry = Registry::new(TokioSpawner);
/// let tasks = registry.clone();
/// let handle_and_respond = service_fn(move |event: String| {
///     tasks.run(async { /* send a mail */ });
///     async { Ok::<_, std::io::Error>(()) /* the response is sent here */ }
/// });
/// let service = SettleLayer::new(&registry).layer(handle_and_respond);
/// # let _ = tower::ServiceExt::<String>::boxed(service);
/// ```
#[derive(Debug, Clone)]
pub struct SettleLayer(Registry<()>);

impl SettleLayer {
    /// Creates a layer that waits for the tasks of `registry`.
    pub fn new<S>(registry: &Registry<S>) -> Self {
        Self(registry.with_spawner(()))
    }
}

impl<I> Layer<I> for SettleLayer {
    type Service = SettleService<I>;

    fn layer(&self, inner: I) -> SettleService<I> {
        SettleService { inner, registry: self.0.clone() }
    }
}

/// The service of a [`SettleLayer`]. Each call waits until no task is in flight.
#[derive(Debug, Clone)]
pub struct SettleService<I> {
    inner: I,
    registry: Registry<()>,
}

impl<I: Service<Q>, Q> Service<Q> for SettleService<I> {
    type Response = I::Response;
    type Error = I::Error;
    type Future = SettleFuture<I::Future, Result<I::Response, I::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), I::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Q) -> Self::Future {
        SettleFuture { call: self.inner.call(request), result: None, idle: self.registry.wait_idle() }
    }
}

pin_project! {
    /// The future of a [`SettleService`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct SettleFuture<F, R> {
        #[pin]
        call: F,
        // The result of the call, which is stored here while tasks are in flight.
        result: Option<R>,
        idle: WaitIdle,
    }
}

impl<F: Future> Future for SettleFuture<F, F::Output> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        if this.result.is_none() {
            *this.result = Some(ready!(this.call.poll(cx)));
        }
        ready!(Pin::new(this.idle).poll(cx));
        Poll::Ready(this.result.take().expect("polled after completion"))
    }
}
