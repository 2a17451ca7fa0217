//! Reports the progress of a drain. A terminal shows a progress bar, and other outputs receive lines. For systemd, the progress is the
//! status of the service, and for Windows, it is the checkpoint of the service.

use crate::bar;
use crate::deadline::{Deadline, EXIT_MARGIN};
use crate::output_thread::OutputThread;
use crate::phases::{Phases, describe_in_flight};
use crate::terminal::{Level, emits_events, log_stragglers};
use crate::{systemd, windows_service};
use background_tasks::Stragglers;
use std::io;
use std::time::{Duration, Instant};

/// The time between two lines about the progress.
pub(crate) const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// The longest time that the host requests from systemd or Windows at a time. The host requests more time whenever a task has ended. So if
/// the tasks hang, the supervisor stops waiting after this time.
const MAX_EXTENSION: Duration = Duration::from_secs(30);

pub(crate) struct Progress {
    output: OutputThread,
    has_bar: bool,
    /// The number of tasks that had ended before the drain.
    ended_before: u64,
    /// The number of tasks that had ended at the last call to `update`. `None` before the first call, and after a failed notification.
    ended_at_last_status: Option<u64>,
    last_line: Instant,
}

impl Progress {
    /// Creates the reporter of a drain. If `progress_bar` is `None`, the bar is shown only if the host emits no tracing events. A
    /// subscriber could write the events to the same terminal.
    pub(crate) fn new(phases: &Phases, progress_bar: Option<bool>, output: OutputThread) -> Self {
        Self {
            ended_before: phases.ended(),
            ended_at_last_status: None,
            last_line: Instant::now(),
            output,
            has_bar: progress_bar.unwrap_or_else(|| !emits_events()) && bar::is_available(),
        }
    }

    pub(crate) fn output(&self) -> &OutputThread {
        &self.output
    }

    pub(crate) fn log(&self, level: Level, line: String) {
        self.output.log(level, line);
    }

    pub(crate) fn log_stragglers(&self, level: Level, headline: String, stragglers: Stragglers) {
        self.output.run(move || log_stragglers(level, &headline, &stragglers));
    }

    /// Returns the time between two updates.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(if self.has_bar { 100 } else { 1000 })
    }

    /// Shows the progress bar, or logs that the drain has started. Logs nothing if observers log the start (`is_logged`).
    pub(crate) fn start(&self, in_flight: usize, deadline: &Deadline, is_logged: bool) {
        if self.has_bar {
            let (grace, elapsed) = (deadline.grace(), deadline.elapsed());
            self.output.run(move || bar::start(grace, elapsed));
        } else if !is_logged {
            self.log(Level::Info, format!("draining: {in_flight} in flight"));
        }
    }

    /// Notifies systemd that the service stops, if `stops_service` is true, or Windows that shutdown has started.
    pub(crate) fn notify_stopping(&self, deadline: &Deadline, stops_service: bool) {
        if stops_service {
            self.check(systemd::notify_stopping());
        }
        windows_service::report_stopping(extension(deadline));
    }

    /// Reports the tasks in flight. The function `oldest` receives the number of tasks in flight, and returns a description of the oldest
    /// tasks.
    pub(crate) fn update(&mut self, phases: &Phases, oldest: impl FnOnce(usize) -> String, deadline: &Deadline) {
        let in_flight = phases.in_flight();
        let ended = phases.ended().saturating_sub(self.ended_before);
        let has_progressed = self.ended_at_last_status.replace(ended) != Some(ended);
        let extension = has_progressed.then(|| extension(deadline));
        if let Some(extension) = extension {
            windows_service::report_stopping(extension);
        }
        let notified = systemd::notify_draining(in_flight, extension);
        if notified.is_err() {
            // The next notification must request the time again.
            self.ended_at_last_status = None;
        }
        self.check(notified);
        if self.has_bar {
            let oldest = oldest(in_flight);
            self.output.run(move || bar::update(ended, in_flight, oldest));
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.log(Level::Info, format!("draining: {}", describe_in_flight(in_flight, &oldest(in_flight))));
        }
    }

    /// Removes the progress bar.
    pub(crate) fn finish(&self) {
        self.output.run(bar::finish);
    }

    /// Waits until all output has been written, or until the timeout has expired.
    pub(crate) fn flush(&self, timeout: Duration) {
        self.output.flush(timeout);
    }

    fn check(&self, notified: io::Result<()>) {
        if let Err(error) = notified {
            self.output.run(move || systemd::log_failure(&error));
        }
    }
}

/// Returns the additional time that the host requests from systemd or Windows.
fn extension(deadline: &Deadline) -> Duration {
    deadline.remaining().min(MAX_EXTENSION) + EXIT_MARGIN
}
