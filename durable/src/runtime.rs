//! Enters a tokio runtime each time a future of the database driver is polled or dropped. Any executor can therefore run these futures.

use crate::error::Error;
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;

#[derive(Clone, Debug)]
pub(crate) struct Runtime(Handle);

impl Runtime {
    /// Returns the runtime of the caller.
    pub(crate) fn current() -> Result<Self, Error> {
        Handle::try_current().map(Self).map_err(|_| Error::NoRuntime)
    }

    /// Starts a task of this crate. If the runtime shuts down, the task is dropped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.0.spawn(task));
    }

    /// Wraps a future, so that it is polled and dropped in the context of this runtime.
    pub(crate) fn enter<F: Future>(&self, future: F) -> InRuntime<F> {
        InRuntime { future: Some(future), runtime: self.0.clone() }
    }
}

pin_project! {
    pub(crate) struct InRuntime<F> {
        #[pin]
        future: Option<F>,
        runtime: Handle,
    }

    impl<F> PinnedDrop for InRuntime<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _context = this.runtime.enter();
            this.future.set(None); // the drop of a connection spawns a task that puts the connection back into its pool
        }
    }
}

impl<F: Future> Future for InRuntime<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _context = this.runtime.enter();
        this.future.as_pin_mut().expect("the future exists until it is dropped").poll(cx)
    }
}
