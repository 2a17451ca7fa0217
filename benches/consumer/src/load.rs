use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// The work of the handlers. A handler ends immediately, or waits until the benchmark calls `release`.
pub(crate) struct Load {
    messages: usize,
    started: AtomicUsize,
    all_started: Semaphore,
    released: Semaphore,
}

impl Load {
    /// Creates the work of handlers that end immediately.
    pub(crate) fn open(messages: usize) -> Arc<Self> {
        let load = Self::held(messages);
        load.release();
        load
    }

    /// Creates the work of handlers that wait until `release` is called.
    pub(crate) fn held(messages: usize) -> Arc<Self> {
        let (all_started, released) = (Semaphore::new(0), Semaphore::new(0));
        Arc::new(Self { messages, started: AtomicUsize::new(0), all_started, released })
    }

    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    pub(crate) async fn handle(&self) {
        if self.started.fetch_add(1, Ordering::Relaxed) + 1 == self.messages {
            self.all_started.close();
        }
        let _ = self.released.acquire().await;
    }

    pub(crate) async fn all_started(&self) {
        let _ = self.all_started.acquire().await;
    }

    pub(crate) fn release(&self) {
        self.released.close();
    }
}
