//! A Postgres of a test's own, on a free port, in a temporary folder. It needs std and tempfile alone, so that any package includes it:
//!
//! ```ignore
//! #[path = "common/postgres.rs"]
//! mod postgres;
//! ```
#![allow(dead_code, reason = "each test uses its part")]

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

/// Longer than a server takes to start, with its recovery, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A server that takes connections, as far as [`Postgres::kill`] was not called.
///
/// It is gone when this is dropped. If this never is, as in a static, or in a process that is killed itself, it goes with the process.
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
    /// Starts a server whose commits are on disk when they are told, as with its own defaults.
    ///
    /// # Errors
    ///
    /// Why there is none: for a test to print as `skipped: why` where Postgres is not installed.
    pub(crate) fn start() -> Result<Self, String> {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with settings of postgresql.conf, such as `("fsync", "off")`.
    pub(crate) fn start_with(settings: &[(&str, &str)]) -> Result<Self, String> {
        let programs = Programs::find()?;
        let folder = programs.folder().map_err(|error| format!("no folder for Postgres: {error}"))?;
        let initdb = ["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"];
        let said = programs.command("initdb", folder.path()).args(initdb).output();
        succeeded("initdb", said)?;
        let guard = Guard::new(folder.path()).map_err(|error| format!("sh: {error}"))?;

        let settings = settings.iter().map(|(name, value)| format!("--{name}={value}")).collect();
        let mut this = Self { programs, settings, port: 0, server: None, guard, folder };
        let mut told = String::new();
        // Between the look at the port and the server's own, somebody else may take it.
        for _ in 0..10 {
            this.port = free_port();
            match this.serve() {
                Ok(()) => return Ok(this),
                Err(why) => told = why,
            }
        }
        Err(told)
    }

    /// The database that each server has.
    pub(crate) fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// Makes a database, for a test that shares the server with others, and tells its URL.
    pub(crate) fn database(&self, name: &str) -> String {
        self.sql(&format!("CREATE DATABASE {name}"));
        self.url_of(name)
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What `psql` answers: a line for each row, with `|` between columns.
    #[track_caller]
    pub(crate) fn sql(&self, text: &str) -> String {
        self.sql_in("postgres", text)
    }

    /// As [`sql`](Self::sql), in another database.
    #[track_caller]
    pub(crate) fn sql_in(&self, database: &str, text: &str) -> String {
        let mut psql = self.programs.command("psql", self.folder.path());
        let said = psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.url_of(database), "-c", text]).output();
        let said = succeeded("psql", said).unwrap_or_else(|why| panic!("{why}"));
        String::from_utf8(said.stdout).unwrap().trim_end().to_owned()
    }

    /// Kills the server with SIGKILL, each of its processes, and returns when they are gone. What was committed stays on disk.
    pub(crate) fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // What is stopped has no more children. They live in sessions of their own, which no signal to a group reaches.
        signal("STOP", &[server.id()]);
        let children = children(server.id());
        server.kill().expect("it has not been waited for");
        server.wait().expect("it is ours");
        signal("KILL", &children);
        let deadline = Instant::now() + PATIENCE;
        while children.iter().any(|&child| runs(child)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts the server again, where it was and with what it had. One that runs is killed first.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.serve().unwrap_or_else(|why| panic!("it does not start again: {why}"));
    }

    /// Starts a server on this port, and waits until it takes connections.
    fn serve(&mut self) -> Result<(), String> {
        let folder = self.folder.path();
        let log = folder.join("log");
        let port = format!("--port={}", self.port);
        let mut postgres = self.programs.command("postgres", folder);
        postgres.args(["-D", "data", "-k", "..", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200", &port]);
        postgres.args(&self.settings).stdout(Stdio::null());
        postgres.stderr(File::create(&log).map_err(|error| error.to_string())?);
        // A Ctrl-C is for the test; the guard, or the drop, takes the server along.
        let server = postgres.process_group(0).spawn().map_err(|error| format!("postgres: {error}"))?;
        self.server = Some(server);

        let deadline = Instant::now() + PATIENCE;
        loop {
            // By the socket in this folder: a port may be another server's.
            let mut ready = self.programs.command("pg_isready", folder);
            let ready = ready.arg("-h").arg(folder).args(["-q", "-p", &self.port.to_string()]).status();
            if ready.map_err(|error| format!("pg_isready: {error}"))?.success() {
                return Ok(());
            }
            let told = |how: &str| format!("postgres {how}: {}", fs::read_to_string(&log).unwrap_or_default());
            if let Some(Ok(Some(ended))) = self.server.as_mut().map(Child::try_wait) {
                let why = told(&ended.to_string());
                self.server = None;
                return Err(why);
            }
            if Instant::now() > deadline {
                let why = told("is not ready");
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

/// Where the programs of Postgres are, and who runs them.
#[derive(Debug)]
struct Programs {
    folder: PathBuf,
    /// Postgres refuses to run as root; then it is this user and group.
    user: Option<(u32, u32)>,
}

impl Programs {
    fn find() -> Result<Self, String> {
        let complete = |folder: &PathBuf| ["initdb", "postgres", "psql"].iter().all(|name| folder.join(name).is_file());
        // Debian keeps each version apart, and none of them on the path.
        let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|version| version.path().join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let folder = env::split_paths(&path).chain(debian).find(complete).ok_or("Postgres is not installed")?;

        let id = |arguments: &[&str]| -> Result<u32, String> {
            let said = succeeded("id", Command::new("id").args(arguments).output())?;
            String::from_utf8_lossy(&said.stdout).trim().parse().map_err(|error| format!("id: {error}"))
        };
        let user = if id(&["-u"])? == 0 { Some((id(&["-u", "postgres"])?, id(&["-g", "postgres"])?)) } else { None };
        Ok(Self { folder, user })
    }

    /// A folder that the server may use.
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

/// A shell that stops the server and removes its folder when this process ends, however it does.
#[derive(Debug)]
struct Guard {
    shell: Child,
    /// Closed by the end of this process at the latest.
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
        // What kills this process may kill its group.
        let mut shell = shell.process_group(0).spawn()?;
        let alive = shell.stdin.take();
        Ok(Self { shell, alive })
    }

    /// For a server that is gone already.
    fn dismiss(&mut self) {
        self.alive = None;
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A port that nobody has. Those that the system hands out are not among them: while the server is down, a client that connects to it could be given the
/// server's own port for its end, and be connected to itself.
fn free_port() -> u16 {
    loop {
        let random = RandomState::new().hash_one(0);
        let port = 20_000 + u16::try_from(random % 12_000).expect("it is less than 12,000");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn signal(name: &str, processes: &[u32]) {
    let mut script = String::from(":");
    for process in processes {
        write!(script, "; kill -{name} {process}").expect("a string takes it");
    }
    // One that is gone already is no error.
    let _ = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status();
}

/// None where the system does not tell: there they end by themselves, as they watch their parent.
fn children(process: u32) -> Vec<u32> {
    let told = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    told.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// A process that is dead stays listed until its parent has looked, which is another's matter.
fn runs(process: u32) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

fn succeeded(program: &str, said: io::Result<Output>) -> Result<Output, String> {
    match said {
        Ok(said) if said.status.success() => Ok(said),
        Ok(said) => Err(format!("{program}: {}", String::from_utf8_lossy(&said.stderr).trim_end())),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(format!("{program} is not installed")),
        Err(error) => Err(format!("{program}: {error}")),
    }
}
