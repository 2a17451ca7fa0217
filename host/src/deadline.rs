//! What limits a drain: the deadline, and a second shutdown signal.

use crate::exit::exit_within;
use crate::output_thread::{LAST_LINES_TIMEOUT, OutputThread};
use crate::phases::Phases;
use crate::program::HostState;
use crate::signals::SecondSignalHook;
use crate::terminal::{Level, log};
use background_tasks::ShutdownSignal;
use futures_lite::future::block_on;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// How long aborted tasks may take to end after the deadline.
pub(crate) const ABORT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long `main` may then take to return.
pub(crate) const MAIN_TIMEOUT: Duration = Duration::from_millis(250);
/// How long the process may live after the deadline.
pub(crate) const EXIT_MARGIN: Duration = ABORT_TIMEOUT.saturating_add(MAIN_TIMEOUT);
/// How long the last line and the flush of stdout may take after a second signal.
const SECOND_SIGNAL_TIMEOUT: Duration = Duration::from_secs(1);
/// The exit code after a second signal: 128 + SIGINT, as shells have it.
const SECOND_SIGNAL_EXIT_CODE: u8 = 130;

/// Makes a second signal end the process immediately, until the hook is dropped.
pub(crate) fn exit_on_second_signal(phases: &Phases) -> SecondSignalHook {
    let phases = phases.clone();
    SecondSignalHook::new(move || {
        let in_flight = phases.in_flight();
        exit_within(SECOND_SIGNAL_TIMEOUT, SECOND_SIGNAL_EXIT_CODE, move || {
            log(Level::Warn, format_args!("second signal: exiting immediately, {in_flight} in flight"));
        });
    })
}

/// The end of the grace period.
pub(crate) struct Deadline {
    grace: Duration,
    started: Instant,
    /// `None` if the clock cannot represent the deadline: it never comes.
    at: Option<Instant>,
}

impl Deadline {
    /// Starts a grace period.
    pub(crate) fn start(grace: Duration) -> Self {
        let started = Instant::now();
        Self { grace, started, at: started.checked_add(grace) }
    }

    pub(crate) fn grace(&self) -> Duration {
        self.grace
    }

    /// Returns the time since the grace period started.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the time until the deadline, zero if it has passed.
    pub(crate) fn remaining(&self) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Makes the process exit soon after the deadline, even if the drain, the executor or `main` is blocked.
    ///
    /// Once the registries have drained in time, the process exits only if it has been asked to stop, which may happen later.
    pub(crate) fn enforce(&self, state: Arc<HostState>, stop_requested: ShutdownSignal, output: &OutputThread) -> Enforcement {
        let (drained, drained_in_time) = channel();
        let Some(last_moment) = self.at.and_then(|at| at.checked_add(EXIT_MARGIN)) else { return Enforcement(drained) };
        let remaining = move || last_moment.saturating_duration_since(Instant::now());
        let enforce = move || {
            let is_in_time = drained_in_time.recv_timeout(remaining()).is_ok();
            if is_in_time {
                block_on(stop_requested);
                thread::sleep(remaining());
            } else if !state.is_finished() {
                state.set_exit_code(1);
            }
            if state.is_awaited() {
                exit_within(LAST_LINES_TIMEOUT, state.finish(), move || {
                    if is_in_time {
                        log(Level::Error, "the grace period has expired and `main` has not returned");
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

/// The thread that enforces the deadline waits for one of the methods. Dropped without a call, by a panic of the drain, it makes the process exit.
pub(crate) struct Enforcement(Sender<()>);

impl Enforcement {
    pub(crate) fn drained_in_time(self) {
        let _ = self.0.send(());
    }

    /// Lets the process live until [`EXIT_MARGIN`] after the deadline, so that `main` has time to return.
    pub(crate) fn missed_deadline(self) {
        std::mem::forget(self.0);
    }
}
