//! Methods of `Shutdown` that block the calling thread until the registry has drained.

use crate::report::{Stragglers, Summary};
use crate::shutdown::Shutdown;
use event_listener::Listener;
use std::time::{Duration, Instant};

impl Shutdown {
    /// Blocks the calling thread until the registry has drained. Use `wait` in programs that are not async.
    ///
    /// # Deadlocks
    ///
    /// `wait` never returns in these cases:
    ///
    /// - The calling thread must run the tasks, like the thread of a current-thread runtime.
    /// - A task of the same registry calls `wait`, so the task waits for itself.
    /// - The calling thread holds a guard of the same registry.
    pub fn wait(self) -> Summary {
        loop {
            if let Some(summary) = self.block(None) {
                return summary;
            }
        }
    }

    /// Blocks the calling thread until the registry has drained or `timeout` has elapsed. With a timeout of zero, the method only
    /// checks whether the registry has drained.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight after `timeout`. These tasks continue to run.
    ///
    /// # Deadlocks
    ///
    /// In the cases in which [`wait`](Self::wait) never returns, `wait_timeout` blocks for the whole timeout and returns the error.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Summary, Stragglers> {
        self.block(deadline_after(timeout)).ok_or_else(|| self.state().stragglers())
    }

    /// Blocks the calling thread until the registry has drained or `grace` has elapsed. Then [aborts](crate::Registry::abort) the
    /// remaining tasks, and blocks until the registry has drained or `abort_timeout` has elapsed.
    ///
    /// [`or_abort`](Self::or_abort) is the async version of this method.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight after `abort_timeout`. These tasks continue to run.
    ///
    /// # Deadlocks
    ///
    /// In the cases in which [`wait`](Self::wait) never returns, `wait_or_abort` blocks for up to the sum of `grace` and
    /// `abort_timeout`.
    pub fn wait_or_abort(self, grace: Duration, abort_timeout: Duration) -> Result<Summary, Stragglers> {
        if let Some(summary) = self.block(deadline_after(grace)) {
            return Ok(summary);
        }
        self.state().abort();
        self.wait_timeout(abort_timeout)
    }

    /// Blocks until the registry has drained or the deadline has passed. Checks the registry once more after the deadline.
    ///
    /// Returns `None` if the registry has not drained.
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

/// Returns the time at which `timeout` expires. Returns `None`, which means no deadline, if an `Instant` cannot represent this
/// time.
fn deadline_after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
