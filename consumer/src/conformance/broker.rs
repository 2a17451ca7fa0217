use crate::source::Source;
use std::fmt;
use std::future::Future;

/// Gives the functions of this module access to a queue of a broker.
pub trait Broker {
    /// The source under test.
    type Source: Source;

    /// Opens a new connection to the broker, as another process would, and returns a source for the queue.
    fn connect(&self) -> impl Future<Output = Self::Source>;

    /// Sends a message to the queue.
    fn send(&self, payload: String) -> impl Future<Output = ()>;

    /// Returns the payloads of all dead messages of the queue.
    fn dead_letters(&self) -> impl Future<Output = Vec<Vec<u8>>>;
}

/// The error of [`source`](super::source) and [`processes`](super::processes()): the source broke a promise of its contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub(super) promise: &'static str,
    pub(super) observed: String,
}

impl Violation {
    /// Returns the broken promise as a sentence.
    pub fn promise(&self) -> &'static str {
        self.promise
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the source breaks its contract. Required: {}. Observed: {}", self.promise, self.observed)
    }
}

impl std::error::Error for Violation {}
