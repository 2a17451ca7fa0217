use crate::state::{RegistryState, Shard};
use crate::sync::wait_list::Key;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use pin_project_lite::pin_project;

/// A future that resolves once its registry's shutdown has begun, and for ever after.
///
/// Every clone waits for itself. Cloning one counts nothing; polling and dropping it touch the shard of the thread that polled first. It keeps
/// neither the registry open nor its drain waiting. When the registry's last handle is dropped, nobody could begin the shutdown any more, so
/// that counts as its beginning.
///
/// # Cancel safety
///
/// It may be dropped and polled again at any time; nothing is missed.
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

    /// Returns whether the shutdown has begun.
    #[inline]
    pub fn is_triggered(&self) -> bool {
        self.state.phase() != self.phase
    }

    /// Runs a future until it finishes or the shutdown begins, whichever comes first: `None` says that it did not finish.
    ///
    /// A future that can finish when it is polled does, shutdown or not. One that cannot is dropped with what this returns,
    /// which happens when an `.await` of it ends. Nothing is allocated for waiting (with `std`).
    ///
    /// In a loop whose future is always ready, as that of a listener under load, ask [`is_triggered`](Self::is_triggered) first.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as the future itself.
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
    /// The future of [`ShutdownSignal::run_until_shutdown`].
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
