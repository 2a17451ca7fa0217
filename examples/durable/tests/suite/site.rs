//! Starts the program as child processes. Each child process ends at the latest when its test ends.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;
use testing::{Process, with_open_files};

/// A temporary folder in which a test starts processes, and the address of the database that they use.
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    database: String,
}

impl Site {
    /// Creates a folder. The processes use a SQLite file in this folder as their database.
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

    /// Starts a server. If `args` name no role, the server also starts a worker.
    #[track_caller]
    pub(crate) fn serve(&self, args: &[&str]) -> Server {
        Self::serve_as(&mut self.command(args))
    }

    /// Starts a server in its own process group, as a shell does. A test can send Ctrl-C to this group.
    #[track_caller]
    pub(crate) fn serve_in_a_group(&self, args: &[&str]) -> Server {
        Self::serve_as(self.command(args).process_group(0))
    }

    /// Starts a server that can open at most `limit` file descriptors.
    #[cfg(target_os = "linux")]
    #[track_caller]
    pub(crate) fn serve_with_descriptors(&self, limit: u32, args: &[&str]) -> Server {
        Self::serve_as(&mut with_open_files(limit, &self.command(args)))
    }

    #[track_caller]
    fn serve_as(command: &mut Command) -> Server {
        let mut process = Process::start(command.args(["--listen", "127.0.0.1:0", "--board", "127.0.0.1:0"]));
        let address = process.rest_of_line("listening on http://").parse().unwrap();
        let board = process.rest_of_line("the board is at http://").parse().unwrap();
        Server { process, address, board }
    }

    /// Starts a worker with a short lease, and waits until it is ready.
    #[track_caller]
    pub(crate) fn work(&self, args: &[&str]) -> Process {
        let mut process = self.start(&[&["worker", "--lease", "3"], args].concat());
        process.line("the worker is ready");
        process
    }

    /// Returns the recipients of the mails in the outbox, in alphabetical order.
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
