use core::fmt;

/// The error of work that a registry did not accept: why, and the work itself.
///
/// As it holds the work, `?` makes a `Box<dyn Error + Send + Sync>` of it only if that is `Send + Sync` too; the [`reason`](Self::reason) always
/// becomes one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rejected<F> {
    work: F,
    reason: RejectReason,
}

/// Why a registry did not accept some work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum RejectReason {
    /// The registry has shut down and nothing is in flight any more.
    Drained,
    /// As many tasks are in flight as the registry [may have](crate::RegistryBuilder::max_in_flight). On 32-bit targets also: as many as it can
    /// count, 2²⁰ - 1 for each shard.
    Full,
    /// The shutdown began while it waited for a place.
    ShuttingDown,
}

impl<F> Rejected<F> {
    pub(crate) fn new(work: F, reason: RejectReason) -> Self {
        Self { work, reason }
    }

    /// Returns the work, which was not started.
    pub fn into_inner(self) -> F {
        self.work
    }

    /// Returns why it was not accepted.
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
            RejectReason::ShuttingDown => "the registry began to shut down before there was a place",
        })
    }
}
