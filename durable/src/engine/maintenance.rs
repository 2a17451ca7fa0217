//! Deletes ended jobs whose retention has expired. Makes jobs available that waited because of the limit of their key.

use super::Engine;
use crate::outage::{Outage, with_timeout};
use futures_timer::Delay;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// At this interval, the task checks whether the maintenance of a worker is due.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The first maintenance of a worker starts this long after the worker has started.
const FIRST_DELAY: Duration = Duration::from_secs(1);

impl Engine {
    /// Runs the maintenance of all workers until the future is dropped.
    pub(super) async fn maintain(self: &Arc<Self>) {
        let report = self.reporter("the worker cannot delete old jobs");
        let mut outage = Outage::new(&report);
        let mut due = HashMap::<String, Instant>::new();
        loop {
            let workers = self.workers();
            due.retain(|id, _| workers.iter().any(|worker| worker.id == *id));
            for worker in workers {
                let options = &worker.options;
                let due =
                    due.entry(worker.id.clone()).or_insert_with(|| Instant::now() + FIRST_DELAY.min(options.maintenance_interval));
                if *due > Instant::now() || worker.is_closing() {
                    continue;
                }
                let limit = options.response_timeout;
                let maintain = async {
                    let prune = || self.store.prune(worker.queue, options.retention, options.dead_retention);
                    while with_timeout(limit, prune()).await? > 0 && !worker.is_closing() {}
                    with_timeout(limit, self.store.unblock(worker.queue)).await
                };
                match maintain.await {
                    Ok(()) => outage.ended(),
                    Err(error) => _ = outage.failed(error),
                }
                *due = Instant::now() + options.maintenance_interval;
            }
            Delay::new(CHECK_INTERVAL).await;
        }
    }
}
