//! The counts of a registry.

use super::registry_state::{RegistryState, Shard};
use crate::platform::Ordering;
use crate::report::Summary;
use crate::sync::gate::Gate;
use core::array;

impl RegistryState {
    pub(crate) fn in_flight(&'static self) -> usize {
        self.shards().iter().map(|shard| shard.gate().snapshot().in_flight()).sum()
    }

    /// Reads the gates before the counters. So a loss that happens meanwhile can lower *completed*, and never raises it.
    pub(crate) fn summary(&'static self) -> Summary {
        let mut ended = 0;
        for shard in self.shards() {
            let (accepted, snapshot) = shard.gate().accepted();
            ended += accepted.saturating_sub(snapshot.in_flight() as u64);
        }
        // Relaxed: each loss was counted before a departure that the snapshots above have acquired.
        let sum = |loss: usize| -> u64 {
            self.shards().iter().map(|shard| shard.counters.0.losses[loss].load(Ordering::Relaxed) as u64).sum()
        };
        let [failed, panicked, abandoned, aborted, rejected] = array::from_fn(sum);
        let completed = ended.saturating_sub(failed + panicked + abandoned + aborted);
        Summary { completed, failed, panicked, abandoned, aborted, rejected }
    }

    /// Makes the next departure that empties a gate notify the waiters for idleness.
    pub(crate) fn request_idle(&'static self) {
        self.shards().iter().for_each(|shard| shard.gate().request_idle());
    }

    /// Returns whether there was an instant with nothing in flight.
    ///
    /// It takes two snapshots of all gates. If the first shows nothing in flight, and nothing was accepted between the two, then nothing was
    /// in flight when the first was complete. The reads of `wraps` enclose the snapshots, so a count *accepted* that wrapped around is
    /// noticed. An entry whose wrap is not counted yet has not left, so the second snapshot shows it in flight.
    pub(crate) fn is_idle(&'static self) -> bool {
        let gates = || self.shards().iter().map(Shard::gate);
        let wraps = || gates().fold(0_usize, |sum, gate| sum.wrapping_add(gate.wraps()));
        let counts = || {
            gates().map(Gate::snapshot).fold((0, 0_usize), |(in_flight, accepted), snapshot| {
                (in_flight + snapshot.in_flight(), accepted.wrapping_add(snapshot.accepted()))
            })
        };
        loop {
            let wraps_before = wraps();
            let (in_flight, accepted) = counts();
            if in_flight != 0 {
                return false;
            }
            if counts() == (0, accepted) && wraps() == wraps_before {
                return true;
            }
            // A task came and went. Check again now, because nothing may be left to notify the waiter.
        }
    }
}
