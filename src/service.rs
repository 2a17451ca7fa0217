//! Services: tasks that do the same work again, after it has ended or when a period has elapsed.
//!
//! One supervising task holds one count for the whole life of a service, so the drain waits for the service (S2, S3). Each run
//! counts as one piece of work: when a run has ended, `Token::end_run` counts the next run in its place (S5).
//!
//! All times come from the [`Timer`] of the spawner. A future of the timer that was created at one moment and is ready at a later
//! moment shows that a duration has elapsed between the two. Therefore services need no clock, and tests control their time.

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

/// The shortest delay and the shortest period. Without this minimum, a service could run without ever waiting.
const MIN_DELAY: Duration = Duration::from_millis(1);

/// Decides when a service starts its work again, after what delay, and how often; see [`Registry::service`](crate::Registry::service).
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
    /// Starts the work again after a run has failed or panicked. A run that completes ends the service.
    pub const fn on_failure() -> Self {
        Self {
            after_completion: false,
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            max_restarts: Some(5),
            window: Duration::from_secs(60),
        }
    }

    /// Starts the work again after every run.
    pub const fn always() -> Self {
        Self { after_completion: true, ..Self::on_failure() }
    }

    /// Sets the delay before a restart. Default: `min` is 100 milliseconds, and `max` is 30 seconds. A `min` below 1
    /// millisecond is raised to 1 millisecond, and a `max` below `min` is raised to `min`.
    ///
    /// The delay is `min` before the first restart, and doubles for each further restart, up to `max`. After a run that lasted
    /// at least `max`, the delay is `min` again. Up to half of each delay is subtracted at random, so that services that failed
    /// simultaneously do not all start again simultaneously.
    pub const fn backoff(self, min: Duration, max: Duration) -> Self {
        Self { min_backoff: min, max_backoff: max, ..self }
    }

    /// Limits the number of restarts within any time window of the length `window`. Default: 5 restarts in 60 seconds.
    ///
    /// A service that would exceed the limit ends, and the loss of its last run is the loss of the service. If the last run
    /// completed, the service counts as failed. With a limit of 0, the service never starts its work again.
    pub const fn at_most(self, restarts: usize, window: Duration) -> Self {
        Self { max_restarts: Some(restarts), window, ..self }
    }

    /// Removes the limit on restarts. A service that always fails then never ends before the shutdown.
    pub const fn unlimited(self) -> Self {
        Self { max_restarts: None, ..self }
    }
}

/// The error of a service whose last run completed, but which has reached its limit on restarts.
const TOO_MANY_RESTARTS: &str = "the service completed more often than its limit on restarts allows";

/// How a service ends: with the output of its last run, or with `None` if the service ended between two runs.
type End<O> = Result<Option<O>, &'static str>;

type Run<F> = Result<<F as Future>::Output, Payload>;

/// A service: its work, and what the supervising task needs.
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
    /// Runs the work, and runs it again after it has ended if `restart` allows it.
    pub(crate) async fn restart(mut self, restart: Restart) -> End<F::Output> {
        let mut restarts = Restarts::new(restart);
        while !self.signal.is_triggered() {
            let completed = {
                let mut max_backoff = pin!(self.timer.sleep(restarts.max_backoff));
                let run = run(&mut self.make).await;
                let has_completed = matches!(&run, Ok(output) if output.error().is_none());
                if self.signal.is_triggered() || (has_completed && !restart.after_completion) {
                    return finish(run);
                }
                if has_elapsed(max_backoff.as_mut()) {
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

    /// Runs the work immediately, and again each time that a period has elapsed. Skips the ticks that come during a run.
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

    /// Counts and reports the loss of a run that is not the last one, or returns the completed run.
    fn end_run(&mut self, run: Run<F>) -> Option<CompletedRun> {
        let Some(loss) = loss(run) else { return Some(CompletedRun(self.token)) };
        let text = loss.as_loss().to_string();
        self.listed.update(|info| info.last_loss = Some(text));
        self.token.end_run(Some(&loss));
        None
    }

    /// Waits until `sleep` resolves or the shutdown starts. After the start of the shutdown, nothing runs again.
    async fn wait(&mut self, completed: Option<CompletedRun>, sleep: impl Future) {
        self.listed.update(|info| info.is_running = false);
        self.signal.run_until_shutdown(sleep).await;
        if self.signal.is_triggered() {
            // No run follows, so the end of the service counts the completed run.
            mem::forget(completed);
        } else {
            self.listed.update(|info| {
                info.is_running = true;
                info.restarts += 1;
            });
        }
    }
}

/// A run that has completed, and that the registry counts when this value is dropped. If an abort ends the service while it waits,
/// the run counts as completed, and the service as aborted.
struct CompletedRun(Token);

impl Drop for CompletedRun {
    fn drop(&mut self) {
        self.0.end_run(None);
    }
}

/// Calls the factory and runs the future that it returns. Catches a panic of either (S6), and drops the future before it returns (S2).
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

/// Ends a service with its last run. The panic of a run continues, and ends the supervising task.
fn finish<O>(run: Result<O, Payload>) -> End<O> {
    run.map_or_else(|payload| resume(payload), |output| Ok(Some(output)))
}

/// Returns how a run was lost, or `None` if it completed. Drops the output, and the payload of a panic.
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

/// Returns whether a future of a timer is ready. The future wakes no task.
fn has_elapsed(sleep: Pin<&mut impl Future>) -> bool {
    sleep.poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// The restarts of one service, and the delays before them.
struct Restarts<T: Timer> {
    policy: Restart,
    min_backoff: Duration,
    max_backoff: Duration,
    next_delay: Duration,
    random: u64,
    /// One future for each restart within the window. The future resolves when the restart leaves the window.
    recent: VecDeque<Pin<Box<T::Sleep>>>,
}

impl<T: Timer> Restarts<T> {
    fn new(policy: Restart) -> Self {
        let min_backoff = policy.min_backoff.max(MIN_DELAY);
        let max_backoff = policy.max_backoff.max(min_backoff);
        // The address differs between services that start simultaneously.
        let random = now() ^ ptr::from_ref(&policy).addr() as u64 | 1;
        Self { policy, min_backoff, max_backoff, next_delay: min_backoff, random, recent: VecDeque::new() }
    }

    /// Counts one more restart. Returns false if the restart would exceed the limit.
    fn try_add(&mut self, timer: &T) -> bool {
        let Some(max_restarts) = self.policy.max_restarts else { return true };
        while self.recent.front_mut().is_some_and(|oldest| has_elapsed(oldest.as_mut())) {
            self.recent.pop_front();
        }
        let may_restart = self.recent.len() < max_restarts;
        if may_restart {
            self.recent.push_back(Box::pin(timer.sleep(self.policy.window)));
        }
        may_restart
    }

    /// Returns the next delay, less a random part of at most one half.
    fn next_delay(&mut self) -> Duration {
        let delay = u64::try_from(self.next_delay.as_nanos()).unwrap_or(u64::MAX);
        self.next_delay = self.next_delay.saturating_mul(2).min(self.max_backoff);
        // Xorshift is random enough, because only the starts of services depend on the numbers.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Duration::from_nanos(delay - self.random % (delay / 2 + 1))
    }
}
