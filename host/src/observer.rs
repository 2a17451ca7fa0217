use crate::terminal::stderr;
use background_tasks::{Loss, Observer, TaskInfo};
use std::io::Write;

/// An observer that writes a line to [`stderr`](crate::stderr()) for each lost task. The line contains the name and the call site of the
/// task, and says how the task was lost.
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

impl Observer for StderrObserver {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        let _ = match (loss, task.age()) {
            (Loss::Aborted, Some(age)) => writeln!(stderr(), "{task} {loss} after {age:.1?}"),
            _ => writeln!(stderr(), "{task} {loss}"),
        };
    }
}
