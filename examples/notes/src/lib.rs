//! The notes service: a cache of notes in a folder. The service writes each note to disk after the response.
//!
//! The service answers a `PUT` immediately, and a background task writes the body to disk. This package works with any spawner and
//! contains everything except the runtime. The packages of the runtimes, such as `examples/tokio`, start the runtime, bind the listener,
//! accept connections and wrap the streams.

#[cfg(all(unix, feature = "harness"))]
pub mod harness;

mod folder;
mod handler;
mod memory;
mod options;
mod page;
mod server;
mod store;

pub use server::{Server, run};
