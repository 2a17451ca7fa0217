//! The contract of [`Spawner`](crate::Spawner), [`LocalSpawner`](crate::LocalSpawner) and [`BlockingSpawner`](crate::BlockingSpawner) as a
//! suite, for the tests of whoever implements one.
//!
//! Each function checks all that its trait promises, one promise after the other, and panics at the first that is broken, with the
//! spawner's type, the promise, and what happened. Each promise gets a spawner of its own from `make`, on a thread of its own, and a minute:
//! a spawner that hangs fails, too (its thread is left behind then).
//!
//! ```
//! # #[cfg(feature = "smol")] {
//! use background_tasks::{Spawner, conformance};
//!
//! struct Mine;
//!
//! impl Spawner for Mine {
//!     fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
//!         smol::spawn(task).detach();
//!     }
//! }
//!
//! // #[test]
//! fn mine_keeps_its_promises() {
//!     conformance::spawner(|| Mine);
//! }
//! # mine_keeps_its_promises();
//! # }
//! ```
//!
//! A spawner that serves its caller's runtime alone (as `TokioSpawner`) cannot take tasks from any thread by itself: check one that enters
//! the runtime first.

mod local;
#[cfg(not(target_family = "wasm"))]
mod sent;
#[cfg(all(test, not(loom), not(target_family = "wasm")))]
mod tests;
#[cfg(not(target_family = "wasm"))]
mod threaded;

pub use local::local_tasks;
#[cfg(not(target_family = "wasm"))]
pub use threaded::{blocking_spawner, executor, local_spawner, spawner};

use crate::Summary;
use std::string::String;

/// What was seen in place of what is promised.
type Checked = Result<(), String>;

/// How many are started at once: Miri is slow.
const MANY: usize = if cfg!(miri) { 100 } else { 10_000 };

/// Demands how work has ended; what is not named is zero.
fn demand(summary: Summary, completed: usize, panicked: usize) -> Checked {
    let expected = Summary { completed: completed as u64, panicked: panicked as u64, ..Summary::default() };
    if summary == expected { Ok(()) } else { Err(format!("its tasks ended so: {summary}, in place of {expected}")) }
}

#[cfg(any(panic = "unwind", not(target_family = "wasm")))]
fn panics() {
    panic!("a panic of the conformance suite, as planned");
}
