//! The tests of the crate, except for `chaos`. Each test runs on SQLite and on Postgres.

mod common;
mod cron;
mod engine_workarounds;
mod enqueue;
mod errors;
mod network;
mod outcomes;
mod regressions;
mod shutdown;
mod versions;
