//! Reads the counts of a registry.

use super::registry_state::{RegistryState, Shard};
use super::settings::LIMITED;
use crate::platform::Ordering;
use crate::report::Summary;
use crate::sync::gate::{Gate, Snapshot};

impl RegistryState {
    pub(crate) fn in_flight(&'static self) -> usize {
        let lent = if self.settings.has(LIMITED) { self.lent() } else { 0 };
        let counted: usize = self.shards().map(|shard| self.in_flight_of(shard.gate().snapshot())).sum();
        counted.saturating_sub(lent)
    }

    /// Returns the number of this registry's permits that tasks of descendants hold. The gate of this registry counts these
    /// permits, but the gates of the descendants count the tasks.
    ///
    /// Relaxed is enough because the number is exact only while no task starts or ends.
    fn lent(&'static self) -> usize {
        self.used_rare().map_or(0, |rare| rare.lent.load(Ordering::Relaxed))
    }

    /// Returns the number of tasks in flight in a snapshot of one of this registry's gates.
    fn in_flight_of(&self, snapshot: Snapshot) -> usize {
        if self.settings.has(LIMITED) { snapshot.in_flight_with_limit() } else { snapshot.in_flight() }
    }

    /// Returns the number of tasks with each outcome.
    ///
    /// While a task of a descendant holds a permit of this registry, `completed` is too low by one. The reason is that the gate
    /// counts the permit as a task in flight, but not as accepted. After the drain, no task holds a permit, so the number is exact.
    ///
    /// This function reads the gate of each shard before the loss counters of the shard. Each task that is lost between these two
    /// reads makes `completed` too low by one. `completed` is never too high.
    pub(crate) fn summary(&'static self) -> Summary {
        let (mut ended, mut folded, mut sums) = (0, 0_usize, [0; 5]);
        for shard in self.shards() {
            let (accepted, snapshot) = shard.gate().accepted();
            ended += accepted.saturating_sub(self.in_flight_of(snapshot) as u64);
            // Acquire pairs with the Release in `leave_parent`: a thread that sees the tasks of a drained child also sees their
            // losses. This number contains -1 for the child itself, even before the child has left the parent's gate. Therefore
            // `completed` is never too high.
            folded = folded.wrapping_add(shard.folded.load(Ordering::Acquire));
            // Relaxed is enough. The loss of a task is counted before the task leaves the gate of the same shard, and the snapshot
            // above has read this gate with Acquire.
            for (sum, count) in sums.iter_mut().zip(&shard.losses) {
                *sum += count.load(Ordering::Relaxed) as u64;
            }
        }
        #[expect(clippy::cast_possible_wrap, reason = "the sum is negative while only empty children have drained")]
        let ended = ended.saturating_add_signed(folded as isize as i64);
        let [failed, panicked, abandoned, aborted, rejected] = sums;
        let completed = ended.saturating_sub(failed + panicked + abandoned + aborted);
        Summary { completed, failed, panicked, abandoned, aborted, rejected }
    }

    /// Requests a notification for the tasks and threads that wait until the registry is idle; see `Gate::request_idle`. When the
    /// last task in flight leaves a gate, it notifies these waiters. While a gate counts services in flight, every task that leaves
    /// this gate notifies the waiters.
    pub(crate) fn request_idle(&'static self) {
        self.shards().for_each(|shard| shard.gate().request_idle());
    }

    /// Returns whether the registry was idle at some instant during this call. A registry is idle if no task except services is in
    /// flight.
    ///
    /// This function takes two snapshots of all gates. Suppose that the first snapshot shows only services in flight, and that no
    /// task was accepted between the snapshots. Then only services were in flight at the moment when the first snapshot was
    /// complete. To know that these tasks are services, the function reads the number of services before and after the snapshots. A
    /// service is counted as a service only while it is in flight, so this number is never too high.
    ///
    /// The accepted count of a gate can wrap around between the two snapshots, so that both snapshots show the same count. To
    /// detect this, the function reads `Gate::wraps` before and after the snapshots. If a new task makes the accepted count wrap
    /// around, its thread increments `wraps` before the task leaves. If `wraps` is not incremented yet, the second snapshot still
    /// shows the task as in flight.
    pub(crate) fn is_idle(&'static self) -> bool {
        let gates = || self.shards().map(Shard::gate);
        let wraps = || gates().fold(0_usize, |sum, gate| sum.wrapping_add(gate.wraps()));
        let counts = || {
            gates().map(Gate::snapshot).fold((0, 0_usize), |(in_flight, accepted), snapshot| {
                (in_flight + self.in_flight_of(snapshot), accepted.wrapping_add(snapshot.accepted()))
            })
        };
        let services = || {
            gates()
                .map(Gate::services)
                .fold((0, 0_usize), |(count, changes), (services, word)| (count + services, changes.wrapping_add(word)))
        };
        loop {
            let (wraps_before, mut services_before) = (wraps(), (0, 0));
            let (mut in_flight, mut accepted) = counts();
            if in_flight != 0 {
                services_before = services();
                if services_before.0 == 0 {
                    return false;
                }
                (in_flight, accepted) = counts();
                if in_flight > services_before.0 {
                    return false;
                }
            }
            let has_same_services = || services_before.0 == 0 || services() == services_before;
            if counts() == (in_flight, accepted) && has_same_services() && wraps() == wraps_before {
                return in_flight == services_before.0;
            }
            // A task entered a gate between the snapshots, or a service started or ended. The loop checks again immediately. It
            // must not wait for a notification, because perhaps no other task leaves and notifies the waiter.
        }
    }
}
