//! A test suite for implementations of [`Source`].
//!
//! [`source`] calls the methods of a source one by one. [`processes`] starts worker processes that serve the source, kills, freezes and
//! stops them, and compares what they did with what was sent. Both return the first promise that the source breaks.
//!
//! ```
//! use background_tasks_consumer::{MemoryQueue, conformance};
//! use std::time::Duration;
//!
//! struct Memory(MemoryQueue);
//!
//! impl conformance::Broker for Memory {
//!     type Source = MemoryQueue;
//!
//!     async fn connect(&self) -> MemoryQueue {
//!         self.0.clone()
//!     }
//!
//!     async fn send(&self, payload: String) {
//!         self.0.send(payload);
//!     }
//!
//!     async fn dead_letters(&self) -> Vec<Vec<u8>> {
//!         self.0.dead_letters().iter().map(|(delivery, _)| delivery.payload().to_vec()).collect()
//!     }
//! }
//!
//! // #[test]
//! fn my_source_keeps_its_contract() {
//!     let empty = async || Memory(MemoryQueue::new(Duration::from_secs(2)));
//!     smol::block_on(conformance::source(empty)).unwrap();
//! }
//! ```

mod processes;
mod single;

pub use self::processes::{Plan, Report, processes, worker};
pub use self::single::source;

use crate::source::Source;
use std::fmt;
use std::future::Future;

/// A broker with a queue, as the suite needs it.
pub trait Broker {
    /// The source under test.
    type Source: Source;

    /// Returns a source of this queue with its own connection, as another process has it.
    fn connect(&self) -> impl Future<Output = Self::Source>;

    /// Sends a message to the queue.
    fn send(&self, payload: String) -> impl Future<Output = ()>;

    /// Returns the payloads of all dead messages of the queue.
    fn dead_letters(&self) -> impl Future<Output = Vec<Vec<u8>>>;
}

/// A promise that a source breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    promise: &'static str,
    observed: String,
}

impl Violation {
    /// Returns the promise.
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
