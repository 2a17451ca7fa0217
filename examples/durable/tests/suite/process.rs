//! Runs the program as child processes that do not outlive their test.

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

/// Longer than any step takes without a hang.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_mins(1);

/// A folder for the processes of a test, and their database.
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    database: String,
}

impl Site {
    /// Creates a folder with a SQLite file as database.
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

    /// Starts a server in its own process group, as a shell does, so that Ctrl-C can be sent to the group.
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

    /// Starts a worker with a short lease.
    #[track_caller]
    pub(crate) fn work(&self, args: &[&str]) -> Process {
        let mut process = self.start(&[&["worker", "--lease", "3"], args].concat());
        process.line("the worker is ready");
        process
    }

    /// Returns the recipients of the mails in the outbox, sorted.
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

    /// Returns the next line. Returns `None` when the process and its child worker have exited.
    #[track_caller]
    fn next(&mut self, deadline: Instant) -> Option<String> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the process hangs: {:#?}", self.seen),
        }
    }

    /// Waits for a line that contains `text`, and returns the rest of the line.
    #[track_caller]
    pub(crate) fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + STEP_TIMEOUT;
        while let Some(line) = self.next(deadline) {
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
        panic!("the process exited without a line that contains {text:?}: {:#?}", self.seen)
    }

    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Sends Ctrl-C to the process group.
    pub(crate) fn interrupt_group(&self) {
        kill_process_group(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    /// Kills the process and returns its output.
    #[track_caller]
    pub(crate) fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.read_to_end();
        self.seen.join("\n")
    }

    /// Waits until the process exits with this code, and returns its output.
    #[track_caller]
    pub(crate) fn wait(mut self, code: i32) -> String {
        self.read_to_end();
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{:#?}", self.seen);
        self.seen.join("\n")
    }

    #[track_caller]
    fn read_to_end(&mut self) {
        let deadline = Instant::now() + STEP_TIMEOUT;
        while self.next(deadline).is_some() {}
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that the process has exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A child worker shares the output pipes, and stops when its input ends.
        let deadline = Instant::now() + STEP_TIMEOUT;
        while self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

/// Polls a condition until it returns a value. `what` describes the condition in the panic message.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
