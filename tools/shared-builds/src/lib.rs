//! This library is empty; see `Cargo.toml`.
