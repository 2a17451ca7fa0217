use core::fmt;

/// Says how a task was lost. [`Observer::lost`](crate::Observer::lost) receives this type.
///
/// Every outcome except *completed* is a loss. The `Display` text is, for example, `failed: no such mailbox` or `was
/// abandoned`. It continues the text of the task, so `format!("{task} {loss}")` is a complete report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss<'a> {
    /// The task returned an `Err`. This variant contains the text that the format `{:#}` prints for the error. With this format, an
    /// error of `anyhow` prints its whole chain of causes.
    Failed(&'a str),
    /// The task panicked, or a destructor of the task panicked. Or a [`Guard`](crate::Guard) or a
    /// [`CompletionGuard`](crate::CompletionGuard) was dropped because its thread panicked. This variant contains the message of
    /// the panic, or a placeholder if the panic has no message. The text for guards is always `dropped by a panic`, because a guard
    /// cannot read the panic's message.
    Panicked(&'a str),
    /// The task was dropped before it finished, or a [`CompletionGuard`](crate::CompletionGuard) was dropped without a call to
    /// `complete`.
    Abandoned,
    /// The task was [aborted](crate::Registry::abort).
    Aborted,
    /// The registry rejected the task. A rejected task has no ID and no age.
    Rejected(RejectReason),
}

impl Loss<'_> {
    /// Returns the name of the outcome: `failed`, `panicked`, `abandoned`, `aborted` or `rejected`.
    ///
    /// The names are fixed, so a metric can use these names as label values.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Failed(_) => "failed",
            Self::Panicked(_) => "panicked",
            Self::Abandoned => "abandoned",
            Self::Aborted => "aborted",
            Self::Rejected(_) => "rejected",
        }
    }
}

impl fmt::Display for Loss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) | Self::Panicked(text) => write!(f, "{}: {text}", self.outcome()),
            Self::Abandoned | Self::Aborted => write!(f, "was {}", self.outcome()),
            Self::Rejected(reason) => write!(f, "was rejected: {reason}"),
        }
    }
}

/// Reports that a registry rejected a task. This error contains the reason, and the future or closure that was not started.
///
/// The operator `?` converts a `Rejected` to `Box<dyn Error + Send + Sync>` only if the future or closure is `Send + Sync +
/// 'static`. For other futures and closures, convert the [`RejectReason`] that the method [`reason`](Self::reason) returns.
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
    /// The number of tasks in flight has reached the [limit](crate::RegistryBuilder::max_in_flight), or the free permits are
    /// reserved for futures that [wait](crate::Registry::run_when_ready).
    ///
    /// The limit does not apply to work that is started [without a permit](crate::Registry::without_permit). For such work, the
    /// registry is full if 4,194,303 tasks without a permit are in flight (1,023 on 32-bit targets).
    ///
    /// On 32-bit targets, a registry without a limit is also full if its counters are full. A registry has several counters, one in
    /// each shard. Each of them can count at most 1,048,575 tasks in flight.
    Full,
    /// The task had to [wait for a permit](crate::Registry::run_when_ready), but the shutdown had started, or started during the
    /// wait. After the start of the shutdown, only a [follow-up](crate::Registry::follow_up) can wait.
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
            Self::Drained => "the registry has shut down and drained",
            Self::Full => "too many tasks are in flight",
            Self::ShuttingDown => "shutdown started before a permit was available",
        })
    }
}
