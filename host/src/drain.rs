//! Drains the registries of a host on a separate thread, so that a blocked executor cannot block the drain.

use crate::deadline::{ABORT_TIMEOUT, Deadline, Limits, MAIN_TIMEOUT, TOO_LATE};
use crate::exit::exit_within;
use crate::liveness::{LivenessChecks, WatchedTask};
use crate::output_thread::LAST_LINES_TIMEOUT;
use crate::phases::Phases;
use crate::program::{FAILED, HostState};
use crate::progress::{LINE_INTERVAL, Progress};
use crate::signals::{self, HookKey};
use crate::status::HostStatus;
use crate::sync::block_on_until;
use crate::terminal::{Level, emits_events};
use background_tasks::{Registry, ShutdownSignal, Stragglers, Summary};
use futures_lite::FutureExt;
use std::fmt::Display;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

/// The settings of a host for its drain.
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    /// The time for which the program continues after a request to stop; see [`Host::delay`](crate::Host::delay).
    pub(crate) delay: Duration,
    /// The tasks that must report progress; see [`Host::liveness`](crate::Host::liveness).
    pub(crate) liveness: Vec<WatchedTask>,
    /// The state that dashboards show.
    pub(crate) status: Arc<HostStatus>,
    /// Whether to show the progress bar; see [`Host::progress_bar`](crate::Host::progress_bar).
    pub(crate) progress_bar: Option<bool>,
    /// Returns whether the process must exit with code 1 because of lost tasks; see [`Host::fail_if`](crate::Host::fail_if).
    pub(crate) fail_if: Box<dyn FnOnce(&Summary) -> bool + Send>,
}

/// Starts the thread that waits until shutdown starts, and then drains the registries.
pub(crate) fn start(
    phases: Phases,
    mut settings: Settings,
    stop_requested: ShutdownSignal,
    hook: HookKey,
    state: Arc<HostState>,
) -> io::Result<()> {
    let drain = move || {
        let signals = phases.signals().chain([stop_requested.clone()]).collect();
        let mut shutdown_starts = pin!(any(signals).or(state.program_ended()));
        let mut checks = LivenessChecks::new(std::mem::take(&mut settings.liveness));
        while !block_on_until(shutdown_starts.as_mut(), checks.next()) {
            if checks.check(&phases) {
                state.set_exit_code(FAILED);
                // The cause is written before the shutdown starts, because observers can log the start of the shutdown.
                checks.flush(LAST_LINES_TIMEOUT);
                break;
            }
        }
        if state.is_awaited() {
            Drain::new(phases, &settings, checks, stop_requested, hook, state.clone()).run(settings.delay, settings.fail_if);
        }
    };
    thread::Builder::new().name("drain".into()).spawn(drain).map(drop)
}

/// Waits until one of the signals is triggered.
async fn any(mut signals: Vec<ShutdownSignal>) {
    let mut poll = |cx: &mut Context<'_>| signals.iter_mut().any(|signal| Pin::new(signal).poll(cx).is_ready());
    poll_fn(|cx| if poll(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
}

struct Drain {
    phases: Phases,
    state: Arc<HostState>,
    /// The signal that is triggered when the process is asked to stop.
    stop_requested: ShutdownSignal,
    hook: HookKey,
    deadline: Deadline,
    progress: Progress,
    checks: LivenessChecks,
    status: Arc<HostStatus>,
    has_reported_loss: bool,
}

impl Drain {
    fn new(
        phases: Phases,
        settings: &Settings,
        checks: LivenessChecks,
        stop_requested: ShutdownSignal,
        hook: HookKey,
        state: Arc<HostState>,
    ) -> Self {
        let deadline = Deadline::start(settings.limits);
        settings.status.start_stop(deadline);
        let progress = Progress::new(&phases, settings.progress_bar, checks.output());
        let status = settings.status.clone();
        Self { deadline, phases, state, stop_requested, hook, progress, checks, status, has_reported_loss: false }
    }

    fn run(mut self, delay: Duration, fail_if: impl FnOnce(&Summary) -> bool) {
        let enforcement = self.deadline.enforce(&self.phases, self.state.clone(), self.hook, self.progress.output());
        // If the terminal is closed during the drain, SIGHUP must not end the drain.
        if let Err(error) = signals::survive_sighup() {
            self.progress.log(Level::Warn, format!("failed to handle SIGHUP during the drain: {error}"));
        }
        self.state.set_output(self.progress.output().clone());
        self.progress.notify_stopping(&self.deadline, self.stops_service());
        if self.stop_requested.is_triggered() {
            self.wait_before_drain(delay);
            // This line must come before the lines in which observers log the start of the shutdown.
            self.progress.flush(LAST_LINES_TIMEOUT);
        }
        if !self.state.is_awaited() {
            return;
        }
        let first = self.phases.first().clone();
        let can_abort = self.phases.can_abort();
        if let Some(substitute) = self.state.keep_in_flight(&first) {
            self.phases.insert_first(substitute);
        }
        // This line must come before the count of the tasks. In the other order, a program that ends between the two lines would count as a
        // task, and the warning below would be wrong.
        let program = usize::from(self.state.program_in_flight().is_some());
        let in_flight = self.phases.in_flight();
        // If a program ends without tasks in flight and was not asked to stop, as a batch program does, the host reports no drain.
        let is_silent = !self.stop_requested.is_triggered() && in_flight == 0;
        let is_logged = emits_events() && self.phases.are_shutdowns_logged();
        // The line about the cause must come before the lines in which observers log the start and the end of the shutdown.
        self.report_cause();
        // The program needs no warning, because the host drops the program at the deadline even if no registry is inspected.
        if !can_abort && !self.deadline.is_infinite() && in_flight > program {
            self.progress.log(Level::Warn, CANNOT_ABORT.to_owned());
            self.progress.flush(LAST_LINES_TIMEOUT);
        }
        first.start_shutdown();
        if !is_silent {
            self.progress.start(in_flight, &self.deadline, is_logged);
        }
        let is_in_time = self.drain_phases();
        self.progress.finish();
        // A task of a later phase may have been lost during the drain, and its loss may have started the shutdown of its phase.
        self.report_cause();
        if !is_in_time {
            self.state.set_exit_code(TOO_LATE);
            self.state.start_deadline_report();
            self.abort(can_abort);
        } else if self.state.is_awaited() {
            let summary = self.phases.summary();
            let needs_no_line = is_logged || (is_silent && summary.is_clean());
            if fail_if(&summary) {
                self.state.set_exit_code(TOO_LATE);
                let line = format!("drained in {}, with losses that fail the program: {summary}", self.elapsed());
                self.progress.log(Level::Error, line);
            } else if !needs_no_line {
                self.progress.log(Level::Info, format!("drained in {}: {summary}", self.elapsed()));
            }
        }
        self.progress.flush(self.deadline.remaining().clamp(MAIN_TIMEOUT, LINE_INTERVAL));
        self.hook.end();
        let exits = self.deadline.main_timeout() == Some(Duration::ZERO) && self.hook.limits_main();
        if is_in_time && exits && self.state.is_awaited() {
            exit_within(LAST_LINES_TIMEOUT, self.state.exit_code(), || ());
        }
        self.state.finish();
        if is_in_time {
            enforcement.drained_in_time();
        } else {
            enforcement.missed_deadline();
        }
    }

    /// Returns whether the service stops. If only the program has ended, `main` may run another program, and systemd must not limit the
    /// time of `main`.
    fn stops_service(&self) -> bool {
        let has_program_ended = self.state.has_program_ended();
        !has_program_ended || self.phases.signals().chain([self.stop_requested.clone()]).any(|signal| signal.is_triggered())
    }

    /// Reports the request to stop, and then waits for the delay, while the program continues. The wait ends early if a registry is shut
    /// down or the program ends.
    fn wait_before_drain(&mut self, delay: Duration) {
        let mut is_over = pin!(any(self.phases.signals().collect()).or(self.state.program_ended()));
        let delay = delay.min(self.deadline.remaining());
        let request = format!("asked to stop by {}", signals::requested_by());
        if delay.is_zero() || block_on_until(is_over.as_mut(), Some(Instant::now())) {
            self.progress.log(Level::Info, request);
        } else {
            self.progress.log(Level::Info, format!("{request}: the drain starts in {delay:.1?}"));
            let end = Instant::now().checked_add(delay);
            self.status.start_delay(end);
            let next_check = |checks: &LivenessChecks| [checks.next(), end].into_iter().flatten().min();
            while !block_on_until(is_over.as_mut(), next_check(&self.checks)) && end.is_none_or(|end| Instant::now() < end) {
                self.checks.check_in_drain(&self.phases);
            }
        }
    }

    /// Reports why the shutdown started: the program's error, or the task whose loss started a shutdown.
    fn report_cause(&mut self) {
        self.state.report_error();
        if let (false, Some(task)) = (self.has_reported_loss, self.phases.shutdown_cause()) {
            self.has_reported_loss = true;
            self.state.set_exit_code(FAILED);
            self.progress.log(Level::Error, format!("shutting down because a task was lost: {task}"));
        }
    }

    /// Shuts down and drains one registry after the other. Returns true if all registries have drained, or if the future of `run` was
    /// dropped.
    fn drain_phases(&mut self) -> bool {
        let phases = self.phases.clone();
        for len in 1..=phases.registries().len() {
            let registries = &phases.registries()[..len];
            registries[len - 1].start_shutdown();
            match self.drain_registries(registries, phases.reserved_after(len)) {
                Waited::Drained if self.state.is_awaited() => {}
                Waited::TimeIsReserved => {
                    for stragglers in
                        registries.iter().filter_map(|registry| registry.shutdown().wait_timeout(Duration::ZERO).err())
                    {
                        self.progress.log_stragglers(Level::Warn, TIME_IS_RESERVED.to_owned(), stragglers);
                    }
                }
                Waited::Drained | Waited::Dropped => return true,
                Waited::Expired => return false,
            }
        }
        true
    }

    /// Waits until these registries have drained, or until only the time `reserved` is left of the grace period.
    fn drain_registries(&mut self, registries: &[Registry<()>], reserved: Duration) -> Waited {
        for registry in registries {
            // The first wait does not block, so that systemd receives a status at the start of the drain.
            let mut interval = Duration::ZERO;
            while registry.shutdown().wait_timeout(interval).is_err() {
                let remaining = self.deadline.remaining();
                if !self.state.is_awaited() {
                    return Waited::Dropped;
                }
                if remaining == Duration::ZERO {
                    return Waited::Expired;
                }
                if remaining <= reserved {
                    return Waited::TimeIsReserved;
                }
                let (phases, state) = (&self.phases, &self.state);
                self.progress.update(phases, |in_flight| oldest(phases, state, in_flight), &self.deadline);
                self.checks.check_in_drain(phases);
                let next_check = self.checks.interval().unwrap_or(Duration::MAX).max(MIN_CHECK_INTERVAL);
                interval = remaining.saturating_sub(reserved).min(self.progress.interval()).min(next_check);
            }
        }
        Waited::Drained
    }

    /// Reports the stragglers, aborts the tasks that can be aborted, and then reports the tasks that are still in flight.
    fn abort(&self, can_abort: bool) {
        let late = self.phases.shutdown_within(Duration::ZERO);
        let program = self.describe_program(&late);
        for stragglers in late {
            let grace = self.deadline.grace();
            self.progress.log_stragglers(Level::Warn, format!("the grace period of {grace:?} has expired"), stragglers);
        }
        if let Some(line) = program {
            self.progress.log(Level::Warn, line);
        }
        // The flush writes this line before observers report the aborted tasks.
        self.progress.flush(LAST_LINES_TIMEOUT);
        self.phases.abort();
        self.state.abort_program();
        let left = self.phases.shutdown_within(ABORT_TIMEOUT);
        if left.is_empty() {
            let summary = self.phases.summary();
            self.progress.log(Level::Warn, format!("aborted all remaining tasks after {}: {summary}", self.elapsed()));
        }
        let needs_inspection = !can_abort && !left.is_empty();
        for stragglers in left {
            self.progress.log_stragglers(Level::Error, format!("gave up after {}", self.elapsed()), stragglers);
        }
        if needs_inspection {
            self.progress.log(Level::Error, NO_NAMES.to_owned());
        }
    }

    /// If the program is still in flight, returns a line that says so and gives the probable reason.
    fn describe_program(&self, late: &[Stragglers]) -> Option<String> {
        let location = self.state.program_in_flight()?;
        let state = match late.iter().map(Stragglers::len).sum() {
            1 => format!("all tasks have ended, but the program at {location} has not"),
            _ => format!("one of the tasks in flight is the program at {location}"),
        };
        Some(format!(
            "{state}: a server waits until its connections are closed, so limit the time in which a client sends a request, and end \
             streams at the shutdown signal"
        ))
    }

    fn elapsed(&self) -> impl Display + use<> {
        format!("{:.2} s", self.deadline.elapsed().as_secs_f64())
    }
}

const CANNOT_ABORT: &str = "no registry is inspected, so no report names a task, and no task can be aborted when the grace period expires: \
    build the registry with `inspect` to change this";

/// The host logs this message after the last report, because the message `CANNOT_ABORT` can be far above this report in the log.
const NO_NAMES: &str = "the report names no task, because no registry is inspected: build the registry with `inspect`";

const TIME_IS_RESERVED: &str = "the next registry shuts down now, because the rest of the grace period is reserved";

/// The shortest time between two liveness checks during the drain. Each check also updates the progress, so a shorter time would update the
/// progress too often.
pub(crate) const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The reason why the wait for registries ended.
enum Waited {
    Drained,
    /// The rest of the grace period is reserved for later registries.
    TimeIsReserved,
    /// The grace period has expired.
    Expired,
    /// `run` was dropped.
    Dropped,
}

/// Describes the oldest tasks in flight. If no registry is inspected, the tasks are not known. The description then contains only the
/// program and the number of other tasks.
fn oldest(phases: &Phases, state: &HostState, in_flight: usize) -> String {
    let tasks = phases.oldest();
    match state.program_in_flight() {
        Some(location) if tasks.is_empty() => match in_flight.saturating_sub(1) {
            0 => format!("the program at {location}"),
            1 => format!("the program at {location} and 1 other task"),
            others => format!("the program at {location} and {others} other tasks"),
        },
        _ => tasks,
    }
}
