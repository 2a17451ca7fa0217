use crate::shards::{Lane, RegistryState};
use crate::wakers::Key;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use pin_project_lite::pin_project;

/// Resolves once the shutdown of its registry has started, and immediately whenever it is polled after that.
///
/// The shutdown starts when [`shutdown`](crate::Registry::shutdown) is called, when a loss starts it, or when the registry's last handle is
/// dropped. A signal neither keeps the registry open nor delays its drain.
///
/// Cloning a signal writes no shared memory. The first poll registers a waker in the shard of the polling thread; dropping the signal removes
/// it. Every clone waits separately.
///
/// # Cancel safety
///
/// A signal can be dropped, or polled again, at any time.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "smol")]
/// # smol::block_on(async {
/// use background_tasks::{Registry, SmolSpawner};
///
/// let registry = Registry::new(SmolSpawner);
/// let signal = registry.signal();
/// registry.run(async move {
///     while !signal.is_triggered() {
///         // a unit of work
///         smol::future::yield_now().await;
///     }
/// });
/// let summary = registry.shutdown().await;
/// assert_eq!(summary.completed, 1);
/// # });
/// ```
pub struct ShutdownSignal {
    core: &'static RegistryState,
    /// The core's phase while this signal's registry is open.
    phase: usize,
    enlisted: Option<(&'static Lane, Key)>,
}

impl ShutdownSignal {
    pub(crate) fn new(core: &'static RegistryState) -> Self {
        Self { core, phase: core.phase() & !1, enlisted: None }
    }

    /// Returns whether the shutdown has started.
    #[inline]
    pub fn is_triggered(&self) -> bool {
        self.core.phase() != self.phase
    }

    /// Runs a future until it finishes or the shutdown starts. The output is `None` if the future did not finish.
    ///
    /// The future is polled first: if it can finish in a poll, it does, even after the shutdown has started. Otherwise it is dropped
    /// together with the returned `RunUntilShutdown`, at the end of the `.await`.
    ///
    /// In a loop whose future is always ready, such as a listener under load, check [`is_triggered`](Self::is_triggered) in each round.
    ///
    /// With `std`, waiting allocates nothing, once the shard's list of wakers has grown.
    ///
    /// # Cancel safety
    ///
    /// The returned future is cancel safe if `future` is.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// use background_tasks::{Registry, SmolSpawner};
    ///
    /// let registry = Registry::new(SmolSpawner);
    /// let signal = registry.signal();
    /// registry.run(async move {
    ///     let forever = std::future::pending::<()>();
    ///     assert_eq!(signal.run_until_shutdown(forever).await, None);
    ///     // tidy up
    /// });
    /// assert!(registry.shutdown().await.is_clean());
    /// # });
    /// ```
    pub fn run_until_shutdown<F: Future>(&self, future: F) -> RunUntilShutdown<F> {
        RunUntilShutdown { future, signal: self.clone() }
    }
}

impl Future for ShutdownSignal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { core, phase, enlisted } = &mut *self;
        let live = || core.phase() == *phase;
        if !live() {
            return Poll::Ready(());
        }
        if let Some((lane, key)) = enlisted {
            return lane.wakers().renew(key, cx.waker(), live);
        }
        // On the lane of the thread that polls, which may not be the one that cloned (H2).
        let lane = core.lane();
        *enlisted = lane.wakers().enlist(cx.waker(), live).map(|key| (lane, key));
        if enlisted.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Clone for ShutdownSignal {
    fn clone(&self) -> Self {
        Self { enlisted: None, ..*self }
    }
}

impl Drop for ShutdownSignal {
    fn drop(&mut self) {
        if let Some((lane, key)) = self.enlisted.take() {
            // Once triggered, the list goes as a whole.
            let live = || !self.is_triggered();
            if live() {
                lane.wakers().delist(key, live);
            }
        }
    }
}

impl fmt::Debug for ShutdownSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownSignal").field("is_triggered", &self.is_triggered()).finish_non_exhaustive()
    }
}

pin_project! {
    /// Runs a future until it finishes or the shutdown starts; see [`ShutdownSignal::run_until_shutdown`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct RunUntilShutdown<F> {
        #[pin]
        future: F,
        signal: ShutdownSignal,
    }
}

impl<F: Future> Future for RunUntilShutdown<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.future.poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => Pin::new(this.signal).poll(cx).map(|()| None),
        }
    }
}
