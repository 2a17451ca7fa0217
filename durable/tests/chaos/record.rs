//! What the processes write down, each into a file of its own, and what has to be true of it.

use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// Nanoseconds on a clock that all processes share, and that never goes back.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// The file of a process. A line is there, whole, when `line` returns, whatever becomes of the process.
pub(crate) struct Record(File);

impl Record {
    pub(crate) fn open(path: impl AsRef<Path>) -> Self {
        Self(OpenOptions::new().create(true).append(true).open(path).unwrap())
    }

    pub(crate) fn line(&self, line: impl Display) {
        (&self.0).write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// The words of each line that a process has written.
pub(crate) fn lines(path: &Path) -> Vec<Vec<String>> {
    // A process that has not begun to write has no file.
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

/// Once that a handler was called with a job.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) process: String,
    pub(crate) attempt: u32,
    pub(crate) began: u64,
    /// None if it was cut off.
    pub(crate) ended: Option<u64>,
}

/// All runs of each job, in the order of their beginnings.
pub(crate) type Runs = BTreeMap<String, Vec<Run>>;

/// The runs of the workers whose files are in this folder.
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
                    began: at.parse().unwrap(),
                    ended: None,
                }),
                ["end", job, attempt, at] => {
                    let attempt: u32 = attempt.parse().unwrap();
                    let mut ours = all.get_mut(job).into_iter().flatten();
                    let run = ours.find(|run| run.process == process && run.attempt == attempt && run.ended.is_none());
                    run.expect("what ends has begun").ended = Some(at.parse().unwrap());
                }
                _ => {}
            }
        }
    }
    for runs in all.values_mut() {
        runs.sort_by_key(|run| run.began);
    }
    all
}

/// The end of a process by SIGKILL.
#[derive(Debug)]
pub(crate) struct Death {
    /// Not later than it.
    pub(crate) at: u64,
    /// The jobs that had no outcome in the database when it was dead.
    pub(crate) open: HashSet<String>,
}

/// Every run after the first has a death to explain it: the run before was in a process that was killed while the job had no outcome, and
/// was over by that when the next began. Returns how many there were.
#[track_caller]
pub(crate) fn explained(runs: &Runs, deaths: &HashMap<String, Death>) -> usize {
    for (job, runs) in runs {
        for pair in runs.windows(2) {
            let [earlier, later] = pair else { unreachable!("windows of two") };
            let Some(death) = deaths.get(&earlier.process) else {
                panic!("{job} runs again, though {} was not killed: {runs:#?}", earlier.process)
            };
            assert!(death.at < later.began, "{job} runs twice at once: {runs:#?}");
            assert!(death.open.contains(job), "{job} runs again, though its outcome was committed: {runs:#?}");
            assert!(earlier.attempt < later.attempt, "{job} is not told that it runs again: {runs:#?}");
        }
    }
    runs.values().map(|runs| runs.len() - 1).sum()
}

/// Each job ran once, and to its end.
#[track_caller]
pub(crate) fn once(runs: &Runs) {
    for (job, runs) in runs {
        assert!(matches!(runs[..], [Run { attempt: 1, ended: Some(_), .. }]), "{job} ran otherwise than once: {runs:#?}");
    }
}
