//! What every job does in both contenders: it is counted, and ends when the gate is open.

use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, watch};

pub struct Load {
    /// The number of started jobs that `all_started` waits for.
    count: usize,
    started: AtomicUsize,
    all_started: Notify,
    open: watch::Sender<bool>,
}

impl Load {
    pub fn open(count: usize) -> Self {
        Self { count, started: AtomicUsize::new(0), all_started: Notify::new(), open: watch::Sender::new(true) }
    }

    /// Creates a load whose jobs wait for `release`.
    pub fn held(count: usize) -> Self {
        Self { open: watch::Sender::new(false), ..Self::open(count) }
    }

    pub fn release(&self) {
        self.open.send_replace(true);
    }

    pub async fn all_started(&self) {
        self.all_started.notified().await;
    }

    pub async fn job(&self) {
        // The finished rows are counted too. This counter only shows when counting them is worthwhile.
        if self.started.fetch_add(1, Ordering::Relaxed) + 1 == self.count {
            self.all_started.notify_one();
        }
        if !*self.open.borrow() {
            self.open.subscribe().wait_for(|open| *open).await.expect("the sender is alive");
        }
    }
}
