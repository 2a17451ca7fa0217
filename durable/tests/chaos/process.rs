//! Processes that do not outlive their test.

use crate::record;
use rustix::process::{Pid, Signal, kill_process};
use std::env;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes; what takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until it holds. What it looks at is what somebody has written.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    pub(crate) name: String,
    record: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts a program of this binary, which writes into a file of this name in `records`, and complains into one in `complaints`.
    pub(crate) fn start(program: &str, name: String, records: &Path, complaints: &Path, settings: &[(&str, String)]) -> Self {
        let (record, stderr) = (records.join(&name), complaints.join(&name));
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("PROGRAM", program).env("RECORD", &record).env("PARENT", std::process::id().to_string());
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&stderr).unwrap());
        Self { child: command.spawn().unwrap(), name, record, stderr }
    }

    pub(crate) fn lines(&self) -> Vec<Vec<String>> {
        record::lines(&self.record)
    }

    pub(crate) fn has_said(&self, word: &str) -> bool {
        self.lines().iter().any(|words| words[0] == word)
    }

    #[track_caller]
    pub(crate) fn ready(&mut self) {
        until("a process is ready", || {
            assert!(self.is_alive(), "{} ends before it is ready: {}", self.name, self.complaints());
            self.has_said("ready")
        });
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Whether a handler of it was called and has not returned.
    pub(crate) fn is_busy(&self) -> bool {
        let lines = self.lines();
        let count = |word| lines.iter().filter(|words| words[0] == word).count();
        count("begin") > count("end")
    }

    /// When it wrote its last line of a job.
    pub(crate) fn last(&self) -> u64 {
        let lines = self.lines();
        lines.iter().rev().find_map(|words| words.last()?.parse().ok()).expect("it has written one")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Returns once it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, which it does in order.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
        self.ends_in_order();
    }

    #[track_caller]
    pub(crate) fn ends_in_order(&mut self) {
        until("a process has ended", || !self.is_alive());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{}: {status}: {}", self.name, self.complaints());
    }

    /// Waits until it has ended itself by SIGABRT.
    #[track_caller]
    pub(crate) fn aborts(&mut self) {
        until("a process has aborted", || !self.is_alive());
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{}: {}", self.name, self.complaints());
    }

    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{} said: {}", self.name, self.complaints());
        }
    }
}
