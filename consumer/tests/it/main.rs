//! Tests the consumer's loop with the queue in memory.

#[cfg(feature = "conformance")]
mod conformance;
mod consumer;
mod real_time;
mod simulation;
