//! The progress of a drain: a progress bar on a terminal, lines elsewhere, and the status that systemd shows.

use crate::bar;
use crate::deadline::{Deadline, EXIT_MARGIN};
use crate::output_thread::OutputThread;
use crate::phases::Phases;
use crate::systemd;
use crate::terminal::Level;
use background_tasks::Stragglers;
use std::io;
use std::time::{Duration, Instant};

/// The time between two lines.
pub(crate) const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// The longest extension that is requested from systemd. If no task ends for this long, systemd decides.
const MAX_EXTENSION: Duration = Duration::from_secs(30);

pub(crate) struct Progress {
    output: OutputThread,
    has_bar: bool,
    /// How many tasks had ended before the drain.
    ended_before: u64,
    /// How many tasks had ended at the last status for systemd.
    ended_at_last_status: Option<u64>,
    last_line: Instant,
}

impl Progress {
    pub(crate) fn new(phases: &Phases) -> Self {
        Self {
            ended_before: phases.ended(),
            ended_at_last_status: None,
            last_line: Instant::now(),
            output: OutputThread::start(),
            has_bar: bar::is_available(),
        }
    }

    pub(crate) fn output(&self) -> &OutputThread {
        &self.output
    }

    pub(crate) fn log(&self, level: Level, line: String) {
        self.output.log(level, line);
    }

    /// Returns the time between two updates.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(if self.has_bar { 100 } else { 1000 })
    }

    /// Shows that the drain has started.
    pub(crate) fn start(&self, in_flight: usize, grace: Duration) {
        if self.has_bar {
            self.output.run(move || bar::start(grace));
        } else {
            self.log_in_flight(in_flight);
        }
    }

    /// Notifies systemd that shutdown has started.
    pub(crate) fn notify_stopping(&self) {
        self.check(systemd::notify_stopping());
    }

    /// Reports the tasks in flight.
    pub(crate) fn update(&mut self, phases: &Phases, stragglers: &Stragglers, deadline: &Deadline) {
        let in_flight = phases.in_flight();
        let ended = phases.ended().saturating_sub(self.ended_before);
        let has_progressed = self.ended_at_last_status.replace(ended) != Some(ended);
        let extension = has_progressed.then(|| deadline.remaining().min(MAX_EXTENSION) + EXIT_MARGIN);
        self.check(systemd::notify_draining(in_flight, extension));
        if self.has_bar {
            let stragglers = stragglers.clone();
            self.output.run(move || bar::update(ended, in_flight, &stragglers));
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.log_in_flight(in_flight);
        }
    }

    /// Removes the progress bar.
    pub(crate) fn finish(&self) {
        self.output.run(bar::finish);
    }

    /// Waits until all output has been written, but at most this long.
    pub(crate) fn flush(&self, timeout: Duration) {
        self.output.flush(timeout);
    }

    fn log_in_flight(&self, in_flight: usize) {
        self.log(Level::Info, format!("draining: {in_flight} in flight"));
    }

    fn check(&self, notified: io::Result<()>) {
        if let Err(error) = notified {
            self.output.run(move || systemd::log_failure(&error));
        }
    }
}
