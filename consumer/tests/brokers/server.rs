//! A server in its own process group, which ends with the test.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};
use tempfile::TempDir;

/// Longer than a server needs to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);

pub(crate) struct Server {
    guard: Option<Child>,
    script: String,
    port: u16,
    variables: Vec<(&'static str, String)>,
    folder: TempDir,
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

impl Server {
    pub(crate) fn folder() -> TempDir {
        TempDir::new().expect("a temporary folder")
    }

    /// Starts the commands of a shell script, and waits until the last command listens on `port`.
    ///
    /// # Errors
    ///
    /// Why the server cannot start, with the end of its output.
    pub(crate) fn start(script: &str, port: u16, folder: TempDir, variables: Vec<(&'static str, String)>) -> Result<Self, String> {
        // The shell kills its process group when the test closes the pipe or dies.
        let script = format!("({script}) </dev/null & read line; kill -KILL 0");
        let mut this = Self { guard: None, script, port, variables, folder };
        this.launch()?;
        Ok(this)
    }

    fn launch(&mut self) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let log = self.folder.path().join("server.log");
        let output = fs::File::create(&log).map_err(text)?;
        let mut command = Command::new("sh");
        command.args(["-c", &self.script]).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).process_group(0).current_dir(self.folder.path());
        command.stderr(output.try_clone().map_err(text)?).stdout(output);
        self.guard = Some(command.spawn().map_err(text)?);
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if start.elapsed() > START_TIMEOUT {
                let output = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("it does not listen within {START_TIMEOUT:?}: {output}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }

    /// Kills the server, and starts it again after a pause, with the same data.
    pub(crate) fn restart(&mut self) {
        self.kill();
        thread::sleep(Duration::from_secs(3));
        self.launch().expect("the server starts again");
    }

    /// Stops all threads of the server for this time.
    pub(crate) fn freeze(&mut self, duration: Duration) {
        let group = self.guard.as_ref().map(|guard| format!("-{}", guard.id())).expect("the server runs");
        let signal = |signal: &str| Command::new("kill").args([signal, "--", &group]).status().expect("kill runs");
        signal("-STOP");
        thread::sleep(duration);
        signal("-CONT");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the first of these files that exists.
///
/// # Errors
///
/// Names the program that is missing.
pub(crate) fn find(name: &str, paths: &[&str]) -> Result<String, String> {
    let path = paths.iter().find(|path| Path::new(path).is_file());
    path.map(ToString::to_string).ok_or_else(|| format!("{name} is not installed"))
}
