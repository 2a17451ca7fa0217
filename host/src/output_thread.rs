//! Writes the output of a drain on a separate thread, so that a blocked stderr does not block the drain.

use crate::terminal::{Level, log};
use std::convert::Infallible;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

/// After the grace period has expired, the host waits at most this long until the last lines have been written.
pub(crate) const LAST_LINES_TIMEOUT: Duration = Duration::from_millis(200);

/// A thread that writes the output of a drain.
#[derive(Clone)]
pub(crate) struct OutputThread {
    /// `None` if the system has refused the thread. The caller's thread then writes the output itself.
    jobs: Option<Sender<Box<dyn FnOnce() + Send>>>,
}

impl OutputThread {
    pub(crate) fn start() -> Self {
        let (sender, jobs) = channel::<Box<dyn FnOnce() + Send>>();
        let write = || jobs.into_iter().for_each(|job| job());
        let thread = thread::Builder::new().name("output".into()).spawn(write);
        Self { jobs: thread.is_ok().then_some(sender) }
    }

    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        match &self.jobs {
            Some(jobs) => drop(jobs.send(Box::new(job))),
            None => job(),
        }
    }

    pub(crate) fn log(&self, level: Level, line: String) {
        self.run(move || log(level, line));
    }

    /// Waits until all output has been written, or until the timeout has expired.
    pub(crate) fn flush(&self, timeout: Duration) {
        let (sender, done) = channel::<Infallible>();
        self.run(move || drop(sender));
        let _ = done.recv_timeout(timeout);
    }
}
