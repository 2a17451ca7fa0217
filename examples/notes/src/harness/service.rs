//! The service as a process, and requests for notes.

use super::Program;
use rustix::fs::{CWD, Mode, mkfifoat};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use testing::{Client, Ended, Process, Response, Signal, poll_until_some};

/// Requests for notes.
pub(crate) trait NotesClient {
    fn put(&mut self, name: &str, body: &[u8]) -> io::Result<Response>;

    fn put_in_chunks(&mut self, name: &str, chunks: &[&[u8]]) -> io::Result<Response>;

    /// Starts a `PUT`, and returns once the service waits for its body of `len` bytes.
    fn start_put(&mut self, name: &str, len: usize) -> io::Result<()>;
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

    /// Returns a command that starts the service with its notes in `dir`.
    pub(crate) fn serve(self, dir: &Path, options: &[&str]) -> Command {
        let args = ["--port", "0", "--dir", dir.to_str().unwrap()];
        self.command(args.iter().chain(options))
    }

    pub(crate) fn start(self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Process {
        Process::start(&mut self.command(args))
    }
}

/// Returns `command` with these words in front.
pub(crate) fn prefixed(words: &[&str], command: &Command) -> Command {
    let mut longer = Command::new(words[0]);
    longer.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    longer
}

/// A running service and its folder.
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

    /// Waits until the process, which cannot print its address, listens.
    pub(crate) fn without_output(mut process: Process, dir: TempDir) -> Self {
        let port = poll_until_some(&"no port", || {
            assert_eq!(process.try_wait(), None, "the service has ended");
            listening_port(process.id())
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

    /// Makes the write of the first note block: its temporary file is a named pipe without a reader.
    pub(crate) fn block_first_write(&self) {
        let temporary = format!(".{}-1.tmp", self.process.id());
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
        self.process.terminate();
    }

    #[track_caller]
    pub(crate) fn line(&mut self, text: &str) -> String {
        self.process.line(text)
    }

    /// Waits until the process has ended, and returns its folder.
    #[track_caller]
    pub(crate) fn wait(self) -> (Ended, TempDir) {
        (self.process.wait(), self.dir)
    }

    #[track_caller]
    pub(crate) fn stop(self) -> (Ended, TempDir) {
        (self.process.stop(), self.dir)
    }
}

/// Returns the address in the line that a service prints when it listens.
pub(crate) fn address_in(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("listening on http://")?.parse().ok()
}

/// Returns the port on which a process listens, from Linux's list of its file descriptors.
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
