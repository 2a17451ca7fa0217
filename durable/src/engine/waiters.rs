//! Implements `Queue::wait`. One statement reads the statuses of all jobs for which callers in this process wait.

use super::Engine;
use crate::outage::{RESPONSE_TIMEOUT, with_timeout};
use crate::sync::lock;
use futures_channel::oneshot;
use futures_timer::Delay;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use ulid::Ulid;

/// The first and the longest interval between two reads of the statuses. The interval doubles after each read. When another caller starts
/// to wait, the first interval applies again.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

#[derive(Default)]
pub(crate) struct Waiters(Mutex<State>);

#[derive(Default)]
struct State {
    jobs: HashMap<Ulid, Vec<oneshot::Sender<()>>>,
    has_new: bool,
    is_polling: bool,
}

impl Waiters {
    /// Wakes the callers that wait for these jobs. Each caller then reads its job from the store.
    pub(super) fn wake(&self, ids: &[Ulid]) {
        let mut state = lock(&self.0);
        for waiter in ids.iter().filter_map(|id| state.jobs.remove(id)).flatten() {
            let _ = waiter.send(());
        }
    }
}

impl Engine {
    /// Returns a future that resolves when a job has ended or does not exist, or when the store fails.
    pub(crate) fn ended(self: &Arc<Self>, id: Ulid) -> impl Future<Output = ()> + use<> {
        let (waiter, ended) = oneshot::channel();
        let mut state = lock(&self.waiters.0);
        state.jobs.entry(id).or_default().push(waiter);
        state.has_new = true;
        if !std::mem::replace(&mut state.is_polling, true) {
            let this = self.clone();
            self.runtime.spawn(async move { this.poll_waiters().await });
        }
        async move { _ = ended.await }
    }

    async fn poll_waiters(&self) {
        let mut interval = INTERVALS.0;
        loop {
            Delay::new(interval).await; // a new caller has just read its job
            let ids: Vec<_> = {
                let mut state = lock(&self.waiters.0);
                state.jobs.retain(|_, waiters| {
                    waiters.retain(|waiter| !waiter.is_canceled());
                    !waiters.is_empty()
                });
                state.is_polling = !state.jobs.is_empty();
                interval = if std::mem::take(&mut state.has_new) { INTERVALS.0 } else { (interval * 2).min(INTERVALS.1) };
                state.jobs.keys().copied().collect()
            };
            if ids.is_empty() {
                return;
            }
            let waiting: HashSet<_> = match with_timeout(RESPONSE_TIMEOUT, self.store.statuses(&ids)).await {
                Ok(statuses) => statuses.into_iter().filter(|(_, status)| !status.is_final()).map(|(id, _)| id).collect(),
                Err(_) => HashSet::new(), // wakes all callers, which read their jobs and receive the error
            };
            self.waiters.wake(&ids.into_iter().filter(|id| !waiting.contains(id)).collect::<Vec<_>>());
        }
    }
}
