//! Tests `Host` with real processes and real signals. On Windows, the tests send Ctrl-C instead of signals.
//!
//! This binary is the test suite and also the program under test. A test starts the binary again, with the environment variable `PROGRAM`.
//! So the tests can check the exit code that `main` returns, and the effect of destructors that run in `main`.

mod programs;
mod suite;

fn main() -> std::process::ExitCode {
    let Ok(program) = std::env::var("PROGRAM") else { return suite::run() };
    #[cfg(windows)]
    testing::raise_ctrl_c_on_request();
    programs::run(&program)
}
