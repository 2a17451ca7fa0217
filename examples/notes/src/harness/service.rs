//! The service as a process.

use super::Program;
use super::client::Client;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes here; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that does not outlive its test.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<Line>,
    seen: Vec<Line>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    Out(String),
    Err(String),
}

impl Line {
    pub(crate) fn text(&self) -> &str {
        match self {
            Line::Out(text) | Line::Err(text) => text,
        }
    }
}

/// What a process left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) lines: Vec<Line>,
}

impl Ended {
    #[track_caller]
    pub(crate) fn assert(&self, code: i32, text: &str) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.lines.iter().any(|line| line.text().contains(text)), "no line has {text:?}: {self:#?}");
    }
}

impl Program {
    pub(crate) fn dir(self) -> TempDir {
        TempDir::new_in(self.tmp).unwrap()
    }

    pub(crate) fn start(self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Process {
        let mut command = Command::new(self.path);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        pass_on(child.stdout.take().unwrap(), sender.clone(), Line::Out);
        pass_on(child.stderr.take().unwrap(), sender, Line::Err);
        Process { child, lines, seen: Vec::new() }
    }
}

impl Process {
    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Waits for a line that has `text`.
    #[track_caller]
    pub(crate) fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next(deadline) {
                Some(line) if line.text().contains(text) => return line.text().to_owned(),
                Some(_) => {}
                None => panic!("ended without a line that has {text:?}: {:#?}", self.seen),
            }
        }
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline).is_some() {}
        let code = self.child.wait().unwrap().code();
        Ended { code, lines: std::mem::take(&mut self.seen) }
    }

    /// Returns the next line, or `None` once there is nobody left to write one: the process has ended.
    #[track_caller]
    fn next(&mut self, deadline: Instant) -> Option<Line> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it hangs: {:#?}", self.seen),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pass_on(from: impl Read + Send + 'static, to: Sender<Line>, line: fn(String) -> Line) {
    thread::spawn(move || {
        for text in BufReader::new(from).lines().map_while(Result::ok) {
            // Whoever does not listen any more must not block the process.
            let _ = to.send(line(text));
        }
    });
}

/// A process that serves, and its folder.
pub(crate) struct Service {
    process: Process,
    address: SocketAddr,
    dir: TempDir,
}

impl Service {
    pub(crate) fn start(program: Program, options: &[&str]) -> Self {
        let dir = program.dir();
        let args = ["--port", "0", "--dir", dir.path().to_str().unwrap()];
        let mut process = program.start(args.iter().chain(options));
        let first = process.line("");
        let address = first.strip_prefix("listening on http://").and_then(|address| address.parse().ok());
        Self { process, address: address.unwrap_or_else(|| panic!("not an address: {first}")), dir }
    }

    pub(crate) fn port(&self) -> String {
        self.address.port().to_string()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Has the write of the first note hang: to open its temporary file waits for a reader, who never comes.
    pub(crate) fn hold_first_write(&self) {
        let temporary = format!(".{}-1.tmp", self.process.child.id());
        mkfifoat(CWD, self.dir().join(temporary), Mode::RWXU).unwrap();
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    pub(crate) fn terminate(&self) {
        self.process.terminate();
    }

    #[track_caller]
    pub(crate) fn line(&mut self, text: &str) -> String {
        self.process.line(text)
    }

    /// Waits for the end of the process and returns the folder that it leaves.
    #[track_caller]
    pub(crate) fn wait(self) -> (Ended, TempDir) {
        (self.process.wait(), self.dir)
    }

    #[track_caller]
    pub(crate) fn stop(self) -> (Ended, TempDir) {
        self.terminate();
        self.wait()
    }
}
