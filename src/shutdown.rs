use crate::bell::Waiter;
use crate::shards::Hold;
use crate::{Stragglers, Summary};
use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use futures_util::future::{Either, select};

#[cfg(all(feature = "std", not(target_family = "wasm")))]
use std::time::{Duration, Instant};

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
    hold: Hold,
}

impl Shutdown {
    pub(crate) fn new(hold: Hold) -> Self {
        Self { waiter: Waiter::new(hold.core().bell()), hold }
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

    /// Blocks the thread until the registry has drained, for programs that are not async.
    ///
    /// # Deadlocks
    ///
    /// Never returns on a thread that must run the tasks, such as the thread of a current-thread runtime. Never returns inside a task
    /// either, or while the caller holds a guard: it would wait for itself.
    #[cfg(all(feature = "std", not(target_family = "wasm")))]
    pub fn wait(self) -> Summary {
        loop {
            if let Some(summary) = self.hold.core().bell().block(None, || self.drained()) {
                return summary;
            }
        }
    }

    /// Blocks the thread until the registry has drained, or until `timeout` has elapsed. With a timeout of zero it only checks.
    ///
    /// # Errors
    ///
    /// [`Stragglers`] if tasks are still in flight after `timeout`. They continue to run.
    ///
    /// # Deadlocks
    ///
    /// In the cases that [`wait`](Self::wait) lists, it blocks for the whole timeout and returns the error.
    #[cfg(all(feature = "std", not(target_family = "wasm")))]
    pub fn wait_timeout(self, timeout: Duration) -> Result<Summary, Stragglers> {
        self.drained_within(timeout).ok_or_else(|| self.stragglers())
    }

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

/// Resolves after a moment at which nothing was in flight; see [`Registry::wait_idle`](crate::Registry::wait_idle).
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

/// Starts the shutdown when it is dropped; see [`Registry::shutdown_on_drop`](crate::Registry::shutdown_on_drop).
#[derive(Debug)]
#[must_use = "dropped at once, it begins the shutdown at once"]
pub struct ShutdownGuard(Option<Hold>);

impl ShutdownGuard {
    pub(crate) fn new(hold: Hold) -> Self {
        Self(Some(hold))
    }

    /// Drops the guard without starting the shutdown.
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
