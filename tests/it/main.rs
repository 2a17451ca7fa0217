//! Contains the tests of the core. They are one binary, because each binary links all runtimes. `tests/allocation.rs` is a separate
//! binary: the tests of a process share a pool of registry states, so other tests would change its number of allocations.

#[macro_use]
mod common;

#[cfg(feature = "std")]
mod auto_traits;
#[cfg(any(feature = "std", feature = "critical-section"))]
mod bare;
#[cfg(all(
    feature = "conformance",
    feature = "tokio",
    feature = "smol",
    feature = "async-std",
    feature = "async-executor",
    feature = "futures",
    feature = "tracing"
))]
mod conformance;
#[cfg(feature = "std")]
mod documentation;
#[cfg(feature = "std")]
mod layout;
#[cfg(all(feature = "async-executor", feature = "metrics"))]
mod metrics;
#[cfg(feature = "std")]
mod public_api;
#[cfg(all(feature = "async-executor", feature = "serde"))]
mod serde;
#[cfg(all(feature = "tokio", feature = "smol", feature = "async-executor", feature = "tracing"))]
mod spawner_composition;
mod statics;
#[cfg(all(feature = "async-executor", feature = "tracing"))]
mod tracing;

#[cfg(feature = "async-executor")]
mod abort;
#[cfg(feature = "async-executor")]
mod child;
#[cfg(feature = "async-executor")]
mod drain;
#[cfg(feature = "async-executor")]
mod inspect;
#[cfg(feature = "async-executor")]
mod join;
#[cfg(feature = "async-executor")]
mod limit;
#[cfg(feature = "async-executor")]
mod observer;
#[cfg(feature = "async-executor")]
mod outcomes;
#[cfg(feature = "async-executor")]
mod peer_behaviours;
#[cfg(feature = "async-executor")]
mod property;
#[cfg(feature = "async-executor")]
mod release_order;
#[cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]
mod services;
#[cfg(feature = "async-executor")]
mod shutdown_policy;
#[cfg(feature = "async-executor")]
mod shutdown_signal;
#[cfg(feature = "async-executor")]
mod soak;
#[cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]
mod spawners;
#[cfg(feature = "async-executor")]
mod stress;
#[cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor"))]
mod timers;
