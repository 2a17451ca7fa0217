use crate::state::{RegistryState, Shard};
use crate::sync::wait_list::Key;
use core::task::{Context, Poll};
use core::{fmt, pin::Pin};
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
    state: &'static RegistryState,
    /// The state's phase while this signal's registry is open.
    phase: usize,
    waiting: Option<(&'static Shard, Key)>,
}

impl ShutdownSignal {
    pub(crate) fn new(state: &'static RegistryState) -> Self {
        Self { state, phase: state.phase() & !1, waiting: None }
    }

    /// Returns whether the shutdown has started.
    #[inline]
    pub fn is_triggered(&self) -> bool {
        self.state.phase() != self.phase
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
        let Self { state, phase, waiting } = &mut *self;
        let is_live = || state.phase() == *phase;
        if !is_live() {
            return Poll::Ready(());
        }
        if let Some((shard, key)) = waiting {
            return shard.signals().update(*key, cx.waker(), is_live);
        }
        // On the shard of the thread that polls. The thread that cloned the signal may have been another (H2).
        let shard = state.shard();
        *waiting = shard.signals().insert(cx.waker(), is_live).map(|key| (shard, key));
        if waiting.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Clone for ShutdownSignal {
    fn clone(&self) -> Self {
        Self { waiting: None, ..*self }
    }
}

impl Drop for ShutdownSignal {
    fn drop(&mut self) {
        if let Some((shard, key)) = self.waiting.take() {
            // A triggered signal has no entry: the trigger empties the list.
            let is_live = || !self.is_triggered();
            if is_live() {
                shard.signals().remove(key, is_live);
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
