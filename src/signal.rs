use crate::state::RegistryState;
use crate::sync::{slab::Key, wait_list::WaitList};
use core::task::{Context, Poll};
use core::{fmt, pin::Pin};
use futures_util::future::FusedFuture;
use pin_project_lite::pin_project;

/// A future that resolves as soon as the shutdown of its registry has started. From then on, every poll of the signal returns
/// `Ready`.
///
/// The signal resolves in these cases:
///
/// - A caller starts the shutdown, for example with [`Registry::shutdown`](crate::Registry::shutdown).
/// - The registry's last handle is dropped.
/// - The registry is a [child](crate::Registry::child), and the shutdown of its parent starts. If the shutdown of the parent
///   has started before the child is created, the child's signal is triggered from the start.
/// - A [critical](crate::Registry::critical) task is lost.
/// - A task fails or panics, and an option of the registry starts the shutdown in this case.
///
/// A shutdown signal does not keep its registry open, and the drain does not wait for signals.
///
/// `futures::select!` accepts a signal in a loop, because the signal implements [`FusedFuture`]. After the signal has resolved,
/// the next iterations of the loop skip the signal's branch. In `tokio::select!`, the branch needs a precondition (`, if …`),
/// because each further poll of the resolved signal returns `Ready` again.
///
/// Cloning a signal writes no memory that other threads use. The first poll of a signal registers a waker in a list that
/// belongs to the polling thread. Dropping the signal removes the waker. Each clone of a signal registers its own waker.
///
/// # Cancel safety
///
/// A signal can be dropped at any time. After a signal has resolved, it can still be polled.
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
    /// While this signal's registry is open, the phase (a counter) of the state has this value, which is even. If the state has a
    /// different phase, the signal is triggered.
    ///
    /// After this signal has resolved, the field contains the even value minus one, which is odd. Only an earlier registry can have
    /// used the state with this odd phase. All later phases of the state are different, so the signal stays triggered.
    phase: usize,
    waiting: Option<(&'static WaitList, Key)>,
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

    /// Runs `future` until `future` finishes or the shutdown starts. Returns `None` if the shutdown started before `future`
    /// finished.
    ///
    /// Each poll of the returned future first polls `future`, and then checks the signal. If `future` is ready, the result is its
    /// output, even if the shutdown has started. If the shutdown has started and `future` is not ready, the result is `None`, and
    /// `future` is dropped.
    ///
    /// This method is similar to `run_until_cancelled` of tokio-util's `CancellationToken`, with one difference. If the shutdown
    /// has started before the call, `run_until_shutdown` still polls `future` one time. `run_until_cancelled` does not poll its
    /// future in this case. If a task starts during the drain, it can therefore still do work that does not wait. To skip this
    /// work, check [`is_triggered`](Self::is_triggered) first.
    ///
    /// If a loop calls this method with a future that is always ready, such as `accept` under load, the method never returns
    /// `None`. To stop at the shutdown, such a loop must also check [`is_triggered`](Self::is_triggered) in each iteration.
    ///
    /// With the feature `std`, a wait allocates memory only if the list of wakers must grow.
    ///
    /// # Cancel safety
    ///
    /// The returned future is cancel safe if `future` is cancel safe.
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

    #[inline]
    fn poll_phase(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { state, phase, waiting } = self;
        let is_live = || state.phase() == *phase;
        if !is_live() {
            return Poll::Ready(());
        }
        if let Some((list, key)) = waiting {
            return list.update(*key, cx.waker(), is_live);
        }
        // The list belongs to the shard of the polling thread, not of the thread that cloned the signal. Therefore the poll
        // writes only cache lines of the polling thread (invariant H2).
        let list = state.signals();
        *waiting = list.insert(cx.waker(), || state.signal_margin(), is_live).map(|key| (list, key));
        if waiting.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Future for ShutdownSignal {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = self.poll_phase(cx);
        if polled.is_ready() {
            self.phase = self.phase.wrapping_sub(1) | 1;
        }
        polled
    }
}

impl FusedFuture for ShutdownSignal {
    /// Returns whether a poll of this signal has returned `Ready`. If a triggered signal has not been polled, it is not terminated.
    /// A clone of a terminated signal is not terminated.
    fn is_terminated(&self) -> bool {
        self.phase & 1 == 1
    }
}

impl Clone for ShutdownSignal {
    fn clone(&self) -> Self {
        Self { phase: self.phase.wrapping_add(self.phase & 1), waiting: None, ..*self }
    }
}

impl Drop for ShutdownSignal {
    fn drop(&mut self) {
        if let Some((list, key)) = self.waiting.take() {
            // A triggered signal has no entry in the wait list, because the start of the shutdown empties the list.
            let is_live = || !self.is_triggered();
            if is_live() {
                list.remove(key, is_live);
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
    /// Runs a future until the future finishes or the shutdown starts. [`ShutdownSignal::run_until_shutdown`] returns this type.
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
