//! Writes and reads the records of the processes, and checks them. Each process has its own record file.

use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Returns the time of a monotonic clock in nanoseconds. All processes share this clock.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// The record of a process. When `line` returns, the whole line is in the file, even if the process is killed immediately after that.
pub(crate) struct Record(File);

impl Record {
    pub(crate) fn open(path: impl AsRef<Path>) -> Self {
        Self(OpenOptions::new().create(true).append(true).open(path).unwrap())
    }

    pub(crate) fn line(&self, line: impl Display) {
        (&self.0).write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// Returns the words of each complete line in a record file.
pub(crate) fn lines(path: &Path) -> Vec<Vec<String>> {
    // If a process has not written a line, its file may not exist.
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

/// One run of a job: one call to its handler.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) process: String,
    pub(crate) attempt: u32,
    pub(crate) started: u64,
    /// The time at which the call ended. `None` if the call was interrupted.
    pub(crate) ended: Option<u64>,
}

/// All runs of each job, sorted by their start time.
pub(crate) type Runs = BTreeMap<String, Vec<Run>>;

/// Returns the runs that the workers have recorded in this folder.
pub(crate) fn runs(folder: &Path) -> Runs {
    let mut all = Runs::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let process = entry.file_name().into_string().unwrap();
        for words in lines(&entry.path()) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            match words[..] {
                ["begin", job, attempt, at] => all.entry(job.into()).or_default().push(Run {
                    process: process.clone(),
                    attempt: attempt.parse().unwrap(),
                    started: at.parse().unwrap(),
                    ended: None,
                }),
                ["end", job, attempt, at] => {
                    let attempt: u32 = attempt.parse().unwrap();
                    let mut candidates = all.get_mut(job).into_iter().flatten();
                    let run = candidates.find(|run| run.process == process && run.attempt == attempt && run.ended.is_none());
                    run.expect("the run has a start").ended = Some(at.parse().unwrap());
                }
                _ => {}
            }
        }
    }
    for runs in all.values_mut() {
        runs.sort_by_key(|run| run.started);
    }
    all
}

/// The end of a worker process that was killed or that aborted itself.
#[derive(Debug)]
pub(crate) struct Death {
    /// A time that is not later than the death.
    pub(crate) at: u64,
    /// The jobs that had no outcome in the database after the death.
    pub(crate) open: HashSet<String>,
}

/// Checks that the death of a process explains each repeated run. The process of the previous run must have died before the next run
/// started, and while the job had no outcome. Returns the number of repeated runs.
#[track_caller]
pub(crate) fn check_repeated_runs(runs: &Runs, deaths: &HashMap<String, Death>) -> usize {
    for (job, runs) in runs {
        for pair in runs.windows(2) {
            let [earlier, later] = pair else { unreachable!("windows of two") };
            let Some(death) = deaths.get(&earlier.process) else {
                panic!("{job} runs again, though {} was not killed: {runs:#?}", earlier.process)
            };
            assert!(death.at < later.started, "{job} runs twice at the same time: {runs:#?}");
            assert!(death.open.contains(job), "{job} runs again, though its outcome was committed: {runs:#?}");
            assert!(earlier.attempt < later.attempt, "the attempt of {job} does not increase: {runs:#?}");
        }
    }
    runs.values().map(|runs| runs.len() - 1).sum()
}

/// Checks that each job ran exactly one time and completed.
#[track_caller]
pub(crate) fn check_single_runs(runs: &Runs) {
    for (job, runs) in runs {
        assert!(matches!(runs[..], [Run { attempt: 1, ended: Some(_), .. }]), "{job} did not run exactly once: {runs:#?}");
    }
}
