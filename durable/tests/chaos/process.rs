//! Starts child processes for the tests. A child process ends when its test ends.

use crate::record;
use std::env;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use testing::{Signal, poll_until, poll_until_some};

#[derive(Debug)]
pub(crate) struct Process {
    child: testing::Process,
    pub(crate) name: String,
    record: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts one of the programs in this binary as a child process. The program writes its record to the file `name` in the folder
    /// `records`. Its stderr goes to the file `name` in the folder `logs`.
    pub(crate) fn start(program: &str, name: String, records: &Path, logs: &Path, settings: &[(&str, String)]) -> Self {
        let (record, stderr) = (records.join(&name), logs.join(&name));
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("PROGRAM", program).env("RECORD", &record).env("PARENT", std::process::id().to_string());
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&stderr).unwrap());
        Self { child: testing::Process::spawn(&mut command), name, record, stderr }
    }

    pub(crate) fn lines(&self) -> Vec<Vec<String>> {
        record::lines(&self.record)
    }

    pub(crate) fn has_recorded(&self, word: &str) -> bool {
        self.lines().iter().any(|words| words[0] == word)
    }

    #[track_caller]
    pub(crate) fn ready(&mut self) {
        poll_until(&"a process is not ready", || {
            assert!(self.is_alive(), "{} exits before it is ready: {}", self.name, self.log());
            self.has_recorded("ready")
        });
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().is_none()
    }

    /// Returns whether a handler of the process has been called and has not ended.
    pub(crate) fn is_busy(&self) -> bool {
        let lines = self.lines();
        let count = |word| lines.iter().filter(|words| words[0] == word).count();
        count("begin") > count("end")
    }

    /// Returns the time of the last line about a job in the record of the process.
    pub(crate) fn last_record(&self) -> u64 {
        let lines = self.lines();
        lines.iter().rev().find_map(|words| words.last()?.parse().ok()).expect("the process has recorded a job")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Kills the process with SIGKILL and waits until it has exited.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.exited();
    }

    /// Sends SIGTERM, waits until the process has exited, and checks its exit code.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        self.signal(Signal::TERM);
        self.drains();
    }

    #[track_caller]
    pub(crate) fn drains(&mut self) {
        let status = self.exited();
        assert!(status.success(), "{}: {status}: {}", self.name, self.log());
    }

    /// Waits until the process has exited, and checks that it has aborted itself.
    #[track_caller]
    pub(crate) fn aborts(&mut self) {
        let status = self.exited();
        assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{}: {}", self.name, self.log());
    }

    #[track_caller]
    fn exited(&mut self) -> ExitStatus {
        poll_until_some(&"a process does not exit", || self.child.try_wait())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{} wrote: {}", self.name, self.log());
        }
    }
}
