//! Tests implementations of [`Source`](crate::Source).
//!
//! [`source`] calls the methods of a source in one process. [`processes()`] starts worker processes that handle the messages of the source,
//! and kills, freezes and stops these processes. It then checks that no message was lost, and that no message was repeated without a
//! reason. Both functions return the first promise that the source breaks.
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

mod broker;
mod processes;
mod single;

pub use self::broker::{Broker, Violation};
pub use self::processes::{Plan, Report, processes, worker};
pub use self::single::source;
