use super::task_info::TaskInfo;
use alloc::vec::Vec;
use core::fmt;

/// How the work of a registry ended, counted.
///
/// Exact once the registry has drained: what was accepted is the sum of all but `rejected`. While it has not, `completed` may lag. On 32-bit
/// targets each shard counts 2³² losses of a kind, and 2³⁹ of all, before it begins again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Summary {
    /// Finished, with `()` or `Ok`; guards that were dropped.
    pub completed: u64,
    /// Finished with an `Err`.
    pub failed: u64,
    /// Panicked, in the work or in its destructor.
    pub panicked: u64,
    /// Dropped before it had finished, by its runtime, its spawner or its owner: the work was not done.
    pub abandoned: u64,
    /// Ended by the host at an await point, by [`abort`](crate::Registry::abort).
    pub aborted: u64,
    /// Never started, as the registry had drained, or was full.
    pub rejected: u64,
}

impl Summary {
    /// Returns whether all that was asked for was done: nothing failed, panicked, or was abandoned, aborted or rejected.
    pub fn is_clean(&self) -> bool {
        let Self { completed: _, failed, panicked, abandoned, aborted, rejected } = *self;
        failed + panicked + abandoned + aborted + rejected == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { completed, failed, panicked, abandoned, aborted, rejected } = self;
        write!(f, "{completed} completed, {failed} failed, {panicked} panicked, ")?;
        write!(f, "{abandoned} abandoned, {aborted} aborted, {rejected} rejected")
    }
}

/// The error of a missed deadline: work is still in flight.
///
/// Its `Display` is one line. On an [inspected](crate::RegistryBuilder::inspect) registry that names the work, grouped by name and call site, the
/// oldest first; `{:#}` gives each group a line of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Stragglers {
    len: usize,
    summary: Summary,
    tasks: Vec<TaskInfo>,
}

impl Stragglers {
    pub(crate) fn new(in_flight: usize, summary: Summary, tasks: Vec<TaskInfo>) -> Self {
        // At least one: between the last departure and the drain the count is zero, and the registry has not drained yet.
        Self { len: in_flight.max(tasks.len()).max(1), summary, tasks }
    }

    /// Returns how many were still in flight; at least 1.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns how those that had ended by then did.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Returns who was still in flight, oldest first; empty unless the registry is [inspected](crate::RegistryBuilder::inspect).
    pub fn tasks(&self) -> &[TaskInfo] {
        &self.tasks
    }

    /// Those of one call together, each group with its oldest, in the order of these.
    fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for task in &self.tasks {
            match groups.iter_mut().find(|group| group.holds(task)) {
                Some(group) => group.len += 1,
                None => groups.push(Group { len: 1, oldest: *task }),
            }
        }
        groups
    }
}

struct Group {
    len: usize,
    oldest: TaskInfo,
}

impl Group {
    fn holds(&self, task: &TaskInfo) -> bool {
        let key = |task: &TaskInfo| (task.name, task.location, task.kind, task.abort_requested);
        key(&self.oldest) == key(task)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { len, oldest } = self;
        write!(f, "{len} × {oldest}")?;
        if let Some(age) = oldest.age {
            let since = if *len == 1 { "for" } else { "the oldest for" };
            write!(f, ", {since} {age:.1?}")?;
        }
        match oldest.kind {
            Some(kind) if oldest.abort_requested && !kind.is_abortable() => write!(f, " (a {kind} cannot be aborted)"),
            _ if oldest.abort_requested => write!(f, " (told to abort, has not come to an await point)"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Stragglers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { len, summary, .. } = self;
        let plural = if *len == 1 { "" } else { "s" };
        write!(f, "{len} background task{plural} still in flight ({summary})")?;
        for (n, group) in self.groups().iter().enumerate() {
            let between = match (f.alternate(), n) {
                (true, _) => "\n  ",
                (false, 0) => ": ",
                (false, _) => "; ",
            };
            write!(f, "{between}{group}")?;
        }
        Ok(())
    }
}

impl core::error::Error for Stragglers {}
