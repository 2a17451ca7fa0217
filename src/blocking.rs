//! Implements the methods of `Shutdown` that block the calling thread until the registry has drained.

use crate::report::{Stragglers, Summary};
use crate::shutdown::Shutdown;
use event_listener::Listener;
use std::time::{Duration, Instant};

impl Shutdown {
    /// Blocks the calling thread until the registry has drained. Use `wait` in programs that are not async. The methods of
    /// `Shutdown` that block need the feature `std`, and do not exist on WebAssembly.
    ///
    /// # Deadlocks
    ///
    /// `wait` never returns in these cases:
    ///
    /// - Only the calling thread can run the tasks. This is the case, for example, on the thread of a current-thread runtime.
    /// - A task of the same registry calls `wait`, so the task waits for itself.
    /// - The calling thread holds a guard of the same registry, so the thread waits for its own guard.
    pub fn wait(self) -> Summary {
        loop {
            if let Some(summary) = self.block(None) {
                return summary;
            }
        }
    }

    /// Blocks the calling thread until the registry has drained or `timeout` has elapsed. If `timeout` is zero, this method does
    /// not block. It only checks whether the registry has drained. If `timeout` is [`Duration::MAX`], this method waits without a
    /// limit.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight after `timeout`. These tasks continue to run.
    ///
    /// # Deadlocks
    ///
    /// The docs of [`wait`](Self::wait) list the cases in which `wait` never returns. In these cases, `wait_timeout` blocks until
    /// `timeout` has elapsed, and then returns [`Stragglers`].
    pub fn wait_timeout(self, timeout: Duration) -> Result<Summary, Stragglers> {
        self.block(deadline_after(timeout)).ok_or_else(|| self.state().stragglers())
    }

    /// Blocks the calling thread until the registry has drained or `grace` has elapsed. If `grace` elapses first, this method
    /// [aborts](crate::Registry::abort) the remaining tasks. The method then blocks until the registry has drained or
    /// `abort_timeout` has elapsed.
    ///
    /// [`or_abort`](Self::or_abort) is the async version of this method. Only the tasks of an
    /// [inspected](crate::RegistryBuilder::inspect) registry are aborted. After `grace` has elapsed, an inspected registry also
    /// aborts each task that starts later; the docs of `or_abort` contain the details.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight after `abort_timeout`. These tasks continue to run.
    ///
    /// # Deadlocks
    ///
    /// The docs of [`wait`](Self::wait) list the cases in which `wait` never returns. In these cases, `wait_or_abort` blocks for
    /// `grace` plus `abort_timeout`, and then returns [`Stragglers`].
    pub fn wait_or_abort(self, grace: Duration, abort_timeout: Duration) -> Result<Summary, Stragglers> {
        if let Some(summary) = self.block(deadline_after(grace)) {
            return Ok(summary);
        }
        self.state().start_aborting();
        self.wait_timeout(abort_timeout)
    }

    /// Blocks until the registry has drained or `deadline` has passed. If `deadline` is `None`, there is no deadline.
    ///
    /// After the deadline, this method checks one more time whether the registry has drained, and returns `None` if not.
    fn block(&self, deadline: Option<Instant>) -> Option<Summary> {
        let state = self.state();
        let notifier = state.notifier();
        loop {
            let listener = notifier.listen();
            let summary = state.poll_drained();
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

/// Returns the time at which `timeout` expires. Returns `None` if an `Instant` cannot represent this time. `None` means that
/// there is no deadline.
fn deadline_after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
