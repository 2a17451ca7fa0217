//! Renews the worker's lease. The engine sends heartbeats too, but not while it fetches, while fetched jobs wait, after it has failed, or
//! during a drain, when the engine has stopped.

use super::in_flight::InFlightJobs;
use crate::engine::EngineName;
use crate::outage::{Outage, Report, with_timeout};
use crate::store::Store;
use background_tasks::ShutdownSignal;
use futures_timer::Delay;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) struct Heartbeat {
    pub(super) store: Arc<dyn Store>,
    pub(super) interval: Duration,
    pub(super) engine_name: Arc<EngineName>,
    pub(super) in_flight: Arc<InFlightJobs>,
    pub(super) signal: ShutdownSignal,
    pub(super) report: Arc<Report>,
}

impl Heartbeat {
    /// Runs until it is dropped.
    pub(super) async fn run(&self) {
        let (mut outage, mut duration) = (Outage::new(&self.report), Duration::ZERO);
        loop {
            Delay::new(self.interval.saturating_sub(duration)).await;
            let start = Instant::now();
            let current = self.engine_name.current();
            let mut engines = self.in_flight.engines();
            engines.insert(current.clone());
            // A fetch can commit after its engine was dropped. Nobody would start its jobs, because these heartbeats keep the engine's name
            // alive, so they are released below. The IDs are read after the signal and the name: only the current engine adds jobs, and
            // jobs that are added after the signal are not started.
            let (is_shutting_down, ids) = (self.signal.is_triggered(), self.in_flight.ids());
            let names: Vec<_> = engines.iter().map(ToString::to_string).collect();
            // Two of the five intervals in a lease, which leaves time for further heartbeats.
            match with_timeout(self.interval * 2, self.store.heartbeat(&names)).await {
                Ok(()) => outage.ended(),
                Err(error) => _ = outage.failed(error),
            }
            let release = async {
                for dropped in engines.iter().filter(|engine| is_shutting_down || **engine != current) {
                    self.store.release(dropped, &ids).await?;
                }
                Ok(())
            };
            let _ = with_timeout(self.interval, release).await;
            duration = start.elapsed();
        }
    }
}
