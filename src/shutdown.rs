use crate::report::{Stragglers, Summary};
use crate::state::{RegistryState, StateRef};
use crate::sync::notifier::Waiter;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use futures_util::future::{Either, FusedFuture, select};

/// Waits until a registry has drained, and resolves to the final [`Summary`].
///
/// [`Registry::shutdown`](crate::Registry::shutdown) starts the shutdown and returns this future. Any number of `Shutdown` futures
/// can wait for the same drain, on any thread. After the registry has drained, every poll returns `Ready`.
///
/// # Cancel safety
///
/// If the future is dropped, the shutdown continues. To wait again, call `shutdown()` again: the new future waits for the same
/// drain.
#[derive(Debug)]
#[must_use = "the shutdown has started, but nothing waits for the drain: await it, or call `start_shutdown` instead"]
pub struct Shutdown {
    waiter: Waiter,
    state: StateRef,
}

impl Shutdown {
    pub(crate) fn new(state: StateRef) -> Self {
        Self { waiter: Waiter::new(state.state().notifier()), state }
    }

    /// Waits until the registry has drained or `deadline` resolves. The parameter `deadline` can be any future, such as a timer of
    /// the runtime, or a future that waits for a second Ctrl-C. If the deadline is a duration and the spawner implements
    /// [`Timer`](crate::Timer), [`Registry::shutdown_within`](crate::Registry::shutdown_within) is shorter.
    ///
    /// After `deadline` has resolved, this method checks one more time whether the registry has drained. If `deadline` is ready at
    /// its first poll, this method does not wait. It only checks whether the registry has drained.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight when `deadline` resolves. These tasks continue to run.
    ///
    /// # Cancel safety
    ///
    /// If the returned future is dropped, `deadline` is dropped and the wait ends. The shutdown continues.
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
        self.drained_before(deadline).await.ok_or_else(|| self.state().stragglers())
    }

    /// Waits until the registry has drained or `grace` resolves. If `grace` resolves first, this method
    /// [aborts](crate::Registry::abort) the remaining tasks of an [inspected](crate::RegistryBuilder::inspect) registry. It then
    /// calls the closure `abort_timeout`, and waits until the registry has drained or the future from the closure resolves.
    ///
    /// After `grace` has resolved, an inspected registry also aborts each task that starts later, for example in the destructor of
    /// an aborted task. Such a task is dropped before its first poll, and counts as aborted. Work that cannot be aborted, such as a
    /// guard, still starts as usual. In contrast, `Registry::abort` aborts only the tasks that are in flight at the call. A
    /// registry that is not inspected aborts no task.
    ///
    /// `abort_timeout` is a closure and not a future, because the time of most timers starts when the timer is created. This method
    /// therefore creates the timer only after `grace` has resolved.
    ///
    /// # Errors
    ///
    /// Returns [`Stragglers`] if tasks are still in flight when the future returned by `abort_timeout` resolves. A task can still
    /// be in flight for one of these reasons:
    ///
    /// - The task is a guard, a tracked future, a child registry or a blocking closure that has started. These tasks cannot be
    ///   aborted.
    /// - The task is a blocking closure that was aborted before it started, but its executor has not dropped the closure yet.
    /// - The task has not reached an await point.
    /// - The registry is not [inspected](crate::RegistryBuilder::inspect), so none of its tasks can be aborted.
    ///
    /// # Work that continues
    ///
    /// If an aborted task has itself started work that the registry does not count, this work can continue after the drain.
    /// Examples are a closure in `tokio::task::spawn_blocking` and an operation of `tokio::fs`.
    /// [`Registry::abort`](crate::Registry::abort) describes how to count such work.
    ///
    /// # Cancel safety
    ///
    /// If the returned future is dropped, the wait ends, but the shutdown continues. If this future is dropped before `grace`
    /// resolves, no task is aborted. If this future is dropped after `grace` has resolved, an inspected registry still aborts each
    /// task that starts later, until the registry has drained.
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
        self.state().start_aborting();
        self.until(abort_timeout()).await
    }

    async fn drained_before(&mut self, deadline: impl Future) -> Option<Summary> {
        match select(&mut *self, pin!(deadline)).await {
            Either::Left((summary, _)) => Some(summary),
            Either::Right((_, shutdown)) => shutdown.state().final_summary(),
        }
    }

    pub(crate) fn state(&self) -> &'static RegistryState {
        self.state.state()
    }
}

impl Future for Shutdown {
    type Output = Summary;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Summary> {
        let state = self.state();
        self.waiter.poll(cx, || state.poll_drained())
    }
}

impl FusedFuture for Shutdown {
    /// Returns whether this future has resolved. In a loop, `futures::select!` calls this method to skip a future that has
    /// resolved.
    fn is_terminated(&self) -> bool {
        self.waiter.has_resolved()
    }
}

/// Resolves when a poll finds no task in flight except [services](crate::Registry::service).
/// [`Registry::wait_idle`](crate::Registry::wait_idle) returns this future.
///
/// A `WaitIdle` that has resolved can be polled again. It then resolves when a later poll finds no task in flight except
/// services.
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
        // This closure first requests a notification, and then checks whether the registry is idle. Because of this order, if a task is
        // in flight during the check, its end notifies the waiter.
        let is_idle_after_request = || {
            state.request_idle();
            state.is_idle()
        };
        self.waiter.poll(cx, || (state.is_idle() || is_idle_after_request()).then_some(()))
    }
}

impl FusedFuture for WaitIdle {
    /// Returns whether this future has resolved. In a loop, `futures::select!` calls this method to skip a future that has
    /// resolved.
    fn is_terminated(&self) -> bool {
        self.waiter.has_resolved()
    }
}

/// A guard that starts the shutdown when it is dropped. [`Registry::shutdown_on_drop`](crate::Registry::shutdown_on_drop) returns
/// this guard.
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
