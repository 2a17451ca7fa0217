//! Jobs whose processes are killed, stopped, restarted and hung, and whose database is killed under them. This program is all the tests
//! and, started by them with `PROGRAM` in its environment, the processes of each.
//!
//! `JOBS` says how many jobs there are to a test, `SEED` which of them are hit; words on the command line choose the tests.

#[cfg(target_os = "linux")]
#[path = "../common/postgres.rs"]
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

// Elsewhere nobody ends a process whose test was killed.
#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match std::env::var("PROGRAM") {
        Ok(program) => programs::run(&program),
        Err(_) => suite::run(),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}
