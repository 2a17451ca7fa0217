//! The work of each job of all contenders. The load counts the job as started. The job ends when the load is open.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};

pub struct Load {
    /// `all_started` waits until this number of jobs has started.
    count: usize,
    started: AtomicUsize,
    all_started: Notify,
    open: watch::Sender<bool>,
    /// The time that each job waited in the queue. The number of a job is the time at which the job was enqueued.
    waits: Option<Mutex<Vec<Duration>>>,
}

impl Load {
    pub fn open(count: usize) -> Self {
        Self { count, started: AtomicUsize::new(0), all_started: Notify::new(), open: watch::Sender::new(true), waits: None }
    }

    /// Creates a load whose jobs wait until `release` is called.
    pub fn held(count: usize) -> Self {
        Self { open: watch::Sender::new(false), ..Self::open(count) }
    }

    /// Creates a load that records how long each job waited in the queue.
    pub fn timed(count: usize) -> Self {
        Self { waits: Some(Mutex::default()), ..Self::open(count) }
    }

    pub fn release(&self) {
        self.open.send_replace(true);
    }

    pub async fn all_started(&self) {
        self.all_started.notified().await;
    }

    pub fn started(&self) -> usize {
        self.started.load(Ordering::Relaxed)
    }

    /// Returns the recorded waiting times.
    pub fn waits(&self) -> Vec<Duration> {
        self.waits.as_ref().map(|waits| waits.lock().expect("no job panics").clone()).unwrap_or_default()
    }

    pub async fn job(&self, number: u64) {
        if let Some(waits) = &self.waits {
            waits.lock().expect("no job panics").push(Duration::from_nanos(now().saturating_sub(number)));
        }
        // This counter has relaxed ordering, because the benchmark also counts the finished rows in the database. The counter only shows
        // when this count can start.
        if self.started.fetch_add(1, Ordering::Relaxed) + 1 == self.count {
            self.all_started.notify_one();
        }
        if !*self.open.borrow() {
            self.open.subscribe().wait_for(|open| *open).await.expect("the sender is alive");
        }
    }
}

/// Returns the current time in nanoseconds. All processes of the machine share this clock.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_nanos()).expect("the year is before 2554")
}
