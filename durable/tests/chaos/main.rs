//! Chaos tests: they kill, stop, restart and hang the processes that run jobs, and kill the database. This binary contains the tests and the
//! programs of their child processes, which it runs if `PROGRAM` is set in its environment.
//!
//! `JOBS` sets the number of jobs in each test (default: 100), and `SEED` seeds the random choices. Arguments select the tests whose names
//! contain them.

#[cfg(target_os = "linux")]
#[path = "../it/common/postgres.rs"]
mod postgres;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod programs;
#[cfg(target_os = "linux")]
mod record;
#[cfg(target_os = "linux")]
mod site;
#[cfg(target_os = "linux")]
mod suite;

// Only Linux can end a child process whose test was killed.
#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match std::env::var("PROGRAM") {
        Ok(program) => programs::run(&program),
        Err(_) => suite::run(),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
