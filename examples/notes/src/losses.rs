use crate::exit::log;
use background_tasks::{Observer, Reason, TaskInfo};
use indicatif::ProgressBar;
use std::fmt::Display;

/// Tells each loss in a line on stderr, above the drain's bar while that is shown.
pub(crate) struct Losses(pub(crate) ProgressBar);

impl Losses {
    fn tell(&self, task: &TaskInfo, how: impl Display) {
        self.0.suspend(|| log(format_args!("{task} {how}")));
    }
}

impl Observer for Losses {
    fn failed(&self, task: &TaskInfo, error: &str) {
        self.tell(task, format_args!("failed: {error}"));
    }

    fn panicked(&self, task: &TaskInfo, message: &str) {
        self.tell(task, format_args!("panicked: {message}"));
    }

    fn abandoned(&self, task: &TaskInfo) {
        self.tell(task, "was abandoned");
    }

    fn aborted(&self, task: &TaskInfo) {
        self.tell(task, format_args!("was aborted after {:.1?}", task.age().unwrap_or_default()));
    }

    fn rejected(&self, task: &TaskInfo, reason: Reason) {
        self.tell(task, format_args!("was rejected: {reason}"));
    }
}
