//! The notes service: an on-disk cache that is written after the response.
//!
//! A `PUT` is answered immediately, and a background task writes its body to disk. This package has everything except the runtime, for any
//! spawner. The packages of the runtimes, such as `examples/tokio`, start the runtime, bind the listener, accept connections and wrap the
//! streams.

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
