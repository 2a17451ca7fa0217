//! Runs the checks of this repository. The text `HELP` describes the commands. `cargo xtask --list` prints the jobs.

mod changes;
mod context;
mod jobs;
mod tools;
mod workspace;

use crate::context::Context;
use crate::jobs::{JOBS, Job, Tier};
use anyhow::{Context as _, Result};
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "\
Runs the checks of this repository.

    cargo xtask                    checks the formatting, lints and tests of the packages that changed
    cargo xtask JOB [ARGUMENTS]    runs one job
    cargo xtask full               runs the jobs that every change must pass
    cargo xtask nightly            runs the jobs that take longer
    cargo xtask ci                 runs `full`, and one of eight parts of `nightly`; each commit selects the next part
    cargo xtask --list             lists the jobs, with their paths, tools and durations

On a branch, a file has changed if it differs from the point where the branch left `main`. On `main`, the changed files are the
uncommitted files. If all files are committed, they are the files that the last commit changed.

Environment:
    REQUIRE=postgres,systemd,…     names tools. If such a tool is missing, its tests fail instead of being skipped. Default for `test`:
                                   the installed tools. `brokers`, `consumer` and `graphile` also require the installed tools
    TURN=N                         selects the part of `nightly` that `ci` runs, from 0 to 7. Default: the number of commits, modulo 8

A job installs the tools that it needs (as root, on Debian). If a tool is not available, the job prints `skipped: REASON`.";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Vec<String>) -> Result<()> {
    let command = if arguments.is_empty() { String::new() } else { arguments.remove(0) };
    let mut context = Context::new(arguments)?;
    match &*command {
        "" => changes::check(&context),
        "--help" | "-h" => {
            println!("{HELP}");
            Ok(())
        }
        "--list" => {
            jobs::print_list();
            Ok(())
        }
        "full" => run_all(&context, JOBS.iter().filter(|job| job.tier == Tier::Full)),
        "nightly" => run_all(&context, JOBS.iter().filter(|job| matches!(job.tier, Tier::Nightly(_)))),
        "ci" => {
            let commits: usize = xshell::cmd!(context.sh, "git rev-list --count HEAD").quiet().read()?.parse()?;
            let turn = turn(commits)?;
            println!("turn {turn} of 8");
            context.round = Some(commits / 8);
            run_all(&context, JOBS.iter().filter(|job| job.tier.has_turn(turn)))
        }
        name => {
            let job = JOBS.iter().find(|job| job.name == name);
            let job = job.with_context(|| format!("there is no job `{name}`; `cargo xtask --list` prints them"))?;
            run_all(&context, [job].into_iter())
        }
    }
}

/// Returns which part of the nightly jobs `ci` runs: the value of `TURN`, or the number of commits modulo 8.
fn turn(commits: usize) -> Result<usize> {
    let Ok(turn) = std::env::var("TURN") else { return Ok(commits % 8) };
    turn.parse().ok().filter(|turn| *turn < 8).context("TURN must be a number from 0 to 7")
}

/// Runs jobs one after another until one fails. Prints the duration of each job and the tests that were skipped.
fn run_all<'a>(context: &Context, jobs: impl Iterator<Item = &'a Job>) -> Result<()> {
    let mut times = Vec::new();
    for job in jobs {
        println!("\n=== {}: {}", job.name, job.about);
        let start = Instant::now();
        (job.run)(context).with_context(|| format!("`cargo xtask {}` failed", job.name))?;
        times.push((job.name, start.elapsed().as_secs()));
    }
    println!();
    context.print_skips()?;
    for (name, seconds) in &times {
        println!("{name}: passed in {seconds} s");
    }
    Ok(())
}
