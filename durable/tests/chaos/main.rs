//! Chaos tests: these tests kill, stop and restart the processes that run jobs, make them hang, and kill the database. This binary
//! contains the tests and the programs of their child processes. If the environment variable `PROGRAM` is set, this binary runs one of
//! these programs.
//!
//! The environment variable `JOBS` sets the number of jobs in each test. Default: 100. `SEED` seeds the random choices. An argument
//! selects the tests whose names contain the argument.

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

// These tests run only on Linux, because only Linux can end a child process when its test is killed.
#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match std::env::var("PROGRAM") {
        Ok(program) => programs::run(&program),
        Err(_) => suite::run(),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
