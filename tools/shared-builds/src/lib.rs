//! This library is empty. Only its dependencies matter: see `Cargo.toml`.
