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
    guard: Child,
    pub(crate) folder: TempDir,
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
    pub(crate) fn start(script: &str, port: u16, folder: TempDir, set_up: impl FnOnce(&mut Command)) -> Result<Self, String> {
        let log = folder.path().join("server.log");
        let output = fs::File::create(&log).map_err(|error| error.to_string())?;
        // The shell kills its process group when the test closes the pipe or dies.
        let script = format!("({script}) </dev/null & read line; kill -KILL 0");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::piped()).process_group(0).current_dir(folder.path());
        command.stderr(output.try_clone().map_err(|error| error.to_string())?).stdout(output);
        set_up(&mut command);
        let guard = command.spawn().map_err(|error| error.to_string())?;
        let this = Self { guard, folder };
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if start.elapsed() > START_TIMEOUT {
                let output = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("it does not listen within {START_TIMEOUT:?}: {output}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(this)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
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
