//! The driver of the database needs tokio's context, whoever polls and drops its futures.

use crate::Error;
use pin_project_lite::pin_project;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;

#[derive(Clone, Debug)]
pub(crate) struct Runtime(Handle);

impl Runtime {
    pub(crate) fn current() -> Result<Self, Error> {
        Handle::try_current().map(Self).map_err(|_| Error::NoRuntime)
    }

    pub(crate) fn within<F: Future>(&self, future: F) -> Within<F> {
        Within { future: Some(future), runtime: self.0.clone() }
    }
}

pin_project! {
    pub(crate) struct Within<F> {
        #[pin]
        future: Option<F>,
        runtime: Handle,
    }

    impl<F> PinnedDrop for Within<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _context = this.runtime.enter();
            this.future.set(None); // a connection that is dropped goes back to its pool in a task
        }
    }
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _context = this.runtime.enter();
        this.future.as_pin_mut().expect("it is there until it is dropped").poll(cx)
    }
}
