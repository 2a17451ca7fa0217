use crate::report::{Stragglers, Summary};
use crate::state::{RegistryState, StateRef};
use crate::sync::notifier::Waiter;
use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use futures_util::future::{Either, select};

/// A shutdown under way; resolves to the [`Summary`] once nothing is in flight and nothing will be.
///
/// The shutdown began when [`Registry::shutdown`](crate::Registry::shutdown) was called; this is only the wait for its end. Any number of
/// them can wait, on any thread; each keeps what it reads alive, and none keeps the registry open.
///
/// # Cancel safety
///
/// Dropping it ends the wait and nothing else: call `shutdown()` again for another.
#[derive(Debug)]
pub struct Shutdown {
    waiter: Waiter,
    state: StateRef,
}

impl Shutdown {
    pub(crate) fn new(state: StateRef) -> Self {
        Self { waiter: Waiter::new(state.state().notifier()), state }
    }

    /// Waits for the drain, or for `deadline`: any future of any runtime, most often its timer.
    ///
    /// After the deadline it looks once more, so a deadline that has passed already asks whether the registry has drained.
    ///
    /// # Errors
    ///
    /// [`Stragglers`] when something is still in flight. It goes on running: wait again, or leave the program.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends this wait and drops the deadline, and nothing else.
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

    /// Waits for the drain until `grace` is over, then [aborts](crate::Registry::abort) what can be aborted, and waits until `then` is.
    ///
    /// Most timers run from when they are made, so `then` makes its own when it is time.
    ///
    /// # Errors
    ///
    /// [`Stragglers`] when something is still in flight after that: what cannot be aborted (a blocking closure, a guard), or has not come to an
    /// await point, or was started after the abort. Of a registry that is not [inspected](crate::RegistryBuilder::inspect) nothing can be.
    ///
    /// # Cancel safety
    ///
    /// Dropping it ends this wait and drops the deadline, and nothing else: what has not been aborted by then is not.
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
    pub async fn or_abort<G, T>(mut self, grace: G, abort_timeout: impl FnOnce() -> T) -> Result<Summary, Stragglers>
    where
        G: Future,
        T: Future,
    {
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

/// Resolves once an instant with nothing in flight has been observed; see [`Registry::wait_idle`](crate::Registry::wait_idle).
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

/// Begins the shutdown when it is dropped; see [`Registry::shutdown_on_drop`](crate::Registry::shutdown_on_drop).
#[derive(Debug)]
#[must_use = "dropped at once, it begins the shutdown at once"]
pub struct ShutdownGuard(Option<StateRef>);

impl ShutdownGuard {
    pub(crate) fn new(state: StateRef) -> Self {
        Self(Some(state))
    }

    /// Lets go of the registry without beginning its shutdown.
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
