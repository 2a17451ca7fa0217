//! What every job does, whoever runs it: it is counted, and ends when it may.

use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, watch};

pub struct Load {
    /// So many jobs wake whoever waits for them.
    count: usize,
    begun: AtomicUsize,
    all_begun: Notify,
    open: watch::Sender<bool>,
}

impl Load {
    pub fn open(count: usize) -> Self {
        Self { count, begun: AtomicUsize::new(0), all_begun: Notify::new(), open: watch::Sender::new(true) }
    }

    /// Its jobs end once they are let go.
    pub fn held(count: usize) -> Self {
        Self { open: watch::Sender::new(false), ..Self::open(count) }
    }

    pub fn let_go(&self) {
        self.open.send_replace(true);
    }

    pub async fn all_begun(&self) {
        self.all_begun.notified().await;
    }

    pub async fn job(&self) {
        // The row of each is counted too; this one only tells when it pays to look at them.
        if self.begun.fetch_add(1, Ordering::Relaxed) + 1 == self.count {
            self.all_begun.notify_one();
        }
        if !*self.open.borrow() {
            self.open.subscribe().wait_for(|open| *open).await.expect("it is ours");
        }
    }
}
