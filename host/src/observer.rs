use crate::terminal::stderr;
use background_tasks::{Observer, RejectReason, TaskInfo};
use std::fmt::Display;
use std::io::Write;

/// An observer that writes a line to [`stderr`](crate::stderr()) for each loss: the task, and how it was lost.
///
/// # Examples
///
/// ```
/// use background_tasks::{Registry, SmolSpawner};
/// use background_tasks_host::StderrObserver;
///
/// let registry = Registry::builder(SmolSpawner).observer(StderrObserver).inspect().build();
/// registry.named("mail").run(async { Err::<(), _>("no such mailbox") }); // mail at src/main.rs:5:24 failed: no such mailbox
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StderrObserver;

fn write(task: &TaskInfo, loss: impl Display) {
    let _ = writeln!(stderr(), "{task} {loss}");
}

impl Observer for StderrObserver {
    fn failed(&self, task: &TaskInfo, error: &str) {
        write(task, format_args!("failed: {error}"));
    }

    fn panicked(&self, task: &TaskInfo, message: &str) {
        write(task, format_args!("panicked: {message}"));
    }

    fn abandoned(&self, task: &TaskInfo) {
        write(task, "was abandoned");
    }

    fn aborted(&self, task: &TaskInfo) {
        match task.age() {
            Some(age) => write(task, format_args!("was aborted after {age:.1?}")),
            None => write(task, "was aborted"),
        }
    }

    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {
        write(task, format_args!("was rejected: {reason}"));
    }
}
