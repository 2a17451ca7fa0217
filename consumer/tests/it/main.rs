//! The tests of the loop, on the in-memory queue.

#[cfg(feature = "conformance")]
mod conformance;
mod consumer;
mod real_time;
mod simulation;
