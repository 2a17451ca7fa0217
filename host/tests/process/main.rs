//! A `Host` in real processes, and real signals. This program is all the tests and, started by them with `PROGRAM` in its environment,
//! the program of each: what `main` returns, and what is dropped then, is part of it.

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
