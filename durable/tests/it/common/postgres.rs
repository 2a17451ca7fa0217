//! Starts a Postgres server for a test, on a free port and in a temporary folder. This file needs only std and tempfile, so all packages
//! can include it:
//!
//! ```ignore
//! #[path = "…/durable/tests/it/common/postgres.rs"]
//! mod postgres;
//! ```
#![allow(dead_code, reason = "each test uses some of the functions")]

use std::collections::hash_map::RandomState;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, io};
use tempfile::TempDir;

/// The time limit for the start of a server. A server needs less time to start and recover on a busy machine.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// A Postgres server that accepts connections until [`Postgres::kill`] is called.
///
/// Dropping this value stops the server. A static is never dropped, and a killed process drops nothing. In these cases, the server stops
/// when the process exits.
#[derive(Debug)]
pub(crate) struct Postgres {
    programs: Programs,
    settings: Vec<String>,
    port: u16,
    server: Option<Child>,
    guard: Guard,
    folder: TempDir,
}

impl Postgres {
    /// Starts a server with the default settings. With these settings, Postgres writes each commit to the disk.
    ///
    /// # Errors
    ///
    /// Returns the reason why the server cannot start, for example because Postgres is not installed. The test passes the reason to
    /// `testing::skip`.
    pub(crate) fn start() -> Result<Self, String> {
        Self::start_with(&[])
    }

    /// Starts a server as [`start`](Self::start) does, with additional settings of postgresql.conf, for example `("fsync", "off")`.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Result<Self, String> {
        let programs = Programs::find()?;
        let folder = programs.folder().map_err(|error| format!("no folder for Postgres: {error}"))?;
        let initdb = ["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"];
        let output = programs.command("initdb", folder.path()).args(initdb).output();
        succeeded("initdb", output)?;
        let guard = Guard::new(folder.path()).map_err(|error| format!("sh: {error}"))?;

        let settings = settings.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        let mut this = Self { programs, settings, port: 0, server: None, guard, folder };
        let mut error = String::new();
        // Tries more than one port, because another process may bind the free port before the server does.
        for _ in 0..10 {
            this.port = free_port();
            match this.serve() {
                Ok(()) => return Ok(this),
                Err(why) => error = why,
            }
        }
        Err(error)
    }

    /// Returns the URL of the default database.
    pub(crate) fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Creates a database and returns its URL. Tests that share a server use this method.
    pub(crate) fn database(&self, name: &str) -> String {
        self.sql(&format!("CREATE DATABASE {name}"));
        self.url_of(name)
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Executes SQL with `psql`, and returns the output. The output has a line for each row, with `|` between columns.
    #[track_caller]
    pub(crate) fn sql(&self, text: &str) -> String {
        self.sql_in("postgres", text)
    }

    /// Does the same as [`sql`](Self::sql), but in the given database.
    #[track_caller]
    pub(crate) fn sql_in(&self, database: &str, text: &str) -> String {
        let mut psql = self.programs.command("psql", self.folder.path());
        let output = psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.url_of(database), "-c", text]).output();
        let output = succeeded("psql", output).unwrap_or_else(|error| panic!("{error}"));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Kills all processes of the server with SIGKILL, and waits until they have exited. Committed data stays on the disk.
    pub(crate) fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // First stops the server, because a stopped server starts no more child processes. Each child has its own session, so a signal to
        // the process group of the server does not reach the child.
        signal("STOP", &[server.id()]);
        let children = children(server.id());
        server.kill().expect("the server has not been reaped");
        server.wait().expect("the server is a child process");
        signal("KILL", &children);
        let deadline = Instant::now() + START_TIMEOUT;
        while children.iter().any(|&child| runs(child)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts the server again with the same port and data. If the server runs, kills it first.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.serve().unwrap_or_else(|why| panic!("the server does not restart: {why}"));
    }

    /// Starts the server on this port, and waits until it accepts connections.
    fn serve(&mut self) -> Result<(), String> {
        let folder = self.folder.path();
        let log = folder.join("log");
        let port = format!("--port={}", self.port);
        let mut postgres = self.programs.command("postgres", folder);
        postgres.args(["-D", "data", "-k", "..", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200", &port]);
        postgres.args(&self.settings).stdout(Stdio::null());
        postgres.stderr(File::create(&log).map_err(|error| error.to_string())?);
        // The server has its own process group, because Ctrl-C must reach only the test. When the test ends, the guard or the drop stops
        // the server.
        let server = postgres.process_group(0).spawn().map_err(|error| format!("postgres: {error}"))?;
        self.server = Some(server);

        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            // Checks the server's Unix socket in this folder, because another server may use the port.
            let mut ready = self.programs.command("pg_isready", folder);
            let ready = ready.arg("-h").arg(folder).args(["-q", "-p", &self.port.to_string()]).status();
            if ready.map_err(|error| format!("pg_isready: {error}"))?.success() {
                return Ok(());
            }
            let with_log = |how: &str| format!("postgres {how}: {}", fs::read_to_string(&log).unwrap_or_default());
            if let Some(Ok(Some(ended))) = self.server.as_mut().map(Child::try_wait) {
                let why = with_log(&ended.to_string());
                self.server = None;
                return Err(why);
            }
            if Instant::now() > deadline {
                let why = with_log("is not ready");
                self.kill();
                return Err(why);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        self.guard.dismiss();
    }
}

/// The location of the Postgres programs and the user that runs them.
#[derive(Debug)]
struct Programs {
    folder: PathBuf,
    /// The user and group that run Postgres if the test runs as root, because Postgres refuses to run as root.
    user: Option<(u32, u32)>,
}

impl Programs {
    fn find() -> Result<Self, String> {
        let complete = |folder: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).is_file());
        // Debian installs each version in its own folder, outside the path.
        let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|version| version.path().join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let folder = env::split_paths(&path).chain(debian).find(complete).ok_or("Postgres is not installed")?;

        let id = |arguments: &[&str]| -> Result<u32, String> {
            let output = succeeded("id", Command::new("id").args(arguments).output())?;
            String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|error| format!("id: {error}"))
        };
        let user = if id(&["-u"])? == 0 { Some((id(&["-u", "postgres"])?, id(&["-g", "postgres"])?)) } else { None };
        Ok(Self { folder, user })
    }

    /// Creates a folder that the server may use.
    fn folder(&self) -> io::Result<TempDir> {
        let folder = TempDir::new()?;
        if let Some((user, group)) = self.user {
            chown(folder.path(), Some(user), Some(group))?;
        }
        Ok(folder)
    }

    fn command(&self, program: &str, folder: &Path) -> Command {
        let mut command = Command::new(self.folder.join(program));
        command.current_dir(folder).stdin(Stdio::null());
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }
}

/// A shell process that waits until this process exits for any reason. The shell then stops the server and removes its folder.
#[derive(Debug)]
struct Guard {
    shell: Child,
    /// The stdin of the shell process. When this process exits, the stdin is closed, and the shell stops the server.
    alive: Option<ChildStdin>,
}

impl Guard {
    fn new(folder: &Path) -> io::Result<Self> {
        let script = r#"
            read -r never
            cd "$0" 2>/dev/null || exit 0
            [ ! -e data/postmaster.pid ] || kill -QUIT "$(head -n 1 data/postmaster.pid)"
            for each in 1 2 3 4 5 6 7 8 9 10; do
                [ -e data/postmaster.pid ] || break
                sleep 1
            done
            rm -rf "$0"
        "#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // The guard has its own process group, because a signal to the group of this process must not end the guard.
        let mut shell = shell.process_group(0).spawn()?;
        let alive = shell.stdin.take();
        Ok(Self { shell, alive })
    }

    /// Stops the guard. Call this method after the server has stopped.
    fn dismiss(&mut self) {
        self.alive = None;
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Returns a free port outside the range of ephemeral ports. A client that connects to an ephemeral port could receive the same port as
/// its local port. While the server is down, this client would connect to itself.
fn free_port() -> u16 {
    loop {
        let random = RandomState::new().hash_one(0);
        let port = 20_000 + u16::try_from(random % 12_000).expect("the remainder is less than 12,000");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn signal(name: &str, processes: &[u32]) {
    let mut script = String::from(":");
    for process in processes {
        write!(script, "; kill -{name} {process}").expect("writing to a string succeeds");
    }
    // Ignores the result, because a process may already have exited.
    let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
}

/// Returns the child processes of a process. On systems without `/proc`, returns an empty list. This is sufficient, because the children
/// of Postgres exit when their parent has exited.
fn children(process: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// Returns whether a process runs. A zombie process does not count as running.
fn runs(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

fn succeeded(program: &str, output: io::Result<Output>) -> Result<Output, String> {
    match output {
        Ok(output) if output.status.success() => Ok(output),
        Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim_end())),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("{program} is not installed")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}
