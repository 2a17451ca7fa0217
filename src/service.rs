//! Implements services. A service is a task that runs the same work again and again: either after the work has ended, or once in
//! each period.
//!
//! One supervising task is in flight during the whole life of a service, so the drain waits for the service (invariants S2 and S3).
//! Each run counts as one accepted task. When a run has ended and another run follows, `Token::end_run` counts the next run
//! (invariant S5).
//!
//! Services measure time only with the [`Timer`] of the spawner. To find out whether a duration has elapsed, a service creates a
//! future of the timer, and later checks whether this future is ready. Therefore services need no clock, and tests can control the
//! time.

use crate::platform::{Payload, catch, drop_quietly, ignore_panic, now, panic_message, resume};
use crate::report::TaskOutput;
use crate::signal::ShutdownSignal;
use crate::spawner::Timer;
use crate::state::{ListedService, Token, UnreportedLoss};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::ToString;
use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use core::{mem, ptr};
use futures_util::future::{Either, select};

/// The shortest delay and the shortest period. Without this minimum, a service could repeat its work without a pause.
const MIN_DELAY: Duration = Duration::from_millis(1);

/// Decides when a service runs its work again, after which delay, and how many times; see
/// [`Registry::service`](crate::Registry::service).
///
/// # Examples
///
/// ```
/// use background_tasks::Restart;
/// use std::time::Duration;
///
/// let restart = Restart::on_failure()
///     .backoff(Duration::from_millis(100), Duration::from_secs(30)) // the default
///     .at_most(5, Duration::from_secs(60)); // the default
/// assert_ne!(restart, Restart::always());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "pass the value to `service`"]
pub struct Restart {
    after_completion: bool,
    min_backoff: Duration,
    max_backoff: Duration,
    max_restarts: Option<usize>,
    window: Duration,
}

impl Restart {
    /// Runs the work again after a run has failed or panicked. When a run completes, the service ends.
    pub const fn on_failure() -> Self {
        Self {
            after_completion: false,
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            max_restarts: Some(5),
            window: Duration::from_secs(60),
        }
    }

    /// Runs the work again after every run, even after a run that completed.
    pub const fn always() -> Self {
        Self { after_completion: true, ..Self::on_failure() }
    }

    /// Sets the smallest and the largest delay before a restart. Default: `min` is 100 milliseconds, and `max` is 30 seconds. A
    /// `min` below 1 millisecond is raised to 1 millisecond, and a `max` below `min` is raised to `min`.
    ///
    /// The delay before the first restart is `min`. It doubles for each further restart, up to `max`. After a run that has lasted
    /// at least `max`, the delay starts at `min` again. Each delay is then shortened at random, by at most one half. Therefore
    /// services that fail at the same time do not all restart at the same time.
    pub const fn backoff(self, min: Duration, max: Duration) -> Self {
        Self { min_backoff: min, max_backoff: max, ..self }
    }

    /// Limits the number of restarts: at most `restarts` in any time window of the length `window`. Default: 5 restarts in 60
    /// seconds.
    ///
    /// If one more restart would exceed the limit, the service ends, with the same loss as its last run: it counts as failed or
    /// panicked. If the last run completed, the service counts as failed. If `restarts` is 0, the service never restarts its work.
    pub const fn at_most(self, restarts: usize, window: Duration) -> Self {
        Self { max_restarts: Some(restarts), window, ..self }
    }

    /// Removes the limit on restarts. Without a limit, a service continues until the shutdown, even if its runs always fail.
    pub const fn unlimited(self) -> Self {
        Self { max_restarts: None, ..self }
    }
}

/// The error of a service whose last run completed, but whose limit allows no further restart. This happens only with
/// [`Restart::always`].
const TOO_MANY_RESTARTS: &str = "the service completed more often than its limit on restarts allows";

/// The result of a service: the output of its last run, or `None` if the service ended between two runs.
type End<O> = Result<Option<O>, &'static str>;

type Run<F> = Result<<F as Future>::Output, Payload>;

/// Contains the work of a service, and the data that the supervising task needs.
pub(crate) struct Service<M, T> {
    token: Token,
    signal: ShutdownSignal,
    timer: T,
    make: M,
    listed: ListedService,
}

impl<M, T> Service<M, T> {
    pub(crate) fn new(token: Token, name: Option<&'static str>, make: M, timer: T) -> Self {
        Self { token, signal: ShutdownSignal::new(token.state()), timer, make, listed: ListedService::new(token, name) }
    }
}

impl<M: FnMut() -> F, F: Future<Output: TaskOutput>, T: Timer> Service<M, T> {
    /// Runs the work. After each run, runs the work again if `restart` allows another run.
    pub(crate) async fn restart(mut self, restart: Restart) -> End<F::Output> {
        let mut restarts = Restarts::new(restart);
        while !self.signal.is_triggered() {
            let completed = {
                let mut was_long = false;
                let run = {
                    let mut max_backoff = pin!(self.timer.sleep(restarts.max_backoff));
                    let mut run = pin!(run(&mut self.make));
                    // The timers are polled before the run. Tokio limits the work of one poll. After a run has used up this limit, no
                    // timer is ready.
                    poll_fn(|cx| {
                        was_long = was_long || has_elapsed(max_backoff.as_mut());
                        restarts.forget_old();
                        run.as_mut().poll(cx)
                    })
                    .await
                };
                let has_completed = matches!(&run, Ok(output) if output.error().is_none());
                if self.signal.is_triggered() || (has_completed && !restart.after_completion) {
                    return finish(run);
                }
                if was_long {
                    restarts.next_delay = restarts.min_backoff;
                }
                if !restarts.try_add(&self.timer) {
                    return if has_completed { Err(TOO_MANY_RESTARTS) } else { finish(run) };
                }
                self.end_run(run)
            };
            let delay = self.timer.sleep(restarts.next_delay());
            self.wait(completed, delay).await;
        }
        Ok(None)
    }

    /// Runs the work immediately, and again each time that a period has elapsed. If a period ends during a run, this period starts
    /// no other run.
    pub(crate) async fn every(mut self, period: Duration) -> End<F::Output> {
        let period = period.max(MIN_DELAY);
        let mut tick = pin!(self.timer.sleep(period));
        while !self.signal.is_triggered() {
            let run = {
                let mut run = pin!(run(&mut self.make));
                loop {
                    match select(run.as_mut(), tick.as_mut()).await {
                        Either::Left((run, _)) => break run,
                        Either::Right(_) => tick.set(self.timer.sleep(period)),
                    }
                }
            };
            if self.signal.is_triggered() {
                return finish(run);
            }
            let completed = self.end_run(run);
            self.wait(completed, tick.as_mut()).await;
            tick.set(self.timer.sleep(period));
        }
        Ok(None)
    }

    /// Ends a run that may be followed by another run. If the run was lost, counts and reports the loss. If the run completed,
    /// returns a value that counts the run when the value is dropped.
    fn end_run(&mut self, run: Run<F>) -> Option<CompletedRun> {
        let Some(loss) = loss(run) else { return Some(CompletedRun(self.token)) };
        let text = loss.as_loss().to_string();
        self.listed.update(|info| info.last_loss = Some(text));
        self.token.end_run(Some(&loss));
        None
    }

    /// Waits between two runs, until `sleep` resolves or the shutdown starts. If the shutdown has started, the caller starts no
    /// further run.
    async fn wait(&mut self, completed: Option<CompletedRun>, sleep: impl Future) {
        self.listed.update(|info| info.is_running = false);
        self.signal.run_until_shutdown(sleep).await;
        if self.signal.is_triggered() {
            // No further run starts, so the end of the service counts as the end of the completed run. The destructor of
            // `completed` would count the run a second time.
            mem::forget(completed);
        } else {
            self.listed.update(|info| {
                info.is_running = true;
                info.restarts += 1;
            });
        }
    }
}

/// A completed run. The registry counts the run when this value is dropped. If an abort ends the service between two runs, the
/// run counts as completed, and the service counts as aborted.
struct CompletedRun(Token);

impl Drop for CompletedRun {
    fn drop(&mut self) {
        self.0.end_run(None);
    }
}

/// Calls `make` and polls the future that `make` returns, until this future is ready. Catches the panics of both (invariant S6).
/// Drops the future before this function returns (invariant S2).
async fn run<F: Future>(make: &mut impl FnMut() -> F) -> Run<F> {
    let mut future = pin!(Some(catch(make)?));
    poll_fn(|cx| {
        let polled = catch(|| {
            let polled = future.as_mut().as_pin_mut().map_or(Poll::Pending, |future| future.poll(cx));
            if polled.is_ready() {
                future.set(None);
            }
            polled
        });
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(payload) => {
                ignore_panic(|| future.set(None));
                Poll::Ready(Err(payload))
            }
        }
    })
    .await
}

/// Returns the result of a service whose last run has ended. If the run panicked, resumes the panic, so that the supervising task
/// panics.
fn finish<O>(run: Result<O, Payload>) -> End<O> {
    run.map_or_else(|payload| resume(payload), |output| Ok(Some(output)))
}

/// Returns how a run was lost, or `None` if the run completed. Drops the output of the run, or the payload of its panic.
fn loss<O: TaskOutput>(run: Result<O, Payload>) -> Option<UnreportedLoss> {
    let dropped = match run {
        Ok(output) => {
            let loss = output.error().map(Token::failed_with_text);
            catch(|| drop(output)).map(|()| loss)
        }
        Err(payload) => Err(payload),
    };
    dropped.unwrap_or_else(|payload| {
        let loss = UnreportedLoss::Panicked(panic_message(&payload).into());
        drop_quietly(payload);
        Some(loss)
    })
}

/// Polls a future of a timer once, and returns whether the future is ready. The poll uses a waker that wakes no task.
fn has_elapsed(sleep: Pin<&mut impl Future>) -> bool {
    sleep.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// Counts the restarts of one service, and computes the delay before each restart.
struct Restarts<T: Timer> {
    policy: Restart,
    min_backoff: Duration,
    max_backoff: Duration,
    next_delay: Duration,
    random: u64,
    /// Contains one future of the timer for each recent restart. The future resolves when the restart is older than the time window
    /// of the limit.
    recent: VecDeque<Pin<Box<T::Sleep>>>,
}

impl<T: Timer> Restarts<T> {
    fn new(policy: Restart) -> Self {
        let min_backoff = policy.min_backoff.max(MIN_DELAY);
        let max_backoff = policy.max_backoff.max(min_backoff);
        // Services that start simultaneously get different random numbers, because their addresses differ.
        let random = now() ^ ptr::from_ref(&policy).addr() as u64 | 1;
        Self { policy, min_backoff, max_backoff, next_delay: min_backoff, random, recent: VecDeque::new() }
    }

    /// Removes the restarts that are older than the time window of the limit.
    fn forget_old(&mut self) {
        while self.recent.front_mut().is_some_and(|oldest| has_elapsed(oldest.as_mut())) {
            self.recent.pop_front();
        }
    }

    /// Returns whether the limit allows one more restart. If the limit allows it, counts this restart.
    fn try_add(&mut self, timer: &T) -> bool {
        let Some(max_restarts) = self.policy.max_restarts else { return true };
        let may_restart = self.recent.len() < max_restarts;
        if may_restart {
            self.recent.push_back(Box::pin(timer.sleep(self.policy.window)));
        }
        may_restart
    }

    /// Returns the next delay, shortened at random by at most one half.
    fn next_delay(&mut self) -> Duration {
        let delay = u64::try_from(self.next_delay.as_nanos()).unwrap_or(u64::MAX);
        self.next_delay = self.next_delay.saturating_mul(2).min(self.max_backoff);
        // Xorshift is random enough here, because only the delays of services depend on these numbers.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Duration::from_nanos(delay - self.random % (delay / 2 + 1))
    }
}
