//! The program as processes, none of which outlives its test.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes here; what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A folder, and the database of what is started in it.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    database: String,
}

impl Place {
    /// On a SQLite file in it.
    pub(crate) fn new() -> Self {
        Self::on("signups.db")
    }

    pub(crate) fn on(database: &str) -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { folder, database: database.to_owned() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_durable-signups"));
        command.current_dir(self.folder.path()).env("DATABASE_URL", &self.database).args(args);
        command
    }

    pub(crate) fn start(&self, args: &[&str]) -> Process {
        Process::start(&mut self.command(args))
    }

    /// Starts a server, or a server and its worker.
    #[track_caller]
    pub(crate) fn serve(&self, args: &[&str]) -> Server {
        Self::serve_as(&mut self.command(args))
    }

    /// As a shell does: in a group of its own, to which Ctrl-C goes.
    #[track_caller]
    pub(crate) fn serve_in_a_group(&self, args: &[&str]) -> Server {
        Self::serve_as(self.command(args).process_group(0))
    }

    #[track_caller]
    fn serve_as(command: &mut Command) -> Server {
        let mut process = Process::start(command.args(["--listen", "127.0.0.1:0", "--board", "127.0.0.1:0"]));
        let address = process.line("listening on http://").parse().unwrap();
        let board = process.line("the board is at http://").parse().unwrap();
        Server { process, address, board }
    }

    /// Starts a worker, which is quick to take others for dead.
    #[track_caller]
    pub(crate) fn work(&self, args: &[&str]) -> Process {
        let mut process = self.start(&[&["worker", "--lease", "3"], args].concat());
        process.line("the worker waits for mails");
        process
    }

    /// To whom mails lie in the outbox, sorted.
    pub(crate) fn outbox(&self) -> Vec<String> {
        let files = fs::read_dir(self.path("outbox")).into_iter().flatten().map(|file| file.unwrap().path());
        let mails = files.filter(|file| file.extension().is_some_and(|extension| extension == "eml"));
        let to = |mail: PathBuf| {
            let mail = fs::read_to_string(mail).unwrap();
            mail.lines().find_map(|line| line.strip_prefix("To: ")).unwrap().to_owned()
        };
        let mut to: Vec<_> = mails.map(to).collect();
        to.sort();
        to
    }
}

pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    pub(crate) board: SocketAddr,
}

pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let pipes: [Box<dyn Read + Send>; 2] = [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for pipe in pipes {
            let sender = sender.clone();
            thread::spawn(move || BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        }
        Self { child, lines, seen: Vec::new() }
    }

    /// Returns the next line, `None` once it has ended, and the worker that it has started.
    #[track_caller]
    fn next(&mut self, deadline: Instant) -> Option<String> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it hangs: {:#?}", self.seen),
        }
    }

    /// Waits for a line that has `text`, and returns what follows it.
    #[track_caller]
    pub(crate) fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Some(line) = self.next(deadline) {
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
        panic!("ended without a line that has {text:?}: {:#?}", self.seen)
    }

    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Ctrl-C.
    pub(crate) fn interrupt_its_group(&self) {
        kill_process_group(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    /// SIGKILL, and what it has said.
    #[track_caller]
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.rest();
        self.seen.join("\n")
    }

    /// Waits for its end and returns all that it has said.
    #[track_caller]
    pub(crate) fn wait(mut self, code: i32) -> String {
        self.rest();
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{:#?}", self.seen);
        self.seen.join("\n")
    }

    #[track_caller]
    fn rest(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline).is_some() {}
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A worker that it has started has its output, and ends as its input does.
        let deadline = Instant::now() + PATIENCE;
        while self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

/// Looks until it finds something.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never came: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
