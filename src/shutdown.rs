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
    pub async fn until<D: Future>(self, deadline: D) -> Result<Summary, Stragglers> {
        match select(self, pin!(deadline)).await {
            Either::Left((summary, _)) => Ok(summary),
            Either::Right((_, shutdown)) => shutdown.drained().ok_or_else(|| shutdown.stragglers()),
        }
    }

    /// Blocks the thread until nothing is in flight, for hosts that are not async.
    ///
    /// # Deadlocks
    ///
    /// On a thread that has to run the tasks (of a current-thread runtime, say), or inside tracked work, it waits for itself.
    #[cfg(all(feature = "std", not(target_family = "wasm")))]
    #[cfg_attr(docsrs, doc(cfg(feature = "std")))]
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
    #[cfg_attr(docsrs, doc(cfg(feature = "std")))]
    pub fn wait_timeout(self, timeout: Duration) -> Result<Summary, Stragglers> {
        // A deadline that the clock cannot tell is none.
        let deadline = Instant::now().checked_add(timeout);
        let drained = self.hold.core().bell().block(deadline, || self.drained());
        drained.ok_or_else(|| self.stragglers())
    }

    fn drained(&self) -> Option<Summary> {
        self.hold.core().drained()
    }

    fn stragglers(&self) -> Stragglers {
        let core = self.hold.core();
        Stragglers::new(core.in_flight(), core.summary())
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
