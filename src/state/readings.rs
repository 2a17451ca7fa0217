//! Reads the counts of a registry.

use super::registry_state::{RegistryState, Shard};
use crate::platform::Ordering;
use crate::report::Summary;
use crate::sync::gate::Gate;
use core::array;

impl RegistryState {
    pub(crate) fn in_flight(&'static self) -> usize {
        self.shards().iter().map(|shard| shard.gate().snapshot().in_flight()).sum()
    }

    /// Returns the number of tasks with each outcome.
    ///
    /// The gates are read before the loss counters. A loss that happens between the two reads can make `completed` too low, but
    /// never too high.
    pub(crate) fn summary(&'static self) -> Summary {
        let mut ended = 0;
        for shard in self.shards() {
            let (accepted, snapshot) = shard.gate().accepted();
            ended += accepted.saturating_sub(snapshot.in_flight() as u64);
        }
        // Relaxed is enough because each loss is counted before its task departs, and the snapshots above acquire the departures.
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
    /// This function takes two snapshots of all gates. If the first snapshot shows nothing in flight, and no task was accepted
    /// between the snapshots, then nothing was in flight when the first snapshot was complete.
    ///
    /// The function reads `wraps` before and after the snapshots, so it detects an accepted count that wrapped between them. If the
    /// wrap of an entry is not counted yet, the entry's task has not left, and the second snapshot shows the task in flight.
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
            // A task entered and left between the snapshots. Check again immediately, because no later departure may notify the
            // waiter.
        }
    }
}
