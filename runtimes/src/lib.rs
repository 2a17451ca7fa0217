#![cfg_attr(any(not(doctest), feature = "compio"), doc = include_str!("../README.md"))] // the README's example needs compio
//!
//! # Features
//!
//! | feature | provides |
//! | --- | --- |
//! | `actix-rt` | `ArbiterSpawner`, which spawns on one arbiter of an actix system, from any thread |
//! | `async-global-executor` | `GlobalExecutorSpawner` |
//! | `bevy_tasks` | `BevySpawner`, which spawns on any task pool of bevy |
//! | `compio` | `CompioSpawner`, which spawns on the runtime of the caller's thread |
//! | `glommio` | `GlommioSpawner`, which spawns on the executor of the caller's thread; only on Linux |
//! | `monoio` | `MonoioSpawner`, which spawns on the runtime of the caller's thread; only on Unix and Windows |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(feature = "actix-rt")]
mod actix;
#[cfg(any(feature = "actix-rt", all(feature = "glommio", target_os = "linux"), all(feature = "monoio", any(unix, windows))))]
mod advice;
#[cfg(all(feature = "bevy_tasks", not(target_family = "wasm")))]
mod bevy;
#[cfg(feature = "compio")]
mod compio;
#[cfg(feature = "async-global-executor")]
mod global;
#[cfg(all(feature = "glommio", target_os = "linux"))]
mod glommio;
#[cfg(all(feature = "monoio", any(unix, windows)))]
mod monoio;
#[cfg(any(all(feature = "glommio", target_os = "linux"), all(feature = "monoio", any(unix, windows))))]
mod owned_tasks;

#[cfg(feature = "actix-rt")]
pub use self::actix::ArbiterSpawner;
#[cfg(all(feature = "bevy_tasks", not(target_family = "wasm")))]
pub use self::bevy::BevySpawner;
#[cfg(feature = "compio")]
pub use self::compio::CompioSpawner;
#[cfg(feature = "async-global-executor")]
pub use self::global::GlobalExecutorSpawner;
#[cfg(all(feature = "glommio", target_os = "linux"))]
pub use self::glommio::GlommioSpawner;
#[cfg(all(feature = "monoio", any(unix, windows)))]
pub use self::monoio::MonoioSpawner;

/// Compiles the recipes of the host's documentation for other web frameworks. These recipes are not compiled with the package host/,
/// because its tests must build quickly and therefore without these frameworks.
#[cfg(doctest)]
#[doc = include_str!("../../host/src/frameworks.md")]
struct Frameworks;

/// The longest timer duration of the spawners: 30 years. Longer durations are shortened to this value, because the sum of a longer duration
/// and the current time can overflow.
#[cfg(any(feature = "compio", all(feature = "glommio", target_os = "linux")))]
const LONGEST_SLEEP: std::time::Duration = std::time::Duration::from_secs(30 * 365 * 24 * 60 * 60);
