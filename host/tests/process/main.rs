//! Tests `Host` with real processes and real signals. On Windows, the tests send Ctrl-C.
//!
//! This binary has two roles. Without the environment variable `PROGRAM`, it is the test suite. A test sets `PROGRAM` and starts this
//! binary as the program under test. The program under test needs its own process, because the tests also check the exit code of `main`
//! and the destructors that run in `main`.

mod programs;
mod suite;

fn main() -> std::process::ExitCode {
    let Ok(program) = std::env::var("PROGRAM") else { return suite::run() };
    #[cfg(windows)]
    testing::raise_ctrl_c_on_request();
    programs::run(&program)
}
