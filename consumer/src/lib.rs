//! Runs the messages of a broker's queue as tasks of a [`background_tasks`] registry.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod adapters;
mod attempt;
#[cfg(feature = "conformance")]
pub mod conformance;
mod consumer;
mod delivery;
mod failure;
mod lease;
mod memory;
mod source;
mod worker;

#[cfg(feature = "azure")]
pub use self::adapters::azure::{AzureQueue, AzureReceipt};
#[cfg(feature = "nats")]
pub use self::adapters::nats::JetStream;
#[cfg(feature = "rabbitmq")]
pub use self::adapters::rabbitmq::{RabbitError, RabbitQueue, RabbitReceipt};
pub use self::consumer::{Consumer, consumer};
pub use self::delivery::Delivery;
pub use self::failure::Failure;
pub use self::memory::{MemoryQueue, MemoryReceipt, ReceiptVoid};
pub use self::source::{Message, Release, Source};
