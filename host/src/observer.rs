use crate::stderr;
use background_tasks::{Observer, RejectReason, TaskInfo};
use std::fmt::Display;
use std::io::Write;

/// Tells each loss in a line on [`stderr`](crate::stderr()): which task, and how it was lost.
///
/// # Examples
///
/// ```
/// use background_tasks::{Registry, SmolSpawner};
/// use background_tasks_host::StderrObserver;
///
/// let registry = Registry::builder(SmolSpawner).observer(StderrObserver).inspect().build();
/// registry.named("mail").run(async { Err("no such mailbox") }); // mail at src/main.rs:5:24 failed: no such mailbox
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StderrObserver;

fn tell(task: &TaskInfo, how: impl Display) {
    let _ = writeln!(stderr(), "{task} {how}");
}

impl Observer for StderrObserver {
    fn failed(&self, task: &TaskInfo, error: &str) {
        tell(task, format_args!("failed: {error}"));
    }

    fn panicked(&self, task: &TaskInfo, message: &str) {
        tell(task, format_args!("panicked: {message}"));
    }

    fn abandoned(&self, task: &TaskInfo) {
        tell(task, "was abandoned");
    }

    fn aborted(&self, task: &TaskInfo) {
        match task.age() {
            Some(age) => tell(task, format_args!("was aborted after {age:.1?}")),
            None => tell(task, "was aborted"),
        }
    }

    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {
        tell(task, format_args!("was rejected: {reason}"));
    }
}
