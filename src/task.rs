//! Defines the futures and guards that count as in flight.
//!
//! Each of them contains a token. When a task ends, its future first drops all values of the task, and then releases the token.
//! After that, the task no longer counts as in flight.

use crate::platform::{Payload, catch, drop_quietly, ignore_panic, panicking_thread, resume};
use crate::report::TaskOutput;
use crate::state::{Token, UnreportedLoss};
use crate::sync::slot_table::Slot;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use core::{fmt, mem};
use pin_project_lite::pin_project;

pin_project! {
    /// Contains the future of a task and the task's token, which proves that the task is counted. After the future has been
    /// dropped, this enum contains nothing. The enum needs no memory for a discriminant, because the compiler represents the
    /// variant `Dropped` by a bit pattern that no token has.
    #[project = WorkProjection]
    enum Work<F> {
        Live { #[pin] future: F, token: Token },
        Dropped,
    }
}

impl<F> Work<F> {
    /// Drops the future in place.
    fn drop_future(mut self: Pin<&mut Self>) {
        self.set(Work::Dropped);
    }

    /// Returns the token, or `None` if the future has been dropped.
    ///
    /// This function uses the pin projection. A shared reference to the whole enum would alias data that the future borrows from
    /// itself.
    fn token(self: Pin<&mut Self>) -> Option<Token> {
        match self.project() {
            WorkProjection::Live { token, .. } => Some(*token),
            WorkProjection::Dropped => None,
        }
    }

    /// Drops a future that has not finished. Returns `None` if the future was dropped earlier. Otherwise the caller must release
    /// the returned token, because the task still counts as in flight (invariants S2 and S5).
    ///
    /// If the future's destructor panics, the result contains the payload of this panic.
    fn drop_unfinished(
        mut self: Pin<&mut Self>,
        loss: impl FnOnce(&Token) -> UnreportedLoss,
    ) -> Option<(Token, UnreportedLoss, Option<Payload>)> {
        let token = self.as_mut().token()?;
        let payload = catch(|| self.drop_future()).err();
        let loss = payload.as_ref().map_or_else(|| loss(&token), |payload| token.panicked(payload));
        Some((token, loss, payload))
    }
}

impl<F: Future> Work<F> {
    /// Polls the future. If the future finishes or panics, this function takes these steps in this order (invariant S2):
    ///
    /// 1. It drops the future in place.
    /// 2. It passes the future's value to the closure `output`, or the payload of the panic to the closure `panic`.
    /// 3. It passes the result of step 2 to the closure `release`, which stops counting the task as in flight.
    #[inline]
    fn poll<T, R>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        output: impl FnOnce(Token, F::Output) -> (Option<UnreportedLoss>, T),
        panic: impl FnOnce(&UnreportedLoss, Payload) -> T,
        release: impl FnOnce(Token, Option<UnreportedLoss>, T) -> R,
    ) -> Poll<R> {
        let token = self.as_mut().token().expect("polled after it finished");
        let polled = catch(|| match self.as_mut().project() {
            WorkProjection::Live { future, .. } => future.poll(cx).map(|value| {
                self.as_mut().drop_future();
                output(token, value)
            }),
            WorkProjection::Dropped => Poll::Pending,
        });
        let (loss, value) = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(ended)) => ended,
            Err(payload) => {
                ignore_panic(|| self.drop_future());
                let loss = token.panicked(&payload);
                let value = panic(&loss, payload);
                (Some(loss), value)
            }
        };
        Poll::Ready(release(token, loss, value))
    }
}

/// Stops counting a task as in flight. If `loss` is `None`, the task counts as completed.
#[inline]
fn release<T>(token: Token, loss: Option<UnreportedLoss>, value: T) -> T {
    match loss {
        None => token.leave(),
        Some(loss) => token.lose(loss),
    }
    value
}

/// Receives the output of a task, and can abort the task.
pub(crate) trait OutputReceiver<T> {
    /// The result of a task that has ended: its output or its loss, in the form that the receiver needs.
    type End;

    /// Converts the output of the task to an `End`. Also returns the task's loss, or `None` if the task completed.
    fn completed(token: Token, output: T) -> (Option<UnreportedLoss>, Self::End);

    /// Converts the loss of a task that has no output to an `End`. If the task panicked, `payload` contains the payload of the
    /// panic.
    fn lost(loss: &UnreportedLoss, payload: Option<Payload>) -> Self::End;

    /// Stops counting the task as in flight. If the task has a handle, passes `end` to the handle.
    fn release(&mut self, token: Token, loss: Option<UnreportedLoss>, end: Self::End);

    /// Returns whether the receiver has aborted the task.
    fn is_aborted(&self) -> bool;

    /// Stores the waker that the receiver calls when it aborts the task. After this call, the caller must call
    /// [`is_aborted`](Self::is_aborted).
    fn store_waker(&mut self, waker: &Waker);

    /// Returns the loss that the registry counts if the task is dropped before it finishes.
    fn dropped(&self, token: &Token) -> UnreportedLoss;
}

/// Receives the output of a task that has no handle. Converts an error in the output to a loss, and drops the output.
pub(crate) struct NoReceiver;

impl<T: TaskOutput> OutputReceiver<T> for NoReceiver {
    type End = ();

    #[inline]
    fn completed(token: Token, output: T) -> (Option<UnreportedLoss>, ()) {
        (output.error().map(|error| token.failed(error)), ())
    }

    #[inline]
    fn lost(_: &UnreportedLoss, payload: Option<Payload>) {
        if let Some(payload) = payload {
            drop_quietly(payload);
        }
    }

    #[inline]
    fn release(&mut self, token: Token, loss: Option<UnreportedLoss>, (): ()) {
        release(token, loss, ());
    }

    #[inline]
    fn is_aborted(&self) -> bool {
        false
    }

    #[inline]
    fn store_waker(&mut self, _: &Waker) {}

    #[inline]
    fn dropped(&self, token: &Token) -> UnreportedLoss {
        token.dropped()
    }
}

pin_project! {
    /// The future that a registry passes to its spawner. It catches all panics of the task (invariant S6), and counts the task's
    /// outcome (invariant S5).
    pub(crate) struct Task<F, R>
    where
        F: Future,
        R: OutputReceiver<F::Output>,
    {
        #[pin]
        work: Work<F>,
        receiver: R,
    }

    impl<F, R> PinnedDrop for Task<F, R>
    where
        F: Future,
        R: OutputReceiver<F::Output>,
    {
        fn drop(this: Pin<&mut Self>) {
            this.drop_unfinished(R::dropped);
        }
    }
}

impl<F: Future, R: OutputReceiver<F::Output>> Task<F, R> {
    pub(crate) fn new(future: F, token: Token, receiver: R) -> Self {
        Self { work: Work::Live { future, token }, receiver }
    }

    /// Drops a future that has not finished, and then stops counting the task as in flight (invariants S2 and S5).
    fn drop_unfinished(self: Pin<&mut Self>, loss: impl FnOnce(&R, &Token) -> UnreportedLoss) {
        let this = self.project();
        if let Some((token, loss, payload)) = this.work.drop_unfinished(|token| loss(this.receiver, token)) {
            let end = R::lost(&loss, payload);
            this.receiver.release(token, Some(loss), end);
        }
    }
}

impl<F: Future, R: OutputReceiver<F::Output>> Future for Task<F, R> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.as_mut().project();
        let (mut work, receiver) = (this.work, this.receiver);
        let slot = work.as_mut().token().and_then(|token| token.slot());
        if receiver.is_aborted() || slot.is_some_and(Slot::is_aborted) {
            self.drop_unfinished(|_, _| UnreportedLoss::Aborted);
            return Poll::Ready(());
        }
        let panic = |loss: &UnreportedLoss, payload| R::lost(loss, Some(payload));
        let release = |token, loss, end| receiver.release(token, loss, end);
        let polled = work.as_mut().poll(cx, R::completed, panic, release);
        if polled.is_pending() {
            // An inspected task stores its waker in its slot. All aborts of an inspected task use the slot, even the aborts by its
            // handle.
            match slot {
                Some(slot) if slot.is_abortable() => ignore_panic(|| slot.store_waker(cx.waker())),
                _ => ignore_panic(|| receiver.store_waker(cx.waker())),
            }
            if receiver.is_aborted() || slot.is_some_and(Slot::is_aborted) {
                self.drop_unfinished(|_, _| UnreportedLoss::Aborted);
                return Poll::Ready(());
            }
        }
        polled
    }
}

impl<F: Future, R: OutputReceiver<F::Output>> Task<F, R> {
    /// Runs the task of a blocking closure. The task's future calls the closure, and finishes in its first poll. If the task was
    /// aborted, the closure is not called.
    pub(crate) fn run(self) {
        let mut task = pin!(self);
        // After `disable_abort`, an abort reports that the closure cannot be aborted (invariant L3). If an abort came earlier,
        // `poll` drops the closure.
        if let Some(slot) = task.as_mut().project().work.token().and_then(|token| token.slot()) {
            slot.disable_abort();
        }
        let polled = task.poll(&mut Context::from_waker(Waker::noop()));
        debug_assert!(polled.is_ready());
    }
}

pin_project! {
    /// Wraps a future, and counts it as in flight until it finishes or is dropped; see
    /// [`Registry::track`](crate::Registry::track).
    ///
    /// When the inner future finishes, `Tracked` first drops this future, and then stops counting it as in flight. Therefore the
    /// drain ends only after all destructors of the inner future have finished. A `Tracked` is two machine words larger than its
    /// inner future.
    ///
    /// # Panics
    ///
    /// If the inner future panics, `Tracked` counts the panic, and then `poll` panics with the same payload. If a `Tracked` is
    /// dropped and the destructor of its inner future panics, the drop panics with the same payload. There is one exception: the
    /// drop does not panic if the thread is already panicking.
    ///
    /// A poll also panics if the `Tracked` has already returned `Ready` or has already panicked.
    #[must_use = "futures do nothing unless polled, and an unfinished one that is dropped counts as abandoned"]
    pub struct Tracked<F> {
        #[pin]
        work: Work<F>,
    }

    impl<F> PinnedDrop for Tracked<F> {
        fn drop(this: Pin<&mut Self>) {
            let Some((token, loss, payload)) = this.project().work.drop_unfinished(Token::dropped) else { return };
            token.lose(loss);
            match payload {
                Some(payload) if panicking_thread().is_some() => drop_quietly(payload),
                Some(payload) => resume(payload),
                None => {}
            }
        }
    }
}

impl<F> Tracked<F> {
    pub(crate) fn new(future: F, token: Token) -> Self {
        Self { work: Work::Live { future, token } }
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let output = |_, output| (None, Ok(output));
        let polled = self.project().work.poll(cx, output, |_, payload| Err(payload), release);
        polled.map(|ended| ended.unwrap_or_else(|payload| resume(payload)))
    }
}

impl<F> fmt::Debug for Tracked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").finish_non_exhaustive()
    }
}

/// Stops counting a guard's work as in flight. If the current thread is panicking, and the panic started after the guard was
/// taken, the work counts as panicked. In all other cases, `loss` is the outcome of the work. If `loss` is `None`, the work
/// counts as completed.
#[cold]
fn end_guard(token: Token, loss: Option<UnreportedLoss>) {
    let is_panicked = panicking_thread().is_some_and(|thread| token.panicking_at_start() != Some(thread));
    release(token, if is_panicked { Some(UnreportedLoss::Panicked("dropped by a panic".into())) } else { loss }, ());
}

fn fmt_guard(token: Token, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    f.debug_struct(name).field("task", &format_args!("{}", token.info())).finish_non_exhaustive()
}

/// Counts a piece of work as in flight until the guard is dropped; see [`Registry::guard`](crate::Registry::guard).
///
/// When the guard is dropped, the work counts as completed. This is true even if the guard is dropped early, because its owner was
/// dropped or aborted. If such work must count as abandoned instead, call [`require_completion`](Self::require_completion).
///
/// With the feature `std`, the work counts as panicked if the guard is dropped while its thread is panicking. There is one
/// exception: if the thread was already panicking when the guard was taken, the work counts as completed. For example, a destructor
/// can take and drop a guard during a panic. (The mutexes of `std` have the same rule for poisoning.)
#[must_use = "a guard that is dropped immediately guards nothing"]
pub struct Guard(Token);

impl Guard {
    #[inline]
    pub(crate) fn new(token: Token) -> Self {
        Self(token)
    }

    /// Returns a guard whose work counts as completed only if [`complete`](CompletionGuard::complete) is called. If the guard is
    /// dropped without this call, the work counts as abandoned. If a panic drops the guard, the work counts as panicked.
    ///
    /// Call this method if the owner of the guard can be dropped before the work is done. For example, the owner can be a future,
    /// and a `select!` or an abort can drop the future.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")]
    /// # smol::block_on(async {
    /// # use background_tasks::{Registry, SmolSpawner};
    /// # async fn write_report() {}
    /// let registry = Registry::new(SmolSpawner);
    /// let guard = registry.named("report").guard().unwrap().require_completion();
    /// let task = smol::spawn(async move {
    ///     write_report().await;
    ///     guard.complete();
    /// });
    /// task.cancel().await; // drops the future, perhaps before it has called `complete`
    /// let summary = registry.shutdown().await;
    /// assert_eq!(summary.completed + summary.abandoned, 1);
    /// # });
    /// ```
    pub fn require_completion(self) -> CompletionGuard {
        let token = self.0;
        mem::forget(self);
        CompletionGuard(token)
    }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        if panicking_thread().is_none() {
            self.0.leave();
        } else {
            end_guard(self.0, None);
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_guard(self.0, f, "Guard")
    }
}

/// Counts a piece of work as in flight until [`complete`](Self::complete) is called or the guard is dropped.
/// [`Guard::require_completion`] returns this guard.
///
/// If the guard is dropped, the work counts as abandoned. If a panic drops the guard, the work counts as panicked, unless the
/// thread was already panicking when the guard was taken.
#[must_use = "work whose guard is dropped counts as abandoned"]
pub struct CompletionGuard(Token);

impl CompletionGuard {
    /// Consumes the guard and counts the work as completed, even if the thread is panicking.
    pub fn complete(self) {
        let token = self.0;
        mem::forget(self);
        token.leave();
    }
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        end_guard(self.0, Some(UnreportedLoss::Abandoned));
    }
}

impl fmt::Debug for CompletionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_guard(self.0, f, "CompletionGuard")
    }
}
