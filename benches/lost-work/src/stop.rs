//! Sends jobs to a variant, stops the variant, and counts the jobs that were lost.

use crate::service::GRACE;
use crate::variants::Variant;
use fastrand::Rng;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};
use testing::{Client, Process, Signal};

/// The time between SIGTERM and SIGKILL, like `terminationGracePeriodSeconds` in Kubernetes.
pub const KILL_AFTER: Duration = Duration::from_secs(3);
const CONNECTIONS: u8 = 4;
const _: () = assert!(GRACE.as_secs() < KILL_AFTER.as_secs());

/// The results of one stop of a service.
#[derive(Default)]
pub struct Stop {
    /// The number of jobs for which the service responded with the status 202.
    pub accepted: usize,
    /// The number of accepted jobs that did not finish and that the service did not report.
    pub lost_silently: usize,
    /// The number of accepted jobs that the deadline interrupted and that the service reported. A report has the ID of a job or the
    /// number of jobs.
    pub lost_reported: usize,
    /// The number of accepted jobs that must fail or panic.
    pub must_fail: usize,
    /// The number of jobs whose failure or panic the service has logged.
    pub failures_logged: usize,
    /// The time from SIGTERM until the end of the process.
    pub duration: Duration,
    /// The exit code. `None` means that SIGKILL ended the process.
    pub code: Option<i32>,
    /// The lines that the process wrote to stderr after SIGTERM.
    pub output: String,
}

/// Starts a variant and stops it. The seed determines the kinds of the jobs, and the time of the stop.
pub fn stop(variant: &Variant, seed: u64) -> Result<Stop, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", variant.name);
    let folder = tempfile::tempdir().map_err(failed)?;
    let (outbox, stderr) = (folder.path().join("outbox"), folder.path().join("stderr"));

    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["--serve", variant.name]).arg(&outbox).env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&stderr).map_err(failed)?);
    let mut process = Process::spawn(&mut command);
    let address = process.line("127.0.0.1:").parse().map_err(|error| format!("{}: {error}", variant.name))?;

    // All variants receive the same jobs, and receive SIGTERM after the same time.
    let mut rng = Rng::with_seed(seed);
    let clients: Vec<_> = (0..CONNECTIONS.into())
        .map(|first| (first, rng.fork()))
        .map(|(first, rng)| thread::spawn(move || send_jobs(address, rng, first)))
        .collect();
    sleep(Duration::from_millis(rng.u64(300..1300)));
    let before = read(&stderr)?.len();
    let (stopped, code) = terminate(&mut process);
    let mut kinds = HashMap::new();
    for client in clients {
        kinds.extend(client.join().map_err(|_| format!("{}: a client panicked", variant.name))?);
    }

    let stderr = read(&stderr)?;
    let done = numbers_after("done ", &read(&outbox)?);
    let logged = numbers_after("job ", &stderr);
    let must_fail: Vec<_> = kinds.iter().filter(|(_, kind)| matches!(**kind, "fail" | "panic")).map(|(id, _)| *id).collect();
    let failures_logged = must_fail.iter().filter(|id| logged.contains(id)).count();
    let unfinished: Vec<_> = kinds.keys().filter(|id| !done.contains(id)).collect();
    let logged = unfinished.iter().filter(|id| logged.contains(id)).count();
    let not_logged = unfinished.len() - logged;
    let counted = number_before(variant.unfinished, &stderr[before..]).min(not_logged);
    Ok(Stop {
        accepted: kinds.len(),
        lost_silently: not_logged - counted,
        lost_reported: logged - failures_logged + counted,
        must_fail: must_fail.len(),
        failures_logged,
        duration: stopped,
        code,
        output: stderr[before..].to_owned(),
    })
}

/// Sends SIGTERM. If the process has not ended after [`KILL_AFTER`], sends SIGKILL. Returns the time until the process ended, and its
/// exit code.
fn terminate(process: &mut Process) -> (Duration, Option<i32>) {
    let start = Instant::now();
    process.terminate();
    loop {
        if let Some(status) = process.try_wait() {
            return (start.elapsed(), status.code());
        }
        if start.elapsed() > KILL_AFTER {
            process.signal(Signal::KILL);
        }
        sleep(Duration::from_millis(2));
    }
}

/// Sends jobs until the server closes the connection. Returns the IDs and kinds of the accepted jobs.
fn send_jobs(address: SocketAddr, mut rng: Rng, first: u64) -> HashMap<u64, &'static str> {
    let mut accepted = HashMap::new();
    let Ok(mut client) = Client::connect(address) else { return accepted };
    for id in (first..).step_by(CONNECTIONS.into()) {
        let kind = match rng.u32(..1000) {
            0..3 => "hang",
            3..33 => "fail",
            33..53 => "panic",
            _ => "succeed",
        };
        match client.request("POST", "/jobs", format!("{id} {kind}").as_bytes()) {
            Ok(response) if response.status == 202 => accepted.insert(id, kind),
            Ok(_) => None,
            Err(_) => break,
        };
        sleep(Duration::from_millis(10));
    }
    accepted
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// Returns all numbers that directly follow `words` in the text.
fn numbers_after(words: &str, text: &str) -> HashSet<u64> {
    let rests = text.split(words).skip(1);
    rests.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
}

/// Returns the last number that directly precedes `words` in the text. Returns 0 if no number precedes `words`.
fn number_before(words: &str, text: &str) -> usize {
    let ends = text.match_indices(words).map(|(end, _)| &text[..end]);
    let numbers = ends.filter_map(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    numbers.last().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{number_before, numbers_after};

    const OUTPUT: &str =
        "job 7 failed: no such mailbox\njob at main.rs:1:2 was aborted after 2.1s\n3 failed, 12 aborted, 0 rejected\n";

    #[test]
    fn ids_are_found_in_the_output() {
        assert_eq!(numbers_after("job ", OUTPUT), [7].into());
        assert_eq!(numbers_after("done ", "started 1\ndone 1\nstarted 22\ndone 22\nstarted 3\n"), [1, 22].into());
    }

    #[test]
    fn last_number_before_the_words_is_found() {
        assert_eq!(number_before(" aborted", OUTPUT), 12);
        assert_eq!(number_before(" aborted", "aborted\nwas aborted\n"), 0);
    }
}
