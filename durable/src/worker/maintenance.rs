//! Deletes finished jobs and dead workers, and updates the statistics of the query planner.

use crate::options::WorkerOptions;
use crate::outage::{Outage, Report, ResponseTimeout};
use crate::store::Store;
use futures_timer::Delay;
use std::sync::Arc;
use std::time::Duration;

/// The first delay is short, because a queue that was empty at the start may be full soon. It doubles up to the maintenance interval.
const FIRST_DELAY: Duration = Duration::from_secs(5);

/// Runs until it is dropped.
pub(super) async fn run(store: Arc<dyn Store>, queue: &'static str, options: WorkerOptions, report: Report) {
    let (mut outage, mut timeout, mut delay) = (Outage::new(&report), ResponseTimeout(options.response_timeout), FIRST_DELAY);
    loop {
        let maintain = async {
            while timeout.limit(store.prune(queue, options.retention)).await? > 0 {}
            timeout.limit(store.clean_up(queue)).await
        };
        match maintain.await {
            Ok(()) => {
                outage.ended();
                timeout = ResponseTimeout(options.response_timeout);
            }
            Err(error) => _ = outage.failed(error),
        }
        Delay::new(delay.min(options.maintenance_interval)).await;
        delay = (delay * 2).min(options.maintenance_interval);
    }
}
