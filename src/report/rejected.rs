use core::fmt;

/// Reports that a registry rejected a task. Contains the reason and the future or closure that was not started.
///
/// The operator `?` converts a `Rejected` to `Box<dyn Error + Send + Sync>` only if the future or closure is `Send + Sync +
/// 'static`. The method [`reason`](Self::reason) returns a [`RejectReason`], which `?` can always convert.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rejected<F> {
    work: F,
    reason: RejectReason,
}

/// Says why a registry rejected a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RejectReason {
    /// The registry has drained: the shutdown has started and no task is in flight.
    Drained,
    /// The number of tasks in flight has reached the [limit](crate::RegistryBuilder::max_in_flight). This limit does not
    /// apply to work that is started [without a permit](crate::Registry::without_permit). The registry rejects such work only if
    /// 4,194,303 tasks without a permit are in flight (1,023 on 32-bit targets).
    ///
    /// On 32-bit targets, a registry is also full when the counters of its shards are full. Each shard can count at most 2²⁰ - 1
    /// tasks in flight.
    Full,
    /// The task needed to [wait for a permit](crate::Registry::run_when_ready), the shutdown had started, and the task was not a
    /// [follow-up](crate::Registry::follow_up).
    ShuttingDown,
}

impl<F> Rejected<F> {
    pub(crate) fn new(work: F, reason: RejectReason) -> Self {
        Self { work, reason }
    }

    /// Returns the future or closure that was not started.
    pub fn into_inner(self) -> F {
        self.work
    }

    /// Returns the reason why the registry rejected the task.
    pub fn reason(&self) -> RejectReason {
        self.reason
    }
}

impl<F> fmt::Debug for Rejected<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<F> fmt::Display for Rejected<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "background work rejected: {}", self.reason)
    }
}

impl<F> core::error::Error for Rejected<F> {}

impl core::error::Error for RejectReason {}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RejectReason::Drained => "the registry has shut down and drained",
            RejectReason::Full => "too many tasks are in flight",
            RejectReason::ShuttingDown => "shutdown started before a permit was available",
        })
    }
}
