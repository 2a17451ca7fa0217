//! Starts processes, sends signals to them, and reads their output and exit status.

#[cfg(windows)]
use crate::console::{CtrlC, Signal};
#[cfg(unix)]
use rustix::process::{Pid, kill_process, kill_process_group};
use std::fmt::Debug;
#[cfg(unix)]
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
#[cfg(unix)]
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(unix)]
pub use rustix::process::Signal;

/// The time limit of each step of a test. If a step takes longer, the test fails.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Calls a function until it returns `Ok`. Panics with the last error if the function returns no `Ok` within [`PATIENCE`].
#[track_caller]
pub fn poll_until_ok<T, E: Debug>(mut poll: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match poll() {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "timed out: {error:#?}"),
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Calls a function until it returns `Some`. Panics with `context` if the function returns no `Some` within [`PATIENCE`].
#[track_caller]
pub fn poll_until_some<T>(context: &dyn Debug, mut poll: impl FnMut() -> Option<T>) -> T {
    poll_until_ok(|| poll().ok_or(context))
}

/// Calls a function until it returns `true`. Panics with `context` if the function does not return `true` within [`PATIENCE`].
#[track_caller]
pub fn poll_until(context: &dyn Debug, mut poll: impl FnMut() -> bool) {
    poll_until_some(context, || poll().then_some(()));
}

/// A line that a process has written to stdout or stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Stdout(String),
    Stderr(String),
}

impl Line {
    pub fn text(&self) -> &str {
        match self {
            Line::Stdout(text) | Line::Stderr(text) => text,
        }
    }
}

/// A process that a test has started. Dropping this value kills the process. Children of the process can inherit its stdout and
/// stderr. The drop therefore waits until the children have closed them too, for at most [`PATIENCE`].
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// The ID of the process that receives the signals: this process or, after `redirect_signals_to_child`, its child.
    #[cfg(unix)]
    pid: Pid,
    #[cfg(windows)]
    ctrl_c: CtrlC,
    lines: Receiver<Line>,
    seen: Vec<Line>,
}

impl Process {
    /// Starts a process with an empty stdin, and reads its output.
    pub fn start(command: &mut Command) -> Self {
        Self::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Starts a process. Reads stdout and stderr if they are pipes.
    ///
    /// If the test runs under `nohup` or in the background of a shell, the test ignores some termination signals. The started
    /// process does not inherit this: it receives these signals.
    pub fn spawn(command: &mut Command) -> Self {
        #[cfg(unix)]
        stop_ignoring_signals();
        #[cfg(windows)]
        let ctrl_c = CtrlC::new(command);
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            forward(stdout, sender.clone(), Line::Stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            forward(stderr, sender, Line::Stderr);
        }
        Self {
            #[cfg(unix)]
            pid: Pid::from_child(&child),
            #[cfg(windows)]
            ctrl_c,
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Returns the ID of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the stdin of the process, which must be a pipe.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Makes `signal`, `terminate` and `stop` send their signals to the only child of the process, such as the first process of a
    /// namespace.
    #[cfg(unix)]
    pub fn redirect_signals_to_child(&mut self) {
        self.pid = only_child(self.child.id()).and_then(Pid::from_raw).expect("one child");
    }

    #[cfg(unix)]
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Makes the process raise Ctrl-C. The process must have called `raise_ctrl_c_on_request`.
    #[cfg(windows)]
    pub fn signal(&self, _: Signal) {
        self.ctrl_c.request();
    }

    /// Sends a signal repeatedly until the process has ended.
    #[track_caller]
    pub fn signal_until_exit(&mut self, signal: Signal) {
        poll_until(&"the process continues", || {
            self.signal(signal);
            self.try_wait().is_some()
        });
    }

    /// Sends SIGTERM to the process.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal to the process group of the process. The process must be the leader of this group.
    #[cfg(unix)]
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the next line on stdout or stderr that contains `text`, and returns this line.
    #[track_caller]
    pub fn line(&mut self, text: &str) -> String {
        self.wait_for(&text, |line| line.text().contains(text))
    }

    /// Waits for the next line on stdout or stderr that contains `text`, and returns the part of the line after `text`.
    #[track_caller]
    pub fn rest_of_line(&mut self, text: &str) -> String {
        let line = self.line(text);
        line.split_once(text).unwrap().1.to_owned()
    }

    /// Waits until `count` lines on stdout and stderr contain `text`. Lines that the test has already read count too.
    #[track_caller]
    pub fn lines(&mut self, text: &str, count: usize) {
        let seen = self.seen.iter().filter(|line| line.text().contains(text)).count();
        for _ in seen..count {
            self.line(text);
        }
    }

    /// Waits for the next line on stdout that is equal to `text`.
    #[track_caller]
    pub fn stdout_line(&mut self, text: &str) {
        self.wait_for(&text, |line| matches!(line, Line::Stdout(line) if line == text));
    }

    /// Waits for the next line on stderr that contains `text`.
    #[track_caller]
    pub fn stderr_line(&mut self, text: &str) {
        self.wait_for(&text, |line| matches!(line, Line::Stderr(line) if line.contains(text)));
    }

    #[track_caller]
    fn wait_for(&mut self, expected: &dyn Debug, matches: impl Fn(&Line) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Some(line) = self.next(deadline) {
            if matches(&line) {
                return line.text().to_owned();
            }
        }
        panic!("the process ended without the line {expected:?}: {:#?}", self.seen)
    }

    /// Kills the process, and waits until its outputs are closed.
    #[track_caller]
    pub fn kill(mut self) -> Ended {
        self.child.kill().unwrap();
        self.wait()
    }

    /// Sends SIGTERM, and waits until the process has ended.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.terminate();
        self.wait()
    }

    /// Waits until the process has ended and its outputs are closed.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline).is_some() {}
        let Self { child, seen, .. } = &mut self;
        let status = poll_until_some(seen, || child.try_wait().unwrap());
        Ended { status, lines: std::mem::take(seen) }
    }

    /// Returns the next line of output. Returns `None` if the process and its children have closed all outputs.
    #[track_caller]
    fn next(&mut self, deadline: Instant) -> Option<Line> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the process hangs: {:#?}", self.seen),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // `kill` fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let deadline = Instant::now() + PATIENCE;
        while self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

/// Installs handlers for the termination signals that this process ignores. The handlers do nothing.
///
/// A child process inherits that a signal is ignored, but does not inherit a handler. In the child, the signals with these handlers
/// therefore have their default actions.
#[cfg(unix)]
fn stop_ignoring_signals() {
    static STOPPED: Once = Once::new();
    STOPPED.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap());
        for signal in [Signal::HUP, Signal::INT, Signal::TERM].map(Signal::as_raw) {
            if ignored >> (signal - 1) & 1 == 1 {
                signal_hook::flag::register(signal, Arc::default()).unwrap();
            }
        }
    });
}

fn forward(from: impl Read + Send + 'static, to: Sender<Line>, line: fn(String) -> Line) {
    thread::spawn(move || {
        for text in BufReader::new(from).lines().map_while(Result::ok) {
            // Continues to read even if the receiver is dropped, because a full pipe would block the process.
            let _ = to.send(line(text));
        }
    });
}

/// Returns a command that runs `words`, with the program and the arguments of `command` as further arguments. The environment and
/// the folder of `command` stay the same.
#[cfg(unix)]
pub fn prefixed(words: &[&str], command: &Command) -> Command {
    let mut longer = Command::new(words[0]);
    longer.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => longer.env(name, value),
            None => longer.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        longer.current_dir(folder);
    }
    longer
}

/// Returns `command` with a limit for the number of open files of the process.
#[cfg(unix)]
pub fn with_open_files(limit: u32, command: &Command) -> Command {
    prefixed(&["sh", "-c", &format!(r#"ulimit -n {limit} && exec "$0" "$@""#)], command)
}

/// Returns the ID of the only child of a process, from `/proc` on Linux. Returns `None` if the process has no child or several children.
#[cfg(unix)]
pub fn only_child(id: u32) -> Option<i32> {
    fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?.trim().parse().ok()
}

/// The exit status and the output of a process that has ended.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub lines: Vec<Line>,
}

impl Ended {
    #[track_caller]
    pub fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }

    /// Asserts that a line on stdout or stderr contains `text`.
    #[track_caller]
    pub fn assert_line(&self, text: &str) -> &Self {
        assert!(self.has_line(text), "no line contains {text:?}: {self:#?}");
        self
    }

    /// Asserts that a line on stderr contains `text`.
    #[track_caller]
    pub fn assert_stderr(&self, text: &str) -> &Self {
        let found = self.lines.iter().any(|line| matches!(line, Line::Stderr(line) if line.contains(text)));
        assert!(found, "no line on stderr contains {text:?}: {self:#?}");
        self
    }

    /// Returns whether a line on stdout or stderr contains `text`.
    pub fn has_line(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.text().contains(text))
    }

    /// Returns whether a line on stdout is equal to `line`.
    pub fn has_stdout(&self, line: &str) -> bool {
        self.lines.contains(&Line::Stdout(line.into()))
    }

    /// Returns the lines of stdout and stderr, in the order in which the test read them.
    pub fn output(&self) -> String {
        self.lines.iter().map(Line::text).collect::<Vec<_>>().join("\n")
    }
}
