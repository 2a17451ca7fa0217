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
/// - The program calls a method that starts the shutdown, for example [`Registry::shutdown`](crate::Registry::shutdown).
/// - The registry's last handle is dropped.
/// - The registry is a [child](crate::Registry::child), and the shutdown of its parent starts. If the parent is already
///   draining when the child is created, the child's signal is triggered from the start.
/// - A [critical](crate::Registry::critical) task is lost.
/// - A task fails or panics, and the option [`shutdown_on_failure`](crate::RegistryBuilder::shutdown_on_failure) or
///   [`shutdown_on_panic`](crate::RegistryBuilder::shutdown_on_panic) is set.
///
/// A shutdown signal does not keep its registry open, and the drain does not wait for signals.
///
/// A loop can pass the same signal to `futures::select!` in each iteration, because the signal implements [`FusedFuture`].
/// After the signal has resolved, `futures::select!` skips its branch. `tokio::select!` does not skip the branch: each poll of
/// the resolved signal returns `Ready` again. In a loop, this branch therefore needs a precondition (`, if …`).
///
/// Signals are cheap, because threads rarely write to the same memory. Cloning a signal writes no memory that other threads
/// use. The first poll of a signal stores a waker in a list in the polling thread's shard. The drop of the signal removes the
/// waker. Each clone stores its own waker.
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
    /// The phase that the state has while this signal's registry is open. A state serves several registries, one after the other,
    /// and its phase only grows. The phase is even while a registry is open. The start of the shutdown adds one, so the phase is
    /// then odd. The next registry that uses the state begins with the next even number. The signal is triggered if the state's
    /// current phase differs from this field.
    ///
    /// When this signal resolves, it subtracts one from this field, so the field is then odd. The state had this odd phase, if at
    /// all, before this signal's registry used the state. The phase only grows, so the state never has this phase again. Therefore
    /// the signal stays triggered.
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

    /// Runs `future` until `future` finishes or the shutdown starts. The result is the output of `future`, or `None` if the
    /// shutdown started first.
    ///
    /// Each poll of the returned future first polls `future`, and then checks the signal. If `future` is ready, the result is its
    /// output, even if the shutdown has started. If the shutdown has started and `future` is not ready, the result is `None`, and
    /// `future` is dropped.
    ///
    /// This method is similar to `run_until_cancelled` of tokio-util's `CancellationToken`, with one difference. If the shutdown
    /// has started before the call, `run_until_shutdown` still polls `future` one time. `run_until_cancelled` does not poll its
    /// future in this case. A task that starts during the drain can therefore still do work that is ready at its first poll. To
    /// skip this work, check [`is_triggered`](Self::is_triggered) first.
    ///
    /// If a loop calls this method with a future that is always ready, such as `accept` under load, the result is never `None`. To
    /// stop at the shutdown, such a loop must also check [`is_triggered`](Self::is_triggered) in each iteration.
    ///
    /// The returned future stores its waker in a list. It allocates memory only if this list must grow.
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
        // This list belongs to the shard of the polling thread, and not to the shard of the thread that cloned the signal.
        // Therefore the poll writes only cache lines of the polling thread's shard (invariant H2).
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
