use crate::bell::Waiter;
use crate::shards::Hold;
use crate::{Stragglers, Summary};
use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use futures_util::future::{Either, select};

#[cfg(all(feature = "std", not(target_family = "wasm")))]
use std::time::{Duration, Instant};

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
    hold: Hold,
}

impl Shutdown {
    pub(crate) fn new(hold: Hold) -> Self {
        Self { waiter: Waiter::new(hold.core().bell()), hold }
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
    /// let then = || Timer::after(Duration::from_secs(5));
    /// let summary = registry.shutdown().or_abort(grace, then).await.unwrap();
    /// assert_eq!(summary.aborted, 1);
    /// # });
    /// ```
    #[cfg(feature = "std")]
    pub async fn or_abort<G, T>(mut self, grace: G, then: impl FnOnce() -> T) -> Result<Summary, Stragglers>
    where
        G: Future,
        T: Future,
    {
        if let Some(summary) = self.drained_before(grace).await {
            return Ok(summary);
        }
        self.hold.core().abort();
        self.until(then()).await
    }

    async fn drained_before(&mut self, deadline: impl Future) -> Option<Summary> {
        match select(&mut *self, pin!(deadline)).await {
            Either::Left((summary, _)) => Some(summary),
            Either::Right((_, shutdown)) => shutdown.drained(),
        }
    }

    /// Blocks the thread until nothing is in flight, for hosts that are not async.
    ///
    /// # Deadlocks
    ///
    /// On a thread that has to run the tasks (of a current-thread runtime, say), or inside tracked work, it waits for itself.
    #[cfg(all(feature = "std", not(target_family = "wasm")))]
    pub fn wait(self) -> Summary {
        loop {
            if let Some(summary) = self.hold.core().bell().block(None, || self.drained()) {
                return summary;
            }
        }
    }

    /// Blocks the thread until nothing is in flight or the time is over. With a time of zero it looks and does not wait.
    ///
    /// # Errors
    ///
    /// [`Stragglers`] when something is still in flight after that time.
    ///
    /// # Deadlocks
    ///
    /// As with [`wait`](Self::wait), for that long.
    #[cfg(all(feature = "std", not(target_family = "wasm")))]
    pub fn wait_timeout(self, timeout: Duration) -> Result<Summary, Stragglers> {
        self.drained_within(timeout).ok_or_else(|| self.stragglers())
    }

    /// Blocks the thread until nothing is in flight; aborts what can be aborted when `grace` is over, and gives up when `then` is
    /// over too. Otherwise as [`or_abort`](Self::or_abort).
    ///
    /// # Errors
    ///
    /// [`Stragglers`] when something is still in flight after both times.
    ///
    /// # Deadlocks
    ///
    /// As with [`wait`](Self::wait), for that long.
    #[cfg(all(feature = "std", not(target_family = "wasm")))]
    pub fn wait_or_abort(self, grace: Duration, then: Duration) -> Result<Summary, Stragglers> {
        if let Some(summary) = self.drained_within(grace) {
            return Ok(summary);
        }
        self.hold.core().abort();
        self.wait_timeout(then)
    }

    #[cfg(all(feature = "std", not(target_family = "wasm")))]
    fn drained_within(&self, timeout: Duration) -> Option<Summary> {
        // A deadline that the clock cannot tell is none.
        let deadline = Instant::now().checked_add(timeout);
        self.hold.core().bell().block(deadline, || self.drained())
    }

    fn drained(&self) -> Option<Summary> {
        self.hold.core().drained()
    }

    fn stragglers(&self) -> Stragglers {
        Stragglers::new(self.hold.core())
    }
}

impl Future for Shutdown {
    type Output = Summary;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Summary> {
        let core = self.hold.core();
        self.waiter.poll(cx, || core.drained())
    }
}

/// Resolves once an instant with nothing in flight has been observed; see [`Registry::wait_idle`](crate::Registry::wait_idle).
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct WaitIdle {
    waiter: Waiter,
    hold: Hold,
}

impl WaitIdle {
    pub(crate) fn new(hold: Hold) -> Self {
        Self { waiter: Waiter::new(hold.core().bell()), hold }
    }
}

impl Future for WaitIdle {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let core = self.hold.core();
        // Asked before the look that decides to sleep: who leaves after that look rings.
        let asked = || {
            core.ask_idle();
            core.is_idle()
        };
        self.waiter.poll(cx, || (core.is_idle() || asked()).then_some(()))
    }
}

/// Begins the shutdown when it is dropped; see [`Registry::shutdown_on_drop`](crate::Registry::shutdown_on_drop).
#[derive(Debug)]
#[must_use = "dropped at once, it begins the shutdown at once"]
pub struct ShutdownGuard(Option<Hold>);

impl ShutdownGuard {
    pub(crate) fn new(hold: Hold) -> Self {
        Self(Some(hold))
    }

    /// Lets go of the registry without beginning its shutdown.
    pub fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        if let Some(hold) = &self.0 {
            hold.core().begin_shutdown();
        }
    }
}
