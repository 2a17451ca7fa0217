//! Enforces the deadline of a drain, and ends the process after a second signal.

use crate::exit::exit_within;
use crate::output_thread::{LAST_LINES_TIMEOUT, OutputThread};
use crate::phases::{Phases, describe_in_flight};
use crate::program::HostState;
use crate::signals::{self, HookKey, SecondSignalHook};
use crate::terminal::{Level, log};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// After the deadline, the host waits at most this long until the aborted tasks have ended.
pub(crate) const ABORT_TIMEOUT: Duration = Duration::from_millis(500);
/// After `ABORT_TIMEOUT` has expired, `main` has at most this time to return.
pub(crate) const MAIN_TIMEOUT: Duration = Duration::from_millis(250);
/// The process exits at most this long after the deadline.
pub(crate) const EXIT_MARGIN: Duration = ABORT_TIMEOUT.saturating_add(MAIN_TIMEOUT);
/// If the process was asked to stop, `main` has this time by default to return after the drain.
const DEFAULT_MAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// After a second signal, the host waits at most this long until it has written the last line and flushed stdout.
const SECOND_SIGNAL_TIMEOUT: Duration = Duration::from_secs(1);
/// The exit code after a second signal. Shells report the same code (128 + SIGINT) if SIGINT ends a process.
pub(crate) const SECOND_SIGNAL_EXIT_CODE: u8 = 130;
/// The exit code if the drain missed its deadline, if `main` did not return in time, or if the function of `fail_if` returned true.
pub(crate) const TOO_LATE: u8 = 1;

/// Makes a second signal end the process immediately, unless the signal arrives within the repeat window. When the returned hook is
/// dropped, a second signal no longer has this effect.
pub(crate) fn exit_on_second_signal(phases: &Phases, repeat_window: Duration) -> SecondSignalHook {
    let phases = phases.clone();
    SecondSignalHook::new(repeat_window, move || {
        let in_flight = phases.in_flight();
        exit_within(SECOND_SIGNAL_TIMEOUT, SECOND_SIGNAL_EXIT_CODE, move || {
            let in_flight = describe_in_flight(in_flight, &phases.oldest());
            log(Level::Warn, format_args!("second signal: exiting immediately, {in_flight}"));
        });
    })
}

/// The time limits of a host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) grace: Duration,
    /// The longest time that `main` may take to return after the drain; see [`Host::main_timeout`](crate::Host::main_timeout).
    pub(crate) main_timeout: Option<Duration>,
}

/// The deadline of a drain. At the deadline, the grace period ends.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    limits: Limits,
    started: Instant,
    /// The time of the deadline. `None` if the clock cannot represent this time. The grace period then has no end.
    at: Option<Instant>,
}

impl Deadline {
    /// Returns the deadline of a grace period that starts at the request to stop. Without a request, the grace period starts now.
    pub(crate) fn start(limits: Limits) -> Self {
        let started = signals::requested_at().unwrap_or_else(Instant::now);
        Self { limits, started, at: started.checked_add(limits.grace) }
    }

    pub(crate) fn grace(&self) -> Duration {
        self.limits.grace
    }

    pub(crate) fn is_infinite(&self) -> bool {
        self.at.is_none()
    }

    pub(crate) fn main_timeout(&self) -> Option<Duration> {
        self.limits.main_timeout
    }

    /// Returns the time since the grace period started.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the time until the deadline. Returns zero if the deadline has passed.
    pub(crate) fn remaining(&self) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Makes the process exit soon after the deadline, even if the drain, the executor or `main` is blocked.
    ///
    /// If the registries drain in time, also limits how long `main` may take to return, unless another host has not ended yet.
    pub(crate) fn enforce(&self, phases: &Phases, state: Arc<HostState>, hook: HookKey, output: &OutputThread) -> Enforcement {
        let (drained, drained_in_time) = channel();
        // If the grace period has expired before `run`, the tasks need the margin from now on.
        let last_moment = with_margin(self.at.map(|at| at.max(Instant::now())));
        let (deadline, limits, phases) = (*self, self.limits, phases.clone());
        let enforce = move || {
            let drained = match last_moment {
                Some(last_moment) => drained_in_time.recv_timeout(last_moment.saturating_duration_since(Instant::now())),
                None => drained_in_time.recv().map_err(RecvTimeoutError::from),
            };
            let is_in_time = drained.is_ok();
            if is_in_time {
                limits.wait_for_main(hook);
                if !hook.limits_main() {
                    return;
                }
            }
            // After a missed deadline, `run` may have already returned the exit code to `main`. The code must then not change.
            if is_in_time || !state.is_finished() {
                state.set_exit_code(TOO_LATE);
            }
            // If the drain has panicked, the panic hook has reported that.
            let is_blocked = drained == Err(RecvTimeoutError::Timeout) && !state.is_deadline_reported();
            if state.is_awaited() {
                // `run` does not return here, because `main` could then end the process before the line below is written.
                exit_within(LAST_LINES_TIMEOUT, state.exit_code(), move || {
                    if is_in_time {
                        log(Level::Error, MAIN_IS_LATE);
                    } else if is_blocked {
                        let elapsed = deadline.elapsed().as_secs_f64();
                        let in_flight = describe_in_flight(phases.in_flight(), &phases.oldest());
                        log(Level::Error, format_args!("gave up after {elapsed:.2} s, {DRAIN_IS_BLOCKED}: {in_flight}"));
                    }
                });
            }
        };
        if let Err(error) = thread::Builder::new().name("deadline".into()).spawn(enforce) {
            output.log(Level::Warn, format!("failed to start the thread that enforces the deadline: {error}"));
        }
        Enforcement(drained)
    }
}

const MAIN_IS_LATE: &str = "`main` has not returned in time after the drain, exiting: \
    its clean-up, or blocking work that the runtime's destructor waits for, is still running";

const DRAIN_IS_BLOCKED: &str = "because the drain is blocked by an observer, a waker, or the function of `fail_if`";

impl Limits {
    /// Waits until the time in which `main` must return has expired, or until the hook is removed. Call this method immediately after the
    /// drain.
    fn wait_for_main(self, hook: HookKey) {
        let drained = Instant::now();
        let was_requested = signals::requested_at().is_some();
        let timeout = self.main_timeout.or_else(|| was_requested.then_some(DEFAULT_MAIN_TIMEOUT));
        let main_deadline = timeout.and_then(|timeout| drained.checked_add(timeout));
        let requested_at = hook.wait_for_request(main_deadline);
        let grace_end = requested_at.and_then(|requested_at| self.grace_end_for_main(requested_at, drained));
        let last_moment = [main_deadline, with_margin(grace_end)].into_iter().flatten().min();
        hook.wait_for_removal(last_moment);
    }

    /// Returns the end of the grace period for `main`, which starts with the request. If a request before `run` has used up the grace
    /// period, it ends with the drain, so that `main` still has the margin.
    fn grace_end_for_main(self, requested_at: Instant, drained: Instant) -> Option<Instant> {
        requested_at.checked_add(self.grace).map(|end| end.max(drained))
    }
}

fn with_margin(deadline: Option<Instant>) -> Option<Instant> {
    deadline.and_then(|at| at.checked_add(EXIT_MARGIN))
}

/// Reports the end of the drain to the thread that enforces the deadline. If the drain panics, it drops this value, and the thread makes
/// the process exit.
pub(crate) struct Enforcement(Sender<()>);

impl Enforcement {
    pub(crate) fn drained_in_time(self) {
        let _ = self.0.send(());
    }

    /// Makes the thread wait until [`EXIT_MARGIN`] after the deadline before it ends the process, so that `main` has time to return.
    pub(crate) fn missed_deadline(self) {
        std::mem::forget(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_period_for_main_does_not_end_before_the_drain() {
        let limits = Limits { grace: Duration::from_secs(10), main_timeout: None };
        let requested_at = Instant::now();
        for (drained, end) in [(5, 10), (15, 15)] {
            let [drained, end] = [drained, end].map(|seconds| requested_at + Duration::from_secs(seconds));
            assert_eq!(limits.grace_end_for_main(requested_at, drained), Some(end));
        }
    }
}
