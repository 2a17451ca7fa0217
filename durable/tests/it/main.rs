//! Contains all tests of the crate except the chaos tests. The tests run on SQLite and on Postgres.

mod carry_over;
mod common;
mod cron;
mod depth;
mod enqueue;
mod errors;
mod kit;
mod metrics;
mod network;
mod operations;
mod operator;
mod outcomes;
mod pgbouncer;
mod promises;
mod regressions;
mod reports;
mod shutdown;
mod versions;
