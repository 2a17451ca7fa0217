use crate::TaskOutput;
use crate::panics::{Payload, contain, discard, panicking, resume, shield};
#[cfg(feature = "std")]
use crate::roster::Slot;
use crate::token::{Loss, Token};
use core::fmt;
use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use pin_project_lite::pin_project;

pin_project! {
    /// A future and the count that it holds, in one place without a word of its own: `Gone` is the token's niche.
    #[project = WorkProjection]
    enum Work<F> {
        Live { #[pin] future: F, token: Token },
        Gone,
    }
}

impl<F> Work<F> {
    /// Drops the future where it is.
    fn end(mut self: Pin<&mut Self>) {
        self.set(Work::Gone);
    }

    /// Through the projection: a shared reference to all of it would cover what the future borrows from itself.
    fn token(self: Pin<&mut Self>) -> Option<Token> {
        match self.project() {
            WorkProjection::Live { token, .. } => Some(*token),
            WorkProjection::Gone => None,
        }
    }

    /// Drops a future that has not finished, has `panic` deal with what its destructor panicked with, then gives its count back (S2, S5).
    fn cut<T>(mut self: Pin<&mut Self>, loss: Loss, panic: impl FnOnce(Payload) -> T) -> Option<T> {
        let token = self.as_mut().token()?;
        let panicked = contain(|| self.end()).err().map(|payload| (token.panicked(&payload), panic(payload)));
        let (loss, value) = panicked.map_or((loss, None), |(loss, value)| (loss, Some(value)));
        token.lose(loss);
        value
    }
}

impl<F: Future> Work<F> {
    /// Polls the future. When it has come to its end, by either way, drops it in place, has `output` or `panic` deal with what
    /// is left of it, and only then gives the count back (S2).
    fn poll<T>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        output: impl FnOnce(Token, F::Output) -> (Option<Loss>, T),
        panic: impl FnOnce(Payload) -> T,
    ) -> Poll<T> {
        let token = self.as_mut().token().expect("polled after it had finished");
        let polled = contain(|| match self.as_mut().project() {
            WorkProjection::Live { future, .. } => future.poll(cx).map(|value| {
                self.as_mut().end();
                output(token, value)
            }),
            WorkProjection::Gone => Poll::Pending,
        });
        let (loss, value) = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(ended)) => ended,
            Err(payload) => {
                shield(|| self.end());
                (Some(token.panicked(&payload)), panic(payload))
            }
        };
        match loss {
            None => token.leave(),
            Some(loss) => token.lose(loss),
        }
        Poll::Ready(value)
    }
}

pin_project! {
    /// What a registry gives to a spawner: nothing that happens inside leaves it, and every way out is counted.
    pub(crate) struct Task<F> {
        #[pin]
        work: Work<F>,
    }

    impl<F> PinnedDrop for Task<F> {
        fn drop(this: Pin<&mut Self>) {
            this.project().work.cut(Loss::Abandoned, discard);
        }
    }
}

impl<F> Task<F> {
    pub(crate) fn new(future: F, token: Token) -> Self {
        Self { work: Work::Live { future, token } }
    }
}

impl<F> Future for Task<F>
where
    F: Future,
    F::Output: TaskOutput,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut work = self.project().work;
        #[cfg(feature = "std")]
        let slot = work.as_mut().token().and_then(|token| token.slot());
        #[cfg(feature = "std")]
        if slot.is_some_and(Slot::must_abort) {
            work.cut(Loss::Aborted, discard);
            return Poll::Ready(());
        }
        let output = |token: Token, output: F::Output| match output.error() {
            None => (None, ()),
            Some(error) => (Some(token.failed(error)), ()),
        };
        let polled = work.as_mut().poll(cx, output, discard);
        #[cfg(feature = "std")]
        if let (Poll::Pending, Some(slot)) = (polled, slot) {
            shield(|| slot.park(cx.waker()));
            if slot.must_abort() {
                work.cut(Loss::Aborted, discard);
                return Poll::Ready(());
            }
        }
        polled
    }
}

impl<F> Task<F>
where
    F: Future,
    F::Output: TaskOutput,
{
    /// Runs a task that never waits: a closure on a thread for blocking work.
    pub(crate) fn run(self) {
        let polled = pin!(self).poll(&mut Context::from_waker(Waker::noop()));
        debug_assert!(polled.is_ready());
    }
}

pin_project! {
    /// A future that its registry counts as in flight until it has finished or is dropped; see [`Registry::track`](crate::Registry::track).
    ///
    /// When it returns `Ready` the future inside has been dropped already, and after that its count was given back: whoever waits
    /// for the drain never sees a destructor still at work. Its size is that of the future and two words.
    ///
    /// # Panics
    ///
    /// A panic of the future is counted and goes on to whoever polls. Polling after `Ready` panics.
    #[must_use = "futures do nothing unless polled, and one that is dropped counts as abandoned"]
    pub struct Tracked<F> {
        #[pin]
        work: Work<F>,
    }

    impl<F> PinnedDrop for Tracked<F> {
        fn drop(this: Pin<&mut Self>) {
            match this.project().work.cut(Loss::Abandoned, |payload| payload) {
                Some(payload) if panicking() => discard(payload),
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
        self.project().work.poll(cx, output, Err).map(|ended| ended.unwrap_or_else(|payload| resume(payload)))
    }
}

impl<F> fmt::Debug for Tracked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").finish_non_exhaustive()
    }
}

/// A unit of work that is in flight until this is dropped; see [`Registry::guard`](crate::Registry::guard).
///
/// It counts as completed, or as panicked when it is dropped by a panic that unwinds (known with `std` only).
#[must_use = "a guard that is dropped at once guards nothing"]
pub struct Guard(Token);

impl Guard {
    #[inline]
    pub(crate) fn new(token: Token) -> Self {
        Self(token)
    }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        if panicking() {
            lose(self.0);
        } else {
            self.0.leave();
        }
    }
}

#[cfg(feature = "std")]
fn lose(token: Token) {
    token.lose(Loss::Panicked("dropped by a panic".into()));
}

#[cfg(not(feature = "std"))]
fn lose(_: Token) {
    unreachable!("a panic is not known")
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("task", &format_args!("{}", self.0.info())).finish_non_exhaustive()
    }
}
