//! Runs the messages of a broker's queue as tasks of a [`background_tasks`] registry.
//!
//! ```
//! # smol::block_on(async {
//! use background_tasks::{Registry, SmolSpawner};
//! use background_tasks_consumer::{Delivery, Failure, MemoryQueue, consumer};
//! use serde::Deserialize;
//! use std::time::Duration;
//!
//! #[derive(Deserialize)]
//! struct Email {
//!     to: String,
//! }
//!
//! async fn send(delivery: Delivery) -> Result<(), Failure> {
//!     let email: Email = delivery.json()?; // a malformed message is dead
//!     println!("to {}, Message-ID {}", email.to, delivery.id());
//!     Ok(())
//! }
//!
//! // In production: `RabbitQueue`, `JetStream`, `AzureQueue` or `SqsQueue`.
//! let queue = MemoryQueue::new(Duration::from_secs(30));
//! queue.send(r#"{"to": "a@example.com"}"#);
//! let registry = Registry::builder(SmolSpawner).inspect().build(); // can abort handlers after the grace period
//! consumer(queue.clone()).concurrency(16).serve(&registry, "email", send)?;
//! # while !queue.is_empty() {
//! #     smol::Timer::after(Duration::from_millis(1)).await;
//! # }
//! # registry.shutdown().await;
//! # Ok::<_, background_tasks::RejectReason>(())
//! # }).unwrap();
//! ```
//!
//! The broker stores the messages and delivers them. A consumer of this crate receives the messages and calls the handler:
//!
//! - The consumer receives only as many messages as it can handle at the same time. [`Consumer::concurrency`] sets this number.
//! - Each attempt to handle a message is a named task of the registry. The registry counts and observes the task, and its drain waits for
//!   the task. If the handler panics, the attempt has failed.
//! - The consumer extends the lease of a message while the handler runs.
//! - The consumer acknowledges a message after its handler has completed. If the broker confirms acknowledgements, the task ends after the
//!   confirmation.
//! - The consumer retries failed messages after a [backoff](Consumer::backoff), and moves dead messages to the dead-letter queue.
//! - When shutdown starts, the consumer receives no more messages, and running handlers continue. If the registry aborts handlers when the
//!   grace period expires, their messages return to the queue immediately.
//!
//! To create queues and to send messages, use the client library of the broker.
//!
//! **Every message is handled at least once.** A process can die after a handler has done its work, and before the message is acknowledged.
//! The broker then delivers the message again, so handlers must be idempotent. [`Delivery::id`] is the same at every attempt. The crate
//! promises no order, no priority and no deduplication.
//!
//! # Sources
//!
//! | source | feature | broker |
//! | --- | --- | --- |
//! | `RabbitQueue` | `rabbitmq` | RabbitMQ, quorum and classic queues |
//! | `JetStream` | `nats` | NATS JetStream, pull consumers |
//! | `AzureQueue` | `azure` | Azure Queue Storage |
//! | `SqsQueue` | `sqs` | Amazon SQS, standard queues |
//! | [`MemoryQueue`] | | the memory of the process, for tests and for development |
//!
//! To use another broker, implement [`Source`]. The module `conformance` (feature `conformance`) contains tests for your implementation.
//!
//! # Features
//!
//! | feature | enables |
//! | --- | --- |
//! | `json` (default) | `Delivery::json` |
//! | `azure`, `nats`, `rabbitmq`, `sqs` | the sources above; each needs tokio |
//! | `conformance` | the module `conformance` |
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

#[doc = include_str!("recipes.md")]
pub mod recipes {}

#[cfg(feature = "azure")]
pub use self::adapters::azure::{AzureQueue, AzureReceipt};
#[cfg(feature = "nats")]
pub use self::adapters::nats::JetStream;
#[cfg(feature = "rabbitmq")]
pub use self::adapters::rabbitmq::{RabbitError, RabbitQueue, RabbitReceipt};
#[cfg(feature = "sqs")]
pub use self::adapters::sqs::{SqsError, SqsQueue, SqsReceipt};
pub use self::consumer::{Consumer, consumer};
pub use self::delivery::Delivery;
pub use self::failure::Failure;
pub use self::memory::{MemoryQueue, MemoryReceipt, ReceiptVoid};
pub use self::source::{Message, Release, Source};

#[cfg(all(doctest, feature = "nats"))]
#[doc = include_str!("../README.md")]
struct Readme;
