use core::fmt;

/// How the work of a registry ended, counted.
///
/// Exact once the registry has drained: what was accepted is the sum of all but `rejected`. While it has not, `completed` may lag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
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
    /// Ended by the host before it had finished. Nothing in this version aborts a task, so it is 0.
    pub aborted: u64,
    /// Never started, as the registry had drained (or was full).
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stragglers {
    len: usize,
    summary: Summary,
}

impl Stragglers {
    /// Between the last one's leaving and the drain nobody can be counted: the registry has not drained, so one it is.
    pub(crate) fn new(in_flight: usize, summary: Summary) -> Self {
        Self { len: in_flight.max(1), summary }
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
}

impl fmt::Display for Stragglers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { len, summary } = self;
        let plural = if *len == 1 { "" } else { "s" };
        write!(f, "{len} background task{plural} still in flight at the deadline ({summary})")
    }
}

impl core::error::Error for Stragglers {}
