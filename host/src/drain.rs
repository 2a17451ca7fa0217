//! The drain. It runs on a separate thread, so that a blocked executor cannot block it.

use crate::deadline::{ABORT_TIMEOUT, Deadline, Limits, MAIN_TIMEOUT, TOO_LATE};
use crate::exit::exit_within;
use crate::output_thread::LAST_LINES_TIMEOUT;
use crate::phases::Phases;
use crate::program::{FAILED, HostState};
use crate::progress::{LINE_INTERVAL, Progress};
use crate::signals::{self, HookKey};
use crate::terminal::Level;
use background_tasks::ShutdownSignal;
use futures_lite::FutureExt;
use futures_lite::future::block_on;
use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

/// Starts the thread that waits until shutdown starts, and then drains the registries.
pub(crate) fn start(
    phases: Phases,
    limits: Limits,
    stop_requested: ShutdownSignal,
    hook: HookKey,
    state: Arc<HostState>,
) -> io::Result<()> {
    let drain = move || {
        let signals = phases.signals().chain([stop_requested.clone()]).collect();
        block_on(any(signals).or(state.program_ended()));
        if state.is_awaited() {
            Drain::new(phases, limits, stop_requested, hook, state).run();
        }
    };
    thread::Builder::new().name("drain".into()).spawn(drain).map(drop)
}

/// Waits for the first of the signals.
async fn any(mut signals: Vec<ShutdownSignal>) {
    let mut poll = |cx: &mut Context<'_>| signals.iter_mut().any(|signal| Pin::new(signal).poll(cx).is_ready());
    poll_fn(|cx| if poll(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
}

struct Drain {
    phases: Phases,
    state: Arc<HostState>,
    /// Triggered once the process has been asked to stop.
    stop_requested: ShutdownSignal,
    hook: HookKey,
    deadline: Deadline,
    progress: Progress,
    has_reported_loss: bool,
}

impl Drain {
    fn new(phases: Phases, limits: Limits, stop_requested: ShutdownSignal, hook: HookKey, state: Arc<HostState>) -> Self {
        let deadline = Deadline::start(limits);
        let progress = Progress::new(&phases);
        Self { deadline, phases, state, stop_requested, hook, progress, has_reported_loss: false }
    }

    fn run(mut self) {
        let enforcement = self.deadline.enforce(self.state.clone(), self.hook, self.progress.output());
        // If the terminal is closed during the drain, SIGHUP must not end the drain.
        if let Err(error) = signals::survive_sighup() {
            self.progress.log(Level::Warn, format!("failed to handle SIGHUP during the drain: {error}"));
        }
        let substitute = self.state.keep_in_flight(self.phases.first());
        let in_flight = self.phases.in_flight() + usize::from(substitute.is_some());
        // A program that has ended on its own with nothing in flight.
        let is_silent = !self.stop_requested.is_triggered() && in_flight == 0;
        self.phases.first().start_shutdown();
        if let Some(substitute) = substitute {
            self.phases.insert_first(substitute);
        }
        self.progress.notify_stopping();
        self.report_cause();
        if !is_silent {
            self.progress.start(in_flight, self.deadline.grace());
        }
        let is_in_time = self.drain_phases();
        self.progress.finish();
        // Later phases may have lost a critical task meanwhile.
        self.report_cause();
        if !is_in_time {
            self.state.set_exit_code(TOO_LATE);
            self.abort();
        } else if self.state.is_awaited() && !is_silent {
            self.progress.log(Level::Info, format!("drained in {}: {}", self.elapsed(), self.phases.summary()));
        }
        self.progress.flush(self.deadline.remaining().clamp(MAIN_TIMEOUT, LINE_INTERVAL));
        if is_in_time && self.deadline.main_timeout() == Some(Duration::ZERO) && self.state.is_awaited() {
            exit_within(LAST_LINES_TIMEOUT, self.state.exit_code(), || ());
        }
        self.state.finish();
        if is_in_time {
            enforcement.drained_in_time();
        } else {
            enforcement.missed_deadline();
        }
    }

    /// Reports what has ended the program, if that was not a signal.
    fn report_cause(&mut self) {
        if let Some(error) = self.state.take_error() {
            self.progress.log(Level::Error, format!("the program failed: {error}"));
        }
        if let (false, Some(task)) = (self.has_reported_loss, self.phases.lost_critical_task()) {
            self.has_reported_loss = true;
            self.state.set_exit_code(FAILED);
            self.progress.log(Level::Error, format!("shutting down because a critical task was lost: {task}"));
        }
    }

    /// Shuts down and drains one registry after the other. Returns whether all have drained; also true if `run` was dropped.
    fn drain_phases(&mut self) -> bool {
        for registry in self.phases.clone().registries() {
            // The first update comes immediately, so that systemd shows a status from the start.
            let mut interval = Duration::ZERO;
            while let Err(stragglers) = registry.shutdown().wait_timeout(interval) {
                if !self.state.is_awaited() {
                    return true;
                }
                if self.deadline.remaining() == Duration::ZERO {
                    return false;
                }
                self.progress.update(&self.phases, &stragglers, &self.deadline);
                interval = self.deadline.remaining().min(self.progress.interval());
            }
        }
        true
    }

    /// Names the stragglers, aborts what can be aborted, and names the tasks that are still in flight after that.
    fn abort(&self) {
        for stragglers in self.phases.shutdown_within(Duration::ZERO) {
            let grace = self.deadline.grace();
            self.progress.log(Level::Warn, format!("the grace period of {grace:?} has expired: {stragglers:#}"));
        }
        // Observers report the aborted tasks after this line.
        self.progress.flush(LAST_LINES_TIMEOUT);
        self.phases.abort();
        self.state.abort_program();
        let left = self.phases.shutdown_within(ABORT_TIMEOUT);
        for stragglers in &left {
            self.progress.log(Level::Error, format!("gave up after {}: {stragglers:#}", self.elapsed()));
        }
        if left.is_empty() {
            let summary = self.phases.summary();
            self.progress.log(Level::Warn, format!("aborted all remaining tasks after {}: {summary}", self.elapsed()));
        }
    }

    fn elapsed(&self) -> impl Display + use<> {
        format!("{:.2} s", self.deadline.elapsed().as_secs_f64())
    }
}
