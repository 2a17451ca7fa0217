//! Renews the leases of the workers, and puts the jobs of dead workers back into their queues. This module uses a dedicated thread with its
//! own runtime, because a handler may block the runtime of the program. The thread also receives the notifications of other processes.

use super::{Engine, list};
use crate::error::Error;
use crate::outage::{Outage, with_timeout};
use crate::store::{Heart, StoreResult};
use futures_timer::Delay;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A worker sends this many heartbeats in the time of one lease.
const BEATS: u32 = 5;

/// The thread waits for a notification for at most this time. Then it checks again whether there are workers.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The time limit for a heartbeat is at least this long.
const MIN_LIMIT: Duration = Duration::from_secs(2);
/// The time limit for opening the connection of the heartbeat thread is at least this long.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Starts the thread for heartbeats. The thread ends when all workers have ended.
pub(super) fn start(engine: Arc<Engine>) {
    let thread = thread::Builder::new().name("durable heartbeat".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(run(&engine)),
            Err(error) => engine.report(&Error::Engine(format!("cannot create a runtime for heartbeats: {error}")).to_string()),
        }
    });
    thread.map(drop).expect("a thread for heartbeats can be started");
}

pub(super) async fn run(engine: &Arc<Engine>) {
    let report = engine.reporter("the worker cannot renew its lease");
    let (mut outage, mut pulse) = (Outage::new(&report), Pulse { last: Instant::now(), judges_from: Instant::now() });
    let mut heart = None;
    loop {
        let Some(lease) = engine.shortest_lease() else { return };
        match beat(engine, &mut heart, &mut pulse, lease).await {
            Ok(true) => outage.ended(),
            Ok(false) => {}
            Err(error) => {
                heart = None;
                Delay::new(outage.failed(error).min(lease / BEATS)).await;
            }
        }
    }
}

/// Stores the times that decide when this process renews its leases, and when it takes the jobs of dead workers.
struct Pulse {
    last: Instant,
    /// Before this time, this process does not treat other workers as dead. If it has missed a heartbeat, it waits for one lease, because
    /// other workers may not have been able to renew their leases either.
    judges_from: Instant,
}

/// Returns whether a process has missed a heartbeat. `gap` is the time between its last two heartbeats.
fn has_missed_beat(gap: Duration, lease: Duration) -> bool {
    gap > lease / BEATS * 2
}

/// Renews the leases if a heartbeat is due, and waits until a notification arrives or the next heartbeat is due. Returns whether the leases
/// were renewed.
async fn beat(engine: &Arc<Engine>, heart: &mut Option<Box<dyn Heart>>, pulse: &mut Pulse, lease: Duration) -> StoreResult<bool> {
    let interval = lease / BEATS;
    // The limit is two fifths of the lease, so that after a timeout there is still time for another heartbeat.
    let limit = (interval * 2).max(MIN_LIMIT);
    let is_new = heart.is_none();
    let heart = if let Some(heart) = heart {
        heart
    } else {
        let heart = heart.insert(with_timeout(limit.max(CONNECT_LIMIT), engine.store.heart()).await?);
        engine.look_in(Duration::ZERO); // notifications before this connection are lost
        heart
    };
    let is_due = is_new || pulse.last.elapsed() >= interval;
    if is_due {
        let lost = with_timeout(limit, heart.beat(&engine.leases())).await?;
        if has_missed_beat(pulse.last.elapsed(), lease) {
            pulse.judges_from = Instant::now() + lease;
        }
        pulse.last = Instant::now();
        let mut ended = Vec::new();
        for id in lost {
            let Some(worker) = engine.worker(&id) else {
                ended.push(id); // this worker has ended, and the heartbeat has added it to the store again
                continue;
            };
            engine.metrics.lease_lost(worker.queue);
            let jobs = match &*worker.held_jobs() {
                [] => "it holds no jobs".to_owned(),
                ids => format!("these jobs may run a second time: {}", list(ids)),
            };
            let text = format!("the worker could not renew its lease of {lease:?} in time, and {jobs}");
            worker.send(super::Command::Report(Error::LeaseLost(text).to_string().into()));
        }
        if !ended.is_empty() {
            with_timeout(limit, heart.deregister(&ended)).await?;
        }
        if pulse.judges_from <= Instant::now() {
            let recovered = with_timeout(limit, heart.recover()).await?;
            if recovered > 0 {
                engine.metrics.recovered(recovered);
                engine.look_in(Duration::ZERO);
            }
        }
    }
    let wait = interval.saturating_sub(pulse.last.elapsed()).min(MAX_WAIT);
    engine.noticed(&heart.next_notice(wait, engine.poll_interval()).await?);
    Ok(is_due)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lease of another worker may expire during an outage that is shorter than the lease, because its last heartbeat may have been
    /// almost an interval before the outage.
    #[test]
    fn process_that_has_missed_a_beat_does_not_judge_others() {
        let lease = Duration::from_secs(30);
        for (seconds, has_missed) in [(6, false), (12, false), (13, true), (26, true)] {
            assert_eq!(has_missed_beat(Duration::from_secs(seconds), lease), has_missed, "{seconds}");
        }
    }
}
