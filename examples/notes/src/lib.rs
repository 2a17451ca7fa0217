//! The notes service: an on-disk cache that is written after the response.
//!
//! A `PUT` is answered at once and its body is written by a background task. Everything but the runtime is here, for any spawner;
//! `main.rs` of the packages beside this one is the runtime's part: start it, bind, accept, wrap the stream.

#[cfg(all(unix, feature = "harness"))]
pub mod harness;

mod answer;
mod options;
mod page;
mod server;
mod store;

pub use server::{Server, run};
