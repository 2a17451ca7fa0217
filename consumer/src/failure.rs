use std::any::Any;
use std::fmt;
use std::time::Duration;

/// An error that a handler returns to decide whether and when its message is retried.
///
/// A handler may return any error that implements `Display`. An error of another type has the same effect as [`retry`](Self::retry). The
/// operator `?` converts each `std::error::Error` to a `Failure`. At the [last attempt](crate::Consumer::max_attempts), any error moves the
/// message to the dead-letter queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    text: String,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Backoff,
    After(Duration),
    Dead,
}

impl Failure {
    /// Creates a failure that moves the message to the dead-letter queue.
    pub fn dead(error: impl fmt::Display) -> Self {
        Self { text: format!("{error:#}"), next: Next::Dead }
    }

    /// Creates a failure that retries the message after this delay instead of the consumer's backoff. The broker may limit the delay.
    pub fn retry_after(error: impl fmt::Display, delay: Duration) -> Self {
        Self { text: format!("{error:#}"), next: Next::After(delay) }
    }

    /// Creates a failure that retries the message after the consumer's [backoff](crate::Consumer::backoff).
    pub fn retry(error: impl fmt::Display) -> Self {
        Self { text: format!("{error:#}"), next: Next::Backoff }
    }

    /// Converts an error of a handler to a failure.
    pub(crate) fn of<E: fmt::Display + Any>(error: &E) -> Self {
        let failure = (error as &dyn Any).downcast_ref::<Self>();
        failure.cloned().unwrap_or_else(|| Self::retry(error))
    }

    pub(crate) fn into_parts(self) -> (String, Next) {
        (self.text, self.next)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Converts any standard error to a failure with [`Failure::retry`].
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}
