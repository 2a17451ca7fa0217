//! Waits for a drain that block a thread.

use crate::report::{Stragglers, Summary};
use crate::shutdown::Shutdown;
use event_listener::Listener;
use std::time::{Duration, Instant};

impl Shutdown {
    /// Blocks the thread until nothing is in flight, for hosts that are not async.
    ///
    /// # Deadlocks
    ///
    /// The call waits for itself on a thread that must run the tasks (that of a current-thread runtime, for example), and inside
    /// tracked work.
    pub fn wait(self) -> Summary {
        loop {
            if let Some(summary) = self.block(None) {
                return summary;
            }
        }
    }

    /// Blocks the thread until nothing is in flight, at most for `timeout`. A timeout of zero checks and does not wait.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight after the timeout.
    ///
    /// # Deadlocks
    ///
    /// As for [`wait`](Self::wait), until the timeout.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Summary, Stragglers> {
        self.block(deadline_after(timeout)).ok_or_else(|| self.state().stragglers())
    }

    /// Blocks the thread until nothing is in flight. Aborts the abortable tasks when `grace` expires, and gives up `abort_timeout` later.
    ///
    /// Otherwise the same as [`or_abort`](Self::or_abort).
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight after both times.
    ///
    /// # Deadlocks
    ///
    /// As for [`wait`](Self::wait), until both times have expired.
    pub fn wait_or_abort(self, grace: Duration, abort_timeout: Duration) -> Result<Summary, Stragglers> {
        if let Some(summary) = self.block(deadline_after(grace)) {
            return Ok(summary);
        }
        self.state().abort();
        self.wait_timeout(abort_timeout)
    }

    /// Blocks until the registry has drained, or the deadline has passed and a last check finds that it has not.
    fn block(&self, deadline: Option<Instant>) -> Option<Summary> {
        let state = self.state();
        let notifier = state.notifier();
        loop {
            let listener = notifier.listen();
            let summary = state.final_summary();
            if summary.is_some() {
                drop(listener);
                notifier.wake_deferred();
                return summary;
            }
            match deadline {
                None => listener.wait(),
                Some(deadline) => {
                    if listener.wait_deadline(deadline).is_none() {
                        return state.final_summary();
                    }
                }
            }
        }
    }
}

/// Returns `None`, no deadline, if the clock cannot represent it.
fn deadline_after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
