use crate::report::{Stragglers, Summary};
use crate::state::{RegistryState, StateRef};
use crate::sync::notifier::Waiter;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use futures_util::future::{Either, select};

/// Waits for the drain of a registry, and resolves to the final [`Summary`]; see [`Registry::shutdown`](crate::Registry::shutdown).
///
/// The shutdown has already started. Any number of `Shutdown` futures can wait for one drain, on any thread. They do not keep the registry
/// open.
///
/// # Cancel safety
///
/// Dropping the future only ends this wait. Call `shutdown()` again for another one.
#[derive(Debug)]
pub struct Shutdown {
    waiter: Waiter,
    state: StateRef,
}

impl Shutdown {
    pub(crate) fn new(state: StateRef) -> Self {
        Self { waiter: Waiter::new(state.state().notifier()), state }
    }

    /// Waits for the drain or for `deadline`, whichever comes first. `deadline` can be any future, usually a timer of the runtime.
    ///
    /// The registry is checked once more after the deadline. With a deadline that has already passed, this method only checks whether the
    /// registry has drained.
    ///
    /// # Errors
    ///
    /// [`Stragglers`] if tasks are still in flight. They continue to run: wait again, or exit the program.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only ends this wait and drops `deadline`.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    /// use std::time::Duration;
    ///
    /// let registry = Registry::new(SmolSpawner);
    /// registry.run(std::future::pending::<()>());
    /// let grace = smol::Timer::after(Duration::from_millis(10));
    /// let stragglers = registry.shutdown().until(grace).await.unwrap_err();
    /// assert_eq!(stragglers.len(), 1);
    /// # });
    /// ```
    pub async fn until<D: Future>(mut self, deadline: D) -> Result<Summary, Stragglers> {
        self.drained_before(deadline).await.ok_or_else(|| self.stragglers())
    }

    /// Waits for the drain until `grace` resolves, then [aborts](crate::Registry::abort) the tasks and waits until `abort_timeout`
    /// resolves.
    ///
    /// `abort_timeout` is a function because most timers start when they are created: it is called after `grace` has resolved.
    ///
    /// # Errors
    ///
    /// [`Stragglers`] if tasks are still in flight after both. They cannot be aborted (blocking closures, guards, tracked futures), have
    /// not reached an await point, or were started after the abort. In a registry that is not [inspected](crate::RegistryBuilder::inspect)
    /// no task can be aborted.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future only ends this wait and drops both timers. Tasks that it has not aborted by then continue to run.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    /// use smol::Timer;
    /// use std::time::Duration;
    ///
    /// let registry = Registry::builder(SmolSpawner).inspect().build();
    /// registry.run(std::future::pending::<()>());
    /// let grace = Timer::after(Duration::from_millis(10));
    /// let abort_timeout = || Timer::after(Duration::from_secs(5));
    /// let summary = registry.shutdown().or_abort(grace, abort_timeout).await.unwrap();
    /// assert_eq!(summary.aborted, 1);
    /// # });
    /// ```
    pub async fn or_abort<G: Future, T: Future>(
        mut self,
        grace: G,
        abort_timeout: impl FnOnce() -> T,
    ) -> Result<Summary, Stragglers> {
        if let Some(summary) = self.drained_before(grace).await {
            return Ok(summary);
        }
        self.state().abort();
        self.until(abort_timeout()).await
    }

    async fn drained_before(&mut self, deadline: impl Future) -> Option<Summary> {
        match select(&mut *self, pin!(deadline)).await {
            Either::Left((summary, _)) => Some(summary),
            Either::Right((_, shutdown)) => shutdown.drained(),
        }
    }

    /// Blocks the thread until the registry has drained, for programs that are not async.
    ///
    /// # Deadlocks
    ///
    /// Never returns on a thread that must run the tasks, such as the thread of a current-thread runtime. Never returns inside a task
    /// either, or while the caller holds a guard: it would wait for itself.
    /// Blocks the thread until the registry has drained, or until `timeout` has elapsed. With a timeout of zero it only checks.
    ///
    /// # Errors
    ///
    /// [`Stragglers`] if tasks are still in flight after `timeout`. They continue to run.
    ///
    /// # Deadlocks
    ///
    /// In the cases that [`wait`](Self::wait) lists, it blocks for the whole timeout and returns the error.
    /// Blocks the thread until the registry has drained. Aborts the tasks after `grace`, and returns at the latest after a further
    /// `abort_timeout`.
    ///
    /// Otherwise it behaves like [`or_abort`](Self::or_abort).
    ///
    /// # Errors
    ///
    /// [`Stragglers`] if tasks are still in flight after both times. They continue to run.
    ///
    /// # Deadlocks
    ///
    /// In the cases that [`wait`](Self::wait) lists, it blocks for both times.
    pub(crate) fn state(&self) -> &'static RegistryState {
        self.state.state()
    }

    fn drained(&self) -> Option<Summary> {
        self.state().final_summary()
    }

    fn stragglers(&self) -> Stragglers {
        self.state().stragglers()
    }
}

impl Future for Shutdown {
    type Output = Summary;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Summary> {
        let state = self.state();
        self.waiter.poll(cx, || state.final_summary())
    }
}

/// Resolves after a moment at which nothing was in flight; see [`Registry::wait_idle`](crate::Registry::wait_idle).
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct WaitIdle {
    waiter: Waiter,
    state: StateRef,
}

impl WaitIdle {
    pub(crate) fn new(state: StateRef) -> Self {
        Self { waiter: Waiter::new(state.state().notifier()), state }
    }
}

impl Future for WaitIdle {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let state = self.state.state();
        // Requested before the check that decides to wait: a departure after that check notifies.
        let is_idle_after_request = || {
            state.request_idle();
            state.is_idle()
        };
        self.waiter.poll(cx, || (state.is_idle() || is_idle_after_request()).then_some(()))
    }
}

/// Starts the shutdown when it is dropped; see [`Registry::shutdown_on_drop`](crate::Registry::shutdown_on_drop).
#[derive(Debug)]
#[must_use = "a guard that is dropped immediately starts the shutdown immediately"]
pub struct ShutdownGuard(Option<StateRef>);

impl ShutdownGuard {
    pub(crate) fn new(state: StateRef) -> Self {
        Self(Some(state))
    }

    /// Drops the guard without starting the shutdown.
    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            state.state().start_shutdown();
        }
    }
}
