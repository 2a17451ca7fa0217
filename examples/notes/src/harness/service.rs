//! Starts the service as a process, and sends requests for notes.

use super::Program;
use rustix::fs::{CWD, Mode, mkfifoat};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use testing::{Client, Ended, Process, Response, Signal, poll_until_some, with_open_files};

/// Methods of a client that send requests for notes.
pub(crate) trait NotesClient {
    fn put(&mut self, name: &str, body: &[u8]) -> io::Result<Response>;

    fn put_in_chunks(&mut self, name: &str, chunks: &[&[u8]]) -> io::Result<Response>;

    /// Sends the head of a `PUT` request. Returns as soon as the service waits for the body of `len` bytes.
    fn start_put(&mut self, name: &str, len: usize) -> io::Result<()>;

    /// Sends a `GET` request, and does not wait for the response.
    fn start_get(&mut self, name: &str) -> io::Result<()>;
}

impl NotesClient for Client {
    fn put(&mut self, name: &str, body: &[u8]) -> io::Result<Response> {
        self.request("PUT", &format!("/notes/{name}"), body)
    }

    fn put_in_chunks(&mut self, name: &str, chunks: &[&[u8]]) -> io::Result<Response> {
        self.request_in_chunks("PUT", &format!("/notes/{name}"), chunks)
    }

    fn start_put(&mut self, name: &str, len: usize) -> io::Result<()> {
        self.start_request("PUT", &format!("/notes/{name}"), len)
    }

    fn start_get(&mut self, name: &str) -> io::Result<()> {
        self.send(format!("GET /notes/{name} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
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

    /// Returns a command that starts the service. The service stores its notes in `dir`.
    pub(crate) fn serve(self, dir: &Path, options: &[&str]) -> Command {
        let args = ["--listen", "127.0.0.1:0", "--dir", dir.to_str().unwrap()];
        self.command(args.iter().chain(options))
    }

    pub(crate) fn start(self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Process {
        Process::start(&mut self.command(args))
    }
}

/// A folder for the option `--stall`. The folder makes the reads and writes of a note block, like a disk that hangs.
pub(crate) struct Stall(TempDir);

impl Stall {
    pub(crate) fn new(program: Program, name: &str) -> Self {
        let dir = program.dir();
        stall(dir.path(), name);
        Self(dir)
    }

    pub(crate) fn start(&self, program: Program, options: &[&str]) -> Service {
        let stall = ["--stall", self.0.path().to_str().unwrap()];
        Service::start(program, &[&stall, options].concat())
    }

    /// Starts a service that can open at most `limit` files.
    pub(crate) fn start_with_descriptors(&self, program: Program, limit: u32) -> Service {
        let dir = program.dir();
        let serve = program.serve(dir.path(), &["--stall", self.0.path().to_str().unwrap()]);
        let process = Process::start(&mut with_open_files(limit, &serve));
        Service::with_output(process, dir)
    }

    /// Makes the note available until the returned file is closed.
    pub(crate) fn end(&self, name: &str) -> File {
        File::options().read(true).write(true).open(self.0.path().join(name)).unwrap()
    }
}

/// Creates a pipe in `dir`. If a service has the option `--stall dir`, its reads and writes of the note with the name of the pipe block.
pub(crate) fn stall(dir: &Path, name: &str) {
    mkfifoat(CWD, dir.join(name), Mode::RWXU).unwrap();
}

/// The process of a service, its address, and the folder of its notes.
pub(crate) struct Service {
    process: Process,
    address: SocketAddr,
    dir: TempDir,
}

impl Service {
    pub(crate) fn start(program: Program, options: &[&str]) -> Self {
        let dir = program.dir();
        let process = Process::start(&mut program.serve(dir.path(), options));
        Self::with_output(process, dir)
    }

    /// Waits until the process prints its address.
    pub(crate) fn with_output(mut process: Process, dir: TempDir) -> Self {
        let first = process.line("");
        let address = address_in(&first).unwrap_or_else(|| panic!("not an address: {first}"));
        Self { process, address, dir }
    }

    /// Waits until the process listens. The output of the process is not readable, so this function reads the port from Linux's list of
    /// sockets.
    pub(crate) fn without_output(mut process: Process, dir: TempDir) -> Self {
        let port = poll_until_some(&"no port", || {
            assert_eq!(process.try_wait(), None, "the service has ended");
            listening_port(process.id())
        });
        Self { process, address: (Ipv4Addr::LOCALHOST, port).into(), dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the path that the service uses for its temporary file with this number.
    pub(crate) fn temporary(&self, number: usize) -> PathBuf {
        self.dir().join(format!(".{}-{number}.tmp", self.process.id()))
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    /// Waits until a read or a write is in flight.
    pub(crate) fn await_stalled_task(&self) {
        self.connect().get_until("/tasks", "\"kind\":\"blocking\"");
    }

    /// Tries to connect to the service. Returns an error if the service's queue of new connections is full.
    pub(crate) fn try_connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect_timeout(&self.address, Duration::from_millis(100))
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    pub(crate) fn terminate(&self) {
        self.process.terminate();
    }

    #[track_caller]
    pub(crate) fn line(&mut self, text: &str) -> String {
        self.process.line(text)
    }

    /// Waits until the process has ended. Returns the result and the folder of the notes.
    #[track_caller]
    pub(crate) fn wait(self) -> (Ended, TempDir) {
        (self.process.wait(), self.dir)
    }

    #[track_caller]
    pub(crate) fn stop(self) -> (Ended, TempDir) {
        (self.process.stop(), self.dir)
    }
}

/// Returns the address from the line that a service prints when it listens.
pub(crate) fn address_in(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on http://")?.parse().ok()
}

/// Returns the port on which a process listens. The function compares the sockets of the process with Linux's list of listening sockets.
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
