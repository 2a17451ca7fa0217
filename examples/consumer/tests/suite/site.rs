//! Starts the program as child processes. Each child process ends at the latest when its test ends.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;
use testing::Process;

/// A temporary folder in which a test starts processes, and the URL of the broker that they use.
pub(crate) struct Site {
    folder: TempDir,
    queue: String,
}

impl Site {
    pub(crate) fn on(queue: &str) -> Self {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { folder, queue: queue.to_owned() }
    }

    pub(crate) fn start(&self, args: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_broker-signups"));
        // The emulator moto accepts any credentials.
        command.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")]);
        Process::start(command.current_dir(self.folder.path()).env("QUEUE_URL", &self.queue).args(args))
    }

    /// Starts a server. If `args` name no role, the server also starts a worker.
    #[track_caller]
    pub(crate) fn serve(&self, args: &[&str]) -> (Process, SocketAddr) {
        let mut process = self.start(&[args, &["--lease", "3", "--listen", "127.0.0.1:0"]].concat());
        let address = process.rest_of_line("listening on http://").parse().unwrap();
        (process, address)
    }

    /// Starts a worker, and waits until it is ready.
    #[track_caller]
    pub(crate) fn work(&self) -> Process {
        let mut process = self.start(&["worker", "--lease", "3"]);
        process.line("the worker is ready");
        process
    }

    /// Returns the recipients of the mails in the outbox, in alphabetical order.
    pub(crate) fn outbox(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.path().join("outbox")).into_iter().flatten().map(|file| file.unwrap().path());
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
