#![cfg_attr(any(not(doctest), feature = "compio"), doc = include_str!("../README.md"))] // its example needs compio
//!
//! # Features
//!
//! | feature | gives |
//! | --- | --- |
//! | `actix-rt` | `ArbiterSpawner`, for one of a system's arbiters, from any thread |
//! | `async-global-executor` | `GlobalExecutorSpawner` |
//! | `bevy_tasks` | `BevySpawner`, for one of bevy's pools or one's own |
//! | `compio` | `CompioSpawner`, for the runtime of the caller's thread |
//! | `glommio` | `GlommioSpawner`, for the executor of the caller's thread; Linux |
//! | `monoio` | `MonoioSpawner`, for the runtime of the caller's thread; Unix and Windows |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

#[cfg(feature = "actix-rt")]
mod actix;
#[cfg(all(feature = "bevy_tasks", not(target_family = "wasm")))]
mod bevy;
#[cfg(feature = "compio")]
mod compio;
#[cfg(feature = "async-global-executor")]
mod global;
#[cfg(all(feature = "glommio", target_os = "linux"))]
mod glommio;
#[cfg(any(all(feature = "glommio", target_os = "linux"), all(feature = "monoio", any(unix, windows))))]
mod held;
#[cfg(all(feature = "monoio", any(unix, windows)))]
mod monoio;

#[cfg(feature = "actix-rt")]
#[cfg_attr(docsrs, doc(cfg(feature = "actix-rt")))]
pub use self::actix::ArbiterSpawner;
#[cfg(all(feature = "bevy_tasks", not(target_family = "wasm")))]
#[cfg_attr(docsrs, doc(cfg(feature = "bevy_tasks")))]
pub use self::bevy::BevySpawner;
#[cfg(feature = "compio")]
#[cfg_attr(docsrs, doc(cfg(feature = "compio")))]
pub use self::compio::CompioSpawner;
#[cfg(feature = "async-global-executor")]
#[cfg_attr(docsrs, doc(cfg(feature = "async-global-executor")))]
pub use self::global::GlobalExecutorSpawner;
#[cfg(all(feature = "glommio", target_os = "linux"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "glommio", target_os = "linux"))))]
pub use self::glommio::GlommioSpawner;
#[cfg(all(feature = "monoio", any(unix, windows)))]
#[cfg_attr(docsrs, doc(cfg(feature = "monoio")))]
pub use self::monoio::MonoioSpawner;
