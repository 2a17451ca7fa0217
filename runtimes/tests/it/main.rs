//! Contains the tests of this crate. The module `conformance` needs all features, and each other module needs at least three runtimes.

#[cfg(all(target_os = "linux", feature = "compio", feature = "glommio", feature = "monoio"))]
mod cache_lines;
#[cfg(all(target_os = "linux", feature = "compio", feature = "glommio", feature = "monoio"))]
mod common;
#[cfg(all(
    target_os = "linux",
    feature = "actix-rt",
    feature = "async-global-executor",
    feature = "bevy_tasks",
    feature = "compio",
    feature = "glommio",
    feature = "monoio"
))]
mod conformance;
#[cfg(all(target_os = "linux", feature = "actix-rt", feature = "compio", feature = "glommio", feature = "monoio"))]
mod outside_runtime;
#[cfg(all(target_os = "linux", feature = "compio", feature = "glommio", feature = "monoio"))]
mod owned_tasks;
#[cfg(all(target_os = "linux", feature = "compio", feature = "glommio", feature = "monoio"))]
mod thread_per_core;
#[cfg(all(target_os = "linux", feature = "actix-rt", feature = "compio", feature = "glommio", feature = "monoio"))]
mod timers;
