use super::task_info::{TaskInfo, TaskKind};
use alloc::vec::Vec;
use core::fmt;

/// Contains, for each outcome, the number of tasks that ended with this outcome.
///
/// After the registry has drained, the numbers are exact. The sum of all numbers except `rejected` is then the number of
/// accepted tasks. Before the end of the drain, `completed` can be too low, but is never too high.
///
/// On 32-bit targets, the counters behind these numbers can wrap around. A registry has several shards, each with its own
/// counters. In each shard, the counter of a loss wraps around after 2³² tasks, and the counter of all tasks wraps around after
/// 2³⁹ tasks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Summary {
    /// The number of tasks that finished with `()`, `Ok` or `None`. A tracked future, or a task with a handle, counts here if it
    /// finished with any output. A [`Guard`](crate::Guard) counts here if it was dropped. A
    /// [`CompletionGuard`](crate::CompletionGuard) counts here if `complete` was called.
    pub completed: u64,
    /// The number of tasks without a handle that finished with `Err`.
    pub failed: u64,
    /// The number of tasks and guards that ended with a panic: the task panicked, a destructor of the task panicked, or the guard
    /// was dropped because its thread panicked.
    pub panicked: u64,
    /// The number of tasks that were dropped before they finished. For example, a runtime drops its remaining tasks when the
    /// runtime itself is dropped. This number also includes each [`CompletionGuard`](crate::CompletionGuard) that was dropped
    /// without a call to `complete`.
    pub abandoned: u64,
    /// The number of tasks that an [abort](crate::Registry::abort) ended. An abort ends a future at an await point or before its
    /// first poll. It ends a blocking closure only if the closure has not started.
    pub aborted: u64,
    /// The number of tasks that the registry rejected and never started; see [`RejectReason`](crate::RejectReason).
    pub rejected: u64,
}

impl Summary {
    /// Returns whether all numbers except `completed` are zero: no task failed, panicked, or was abandoned, aborted or rejected.
    pub fn is_clean(&self) -> bool {
        self.failed + self.unfinished() == 0
    }

    /// Returns the number of tasks that did not run to their end: the sum of `panicked`, `abandoned`, `aborted` and `rejected`.
    ///
    /// A failed task is not included, because it has run to its end and returned an error.
    pub fn unfinished(&self) -> u64 {
        let Self { completed: _, failed: _, panicked, abandoned, aborted, rejected } = *self;
        panicked + abandoned + aborted + rejected
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { completed, failed, panicked, abandoned, aborted, rejected } = self;
        write!(f, "{completed} completed, {failed} failed, {panicked} panicked, ")?;
        write!(f, "{abandoned} abandoned, {aborted} aborted, {rejected} rejected")
    }
}

/// Reports that tasks were still in flight when the deadline of a shutdown expired.
///
/// The `Display` text is one line. If the registry is [inspected](crate::RegistryBuilder::inspect), the text lists groups of
/// similar tasks. The group that contains the oldest task comes first. The format `{:#}` prints each group on a separate line:
///
/// ```text
/// 4 background tasks still in flight (1 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected)
///   1 × upload at src/main.rs:31:14, for 7.2s
///   3 × welcome-mail at src/main.rs:20:14, the oldest for 5.1s
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Stragglers {
    len: usize,
    summary: Summary,
    tasks: Vec<TaskInfo>,
}

impl Stragglers {
    pub(crate) fn new(in_flight: usize, summary: Summary, tasks: Vec<TaskInfo>) -> Self {
        // After the last task has ended, the registry reports the end of the drain to its observers. During this report,
        // `in_flight` is zero, but the drain has not ended. In this case, the last task counts as a straggler.
        Self { len: in_flight.max(tasks.len()).max(1), summary, tasks }
    }

    /// Returns the number of tasks that were still in flight. Minimum: 1. A [child](crate::Registry::child) counts as one task. In
    /// an inspected registry, each task of the child counts in addition.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns how many tasks had ended with each outcome when the deadline expired.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Returns the tasks that were still in flight, in the order of [`Registry::tasks`](crate::Registry::tasks): oldest first.
    ///
    /// If the registry is not [inspected](crate::RegistryBuilder::inspect), the list is empty.
    pub fn tasks(&self) -> &[TaskInfo] {
        &self.tasks
    }

    /// Groups similar tasks. Returns the oldest task of each group and the number of tasks in the group.
    ///
    /// Tasks are in the same group if they have the same name, call site, kind and [`abort_requested`](TaskInfo::abort_requested).
    /// After an abort, blocking closures that had started are in a different group than closures that never start. The group that
    /// contains the oldest of all tasks comes first. If the registry is not [inspected](crate::RegistryBuilder::inspect), there are
    /// no groups.
    ///
    /// The cost grows with the number of tasks times the number of groups.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[cfg(feature = "smol")] {
    /// use background_tasks::{Registry, SmolSpawner};
    /// use std::time::Duration;
    ///
    /// let registry = Registry::builder(SmolSpawner).inspect().build();
    /// for _ in 0..3 {
    ///     registry.named("welcome-mail").run(std::future::pending::<()>());
    /// }
    /// let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
    /// for (oldest, len) in stragglers.groups() {
    ///     println!("{len} tasks like {oldest}");
    /// #   assert_eq!((oldest.name(), len), (Some("welcome-mail"), 3));
    /// }
    /// # }
    /// ```
    pub fn groups(&self) -> impl Iterator<Item = (&TaskInfo, usize)> {
        let key = |task: &TaskInfo| (task.name, task.location, task.kind, task.abort_requested.then_some(task.is_abortable));
        let mut groups: Vec<(&TaskInfo, usize)> = Vec::new();
        for task in &self.tasks {
            match groups.iter_mut().find(|(oldest, _)| key(oldest) == key(task)) {
                Some((_, len)) => *len += 1,
                None => groups.push((task, 1)),
            }
        }
        groups.into_iter()
    }
}

fn fmt_group(f: &mut fmt::Formatter<'_>, oldest: &TaskInfo, len: usize) -> fmt::Result {
    write!(f, "{len} × {oldest}")?;
    if let Some(age) = oldest.age {
        let subject = if len == 1 { "" } else { "the oldest " };
        write!(f, ", {subject}for {age:.1?}")?;
    }
    match oldest.kind {
        _ if !oldest.abort_requested => Ok(()),
        Some(TaskKind::Blocking) if oldest.is_abortable => {
            f.write_str(" (aborted before it started, but not dropped by its executor yet)")
        }
        Some(TaskKind::Blocking) => f.write_str(" (a blocking closure that has started cannot be aborted)"),
        Some(kind) if !oldest.is_abortable => write!(f, " (a {kind} cannot be aborted)"),
        _ => f.write_str(" (abort requested, but no await point reached yet)"),
    }
}

impl fmt::Display for Stragglers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { len, summary, .. } = self;
        let plural = if *len == 1 { "" } else { "s" };
        write!(f, "{len} background task{plural} still in flight ({summary})")?;
        for (index, (oldest, len)) in self.groups().enumerate() {
            f.write_str(match (f.alternate(), index) {
                (true, _) => "\n  ",
                (false, 0) => ": ",
                (false, _) => "; ",
            })?;
            fmt_group(f, oldest, len)?;
        }
        Ok(())
    }
}

impl core::error::Error for Stragglers {}
