//! Tests of `Host` with real processes and real signals. On Windows, the signals are Ctrl-C.
//!
//! This binary is the test suite. Started by a test with `PROGRAM` in the environment, it is also the program under test, because the exit code that
//! `main` returns and the destructors that run in `main` are part of what is tested.

mod programs;
mod suite;

fn main() -> std::process::ExitCode {
    let Ok(program) = std::env::var("PROGRAM") else { return suite::run() };
    #[cfg(windows)]
    testing::raise_ctrl_c_on_request();
    programs::run(&program)
}
