//! Stores the state of a host for the dashboard.

use crate::deadline::Deadline;
use crate::liveness::{Liveness, WeakLiveness};
use crate::phases::Phases;
use crate::sync::lock;
use std::sync::Mutex;
use std::time::Instant;

/// The state that a [`Host`](crate::Host) shares with dashboards.
pub(crate) struct HostStatus {
    phases: Mutex<Phases>,
    liveness: Mutex<Vec<WeakLiveness>>,
    stop: Mutex<Stop>,
}

/// The times of the host's shutdown. All fields are `None` until the process is asked to stop or shutdown starts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Stop {
    pub(crate) deadline: Option<Deadline>,
    /// The end of the [delay](crate::Host::delay). `None` if there is no delay.
    pub(crate) delay_end: Option<Instant>,
}

impl HostStatus {
    pub(crate) fn new(phases: &Phases) -> Self {
        Self { phases: Mutex::new(phases.clone()), liveness: Mutex::default(), stop: Mutex::default() }
    }

    pub(crate) fn set_phases(&self, phases: &Phases) {
        *lock(&self.phases) = phases.clone();
    }

    pub(crate) fn add_liveness(&self, liveness: &Liveness) {
        lock(&self.liveness).push(liveness.downgrade());
    }

    pub(crate) fn start_stop(&self, deadline: Deadline) {
        lock(&self.stop).deadline = Some(deadline);
    }

    pub(crate) fn start_delay(&self, end: Option<Instant>) {
        lock(&self.stop).delay_end = end;
    }
}

#[cfg(feature = "dashboard")]
impl HostStatus {
    pub(crate) fn phases(&self) -> Phases {
        lock(&self.phases).clone()
    }

    pub(crate) fn stop(&self) -> Stop {
        *lock(&self.stop)
    }

    /// Returns the handles of the late tasks. The handles that a task has already dropped are not included.
    pub(crate) fn late_tasks(&self) -> Vec<Liveness> {
        lock(&self.liveness).iter().filter_map(WeakLiveness::upgrade).filter(Liveness::is_late).collect()
    }
}
