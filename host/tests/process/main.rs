//! Tests of `Host` with real processes and real signals.
//!
//! This binary is the test suite. Started by a test with `PROGRAM` in the environment, it is also the program under test, because the exit code that
//! `main` returns and the destructors that run in `main` are part of what is tested.

#[cfg(unix)]
mod programs;
#[cfg(unix)]
mod suite;

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    match std::env::var("PROGRAM") {
        Ok(program) => programs::run(&program),
        Err(_) => suite::run(),
    }
}

#[cfg(not(unix))]
fn main() {}
