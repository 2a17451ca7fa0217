use super::RejectReason;
use core::fmt;

/// Says how a task was lost. [`Observer::lost`](crate::Observer::lost) receives this type.
///
/// A loss is every outcome except *completed*. The `Display` text continues a sentence whose subject is the task, for example
/// `failed: no such mailbox` or `was abandoned`. Therefore `format!("{task} {loss}")` is a complete report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loss<'a> {
    /// The task returned an `Err`. Contains the `Display` text of the error in its alternate form, `{:#}`. An error of `anyhow`
    /// prints its whole chain of causes in this form.
    Failed(&'a str),
    /// The task panicked, a destructor of the task panicked, or a panic dropped a [`Guard`](crate::Guard) or
    /// a [`CompletionGuard`](crate::CompletionGuard). Contains the message of the panic. For guards, which do not receive the panic,
    /// the text is always `dropped by a panic`.
    Panicked(&'a str),
    /// The task was dropped before it finished, or a [`CompletionGuard`](crate::CompletionGuard) was dropped without a call of
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
    /// The names are fixed, so a metric can use them as the values of a label.
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
