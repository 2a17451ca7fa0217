//! The service as a process.

use super::Program;
use super::client::Client;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes here; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again and again, until it finds something.
#[track_caller]
pub(crate) fn patiently<T>(seen: &dyn Debug, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it hangs: {seen:#?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A process that does not outlive its test.
pub(crate) struct Process {
    child: Child,
    /// Who is sent the signals.
    pid: Pid,
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
    pub(crate) status: ExitStatus,
    pub(crate) lines: Vec<Line>,
}

impl Ended {
    #[track_caller]
    pub(crate) fn assert(&self, code: i32, text: &str) {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        assert!(self.says(text), "no line has {text:?}: {self:#?}");
    }

    pub(crate) fn says(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.text().contains(text))
    }
}

impl Program {
    pub(crate) fn dir(self) -> TempDir {
        TempDir::new_in(self.tmp).unwrap()
    }

    pub(crate) fn command(self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Command {
        let mut command = Command::new(self.path);
        command.args(args);
        command
    }

    /// Has the service keep its notes in `dir`.
    pub(crate) fn serve(self, dir: &Path, options: &[&str]) -> Command {
        let args = ["--port", "0", "--dir", dir.to_str().unwrap()];
        self.command(args.iter().chain(options))
    }

    pub(crate) fn start(self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Process {
        Process::start(self.command(args))
    }
}

/// Returns the command that `words` and then `command` make.
pub(crate) fn prefixed(words: &[&str], command: &Command) -> Command {
    let mut longer = Command::new(words[0]);
    longer.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    longer
}

impl Process {
    /// Starts it with nothing to read, and listens to what it says.
    pub(crate) fn start(mut command: Command) -> Self {
        Self::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Starts it with what it is given to read and to write to.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            pass_on(stdout, sender.clone(), Line::Out);
        }
        if let Some(stderr) = child.stderr.take() {
            pass_on(stderr, sender, Line::Err);
        }
        let pid = Pid::from_child(&child);
        Self { child, pid, lines, seen: Vec::new() }
    }

    /// Has the signals sent to its child, the first process of a namespace, instead of to itself.
    pub(crate) fn aim_at_child(&mut self) {
        self.pid = child_of(self.child.id()).expect("one child");
    }

    /// Returns what it reads from, if that is a pipe.
    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
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
        let Self { child, seen, .. } = &mut self;
        let status = patiently(seen, || child.try_wait().unwrap());
        Ended { status, lines: std::mem::take(seen) }
    }

    /// Returns the next line, or `None` once there is nobody left to write one: the process has ended, or is about to.
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
        let process = Process::start(program.serve(dir.path(), options));
        Self::that_tells(process, dir)
    }

    /// Waits until the process tells its address.
    pub(crate) fn that_tells(mut process: Process, dir: TempDir) -> Self {
        let first = process.line("");
        let address = address_in(&first).unwrap_or_else(|| panic!("not an address: {first}"));
        Self { process, address, dir }
    }

    /// Waits until the process, which cannot tell, has an address.
    pub(crate) fn that_is_mute(mut process: Process, dir: TempDir) -> Self {
        let port = patiently(&"no port", || {
            assert_eq!(process.child.try_wait().unwrap(), None, "it has ended");
            listening_port(process.child.id())
        });
        Self { process, address: (Ipv4Addr::LOCALHOST, port).into(), dir }
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

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
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

/// Returns the child of a process that has one.
pub(crate) fn child_of(id: u32) -> Option<Pid> {
    fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?.trim().parse().ok().and_then(Pid::from_raw)
}

/// Returns the address in what a service says once it listens.
pub(crate) fn address_in(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on http://")?.parse().ok()
}

/// Returns the port on which a process listens, from what Linux tells of its descriptors.
fn listening_port(id: u32) -> Option<u16> {
    let descriptors = fs::read_dir(format!("/proc/{id}/fd")).ok()?;
    let targets = descriptors.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()?.into_os_string().into_string().ok());
    let sockets: Vec<_> = targets.collect();
    fs::read_to_string("/proc/net/tcp").ok()?.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state, inode) = (fields.next()?, fields.nth(1)?, fields.nth(5)?);
        let listens = state == "0A" && sockets.contains(&format!("socket:[{inode}]"));
        listens.then(|| u16::from_str_radix(local.rsplit(':').next()?, 16).ok()).flatten()
    })
}
