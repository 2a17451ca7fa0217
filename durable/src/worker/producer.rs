//! Runs the engine, which fetches jobs, until shutdown starts. Replaces it when it fails.

use super::in_flight::InFlightJobs;
use crate::engine::{EngineName, FetchConfig, PollTimer, Semaphore, StartJob};
use crate::outage::{Outage, Report, with_timeout};
use crate::store::Store;
use background_tasks::ShutdownSignal;
use event_listener::Event;
use futures_timer::Delay;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An engine that has run for this long was healthy. An engine without a store, or with an unresponsive one, can take most of this time to
/// fail.
const HEALTHY_AFTER: Duration = Duration::from_mins(1);

pub(super) struct Producer {
    pub(super) store: Arc<dyn Store>,
    pub(super) config: FetchConfig,
    pub(super) poll_interval: Duration,
    pub(super) enqueue_event: Arc<Event>,
    pub(super) semaphore: Arc<Semaphore>,
    pub(super) engine_name: Arc<EngineName>,
    pub(super) in_flight: Arc<InFlightJobs>,
    pub(super) signal: ShutdownSignal,
    pub(super) report: Arc<Report>,
}

impl Producer {
    pub(super) async fn run(&self, start_jobs: impl Fn(Arc<str>) -> Arc<StartJob>) {
        let mut outage = Outage::new(&self.report);
        while !self.signal.is_triggered() {
            let start = Instant::now();
            let name = self.engine_name.current();
            let timer = PollTimer::new(self.poll_interval, self.enqueue_event.clone(), self.semaphore.clone());
            let (config, start_job) = (self.config.clone(), start_jobs(name.clone()));
            let mut failure = self.store.run_engine(name.to_string(), config, timer, start_job, self.signal.clone()).await;
            if start.elapsed() > HEALTHY_AFTER {
                outage.ended();
            }
            loop {
                if let Some(error) = failure.take() {
                    self.signal.run_until_shutdown(Delay::new(outage.failed(error))).await;
                }
                // Returns jobs that the engine has fetched but not started. Its running jobs continue under its name.
                match with_timeout(self.config.response_timeout, self.store.release(&name, &self.in_flight.ids())).await {
                    Err(error) if !self.signal.is_triggered() => failure = Some(error),
                    // If this failed during a shutdown, the next heartbeat repeats it.
                    _ => break,
                }
            }
            // The state of a failed engine is not usable. A new engine needs a new name.
            if !self.signal.is_triggered() {
                self.engine_name.replace();
            }
        }
    }
}
