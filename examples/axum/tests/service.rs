//! The service as a process, with real signals.
#![cfg(unix)]

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than anything takes here; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of the service, which does not outlive its test.
struct Process {
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

    /// Returns the next line, `None` once the process has ended.
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
    fn line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        while let Some(line) = self.next(deadline) {
            if let Some((_, rest)) = line.split_once(text) {
                return rest.to_owned();
            }
        }
        panic!("ended without a line that has {text:?}: {:#?}", self.seen)
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Waits for its end and returns all that it has said.
    #[track_caller]
    fn wait(mut self, code: i32) -> String {
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline).is_some() {}
        assert_eq!(self.child.wait().unwrap().code(), Some(code), "{:#?}", self.seen);
        self.seen.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_signups"))
}

/// A process that listens, and its folder.
struct Service {
    process: Process,
    address: SocketAddr,
    dir: TempDir,
}

impl Service {
    #[track_caller]
    fn start(options: &[&str]) -> Self {
        Self::start_as(program().args(options))
    }

    #[track_caller]
    fn start_as(command: &mut Command) -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut process = Process::start(command.args(["--address", "127.0.0.1:0", "--dir"]).arg(dir.path()));
        let address = process.line("listening on http://").parse().unwrap();
        Self { process, address, dir }
    }

    fn connect(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    /// Waits for its end; returns what it has said and the addresses in its outbox.
    #[track_caller]
    fn wait(self, code: i32) -> (String, Vec<String>) {
        let said = self.process.wait(code);
        let outbox = fs::read_to_string(self.dir.path().join("outbox")).unwrap_or_default();
        (said, outbox.lines().map(str::to_owned).collect())
    }
}

/// As much of HTTP/1.1 as the tests speak: blocking, over one connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    fn send(&mut self, text: &str) -> io::Result<()> {
        self.0.get_mut().write_all(text.as_bytes())
    }

    fn head(&mut self, request: &str, header: &str) -> io::Result<()> {
        self.send(&format!("{request} HTTP/1.1\r\nhost: localhost\r\n{header}\r\n\r\n"))
    }

    fn get(&mut self, path: &str) -> io::Result<(u16, String)> {
        self.head(&format!("GET {path}"), "accept: */*")?;
        self.response()
    }

    fn sign_up(&mut self, address: &str) -> io::Result<u16> {
        self.head("POST /signups", &format!("content-length: {}", address.len()))?;
        self.send(address)?;
        Ok(self.response()?.0)
    }

    /// Begins to sign up, and returns once the service waits for an address of `len` bytes.
    fn begin(&mut self, len: usize) {
        self.head("POST /signups", &format!("content-length: {len}\r\nexpect: 100-continue")).unwrap();
        assert_eq!([self.line().unwrap(), self.line().unwrap()], ["HTTP/1.1 100 Continue", ""]);
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?.to_owned())
    }

    fn response(&mut self) -> io::Result<(u16, String)> {
        let status = self.line()?.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or(ErrorKind::InvalidData)?;
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some(len) = line.strip_prefix("content-length: ") {
                body.resize(len.parse().map_err(|_| ErrorKind::InvalidData)?, 0);
            }
        }
        self.0.read_exact(&mut body)?;
        Ok((status, String::from_utf8(body).map_err(|_| ErrorKind::InvalidData)?))
    }
}

const SIGN_UPS: usize = 2000;
const CONNECTIONS: usize = 16;

/// Signs up over many connections, and sends SIGTERM among that: to each that was answered 202 a mail is sent.
#[test]
fn every_accepted_mail_is_sent() {
    let rounds = std::env::var("ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let service = Service::start(&["--grace", "60"]);
        let enough = 1 + SIGN_UPS / 2 * round / rounds;
        let accepted = sign_up_until_it_is_gone(&service, enough);
        assert!((enough..SIGN_UPS).contains(&accepted.len()), "{} of {enough}", accepted.len());
        let (said, mut sent) = service.wait(0);
        assert!(said.contains(" failed=0 panicked=0 abandoned=0 aborted=0 rejected=0"), "{said}");
        sent.sort();
        let lost: Vec<_> = accepted.iter().filter(|address| sent.binary_search(address).is_err()).collect();
        assert!(lost.is_empty(), "{} of {} mails were lost: {lost:?}", lost.len(), accepted.len());
    }
}

/// Sends SIGTERM once `enough` are accepted; returns which were.
fn sign_up_until_it_is_gone(service: &Service, enough: usize) -> Vec<String> {
    let (next, address) = (&AtomicUsize::new(0), service.address);
    let sign_up = |tell: Sender<String>| {
        let mut client = Client::connect(address)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= SIGN_UPS {
                return io::Result::Ok(());
            }
            let reader = format!("reader-{number}@example.com");
            assert_eq!(client.sign_up(&reader)?, 202);
            let _ = tell.send(reader);
        }
    };
    thread::scope(|scope| {
        let (tell, told) = channel();
        for _ in 0..CONNECTIONS {
            let tell = tell.clone();
            // An error is the service's end.
            scope.spawn(|| drop(sign_up(tell)));
        }
        drop(tell);
        let accepted = told.iter().enumerate().inspect(|(before, _)| {
            if before + 1 == enough {
                service.process.terminate();
            }
        });
        accepted.map(|(_, address)| address).collect()
    })
}

/// Nor is what it starts then refused.
#[test]
fn a_request_that_is_being_answered_may_finish() {
    let mut service = Service::start(&["--grace", "60"]);
    let mut client = service.connect();
    client.begin(15);
    service.process.terminate();
    service.process.line("draining: 2 in flight");
    let deadline = Instant::now() + PATIENCE;
    while Client::connect(service.address).is_ok() {
        assert!(Instant::now() < deadline, "it listens still");
        thread::yield_now();
    }
    client.send("ada@example.com").unwrap();
    assert_eq!(client.response().unwrap().0, 202);
    let (said, sent) = service.wait(0);
    // The request, its mail, the line of that, and the program itself.
    assert!(said.contains(" completed=4 failed=0 panicked=0 abandoned=0 aborted=0 rejected=0"), "{said}");
    assert_eq!(sent, ["ada@example.com"]);
}

/// While it lingers it takes new connections and new requests, but says that it wants none.
#[test]
fn it_is_not_ready_from_the_signal_on() {
    let mut service = Service::start(&["--grace", "3600", "--linger", "3600"]);
    let mut open = service.connect();
    assert_eq!(open.get("/healthz").unwrap(), (200, "alive\n".into()));
    assert_eq!(open.get("/readyz").unwrap(), (200, "ready\n".into()));
    let mut late = service.connect();
    late.begin(15);
    service.process.terminate();
    // Which is told once it is so.
    service.process.line("background task shutdown started in_flight=2");
    for client in [&mut open, &mut service.connect()] {
        assert_eq!(client.get("/readyz").unwrap(), (503, "draining\n".into()));
        assert_eq!(client.get("/healthz").unwrap(), (200, "alive\n".into()));
        assert_eq!(client.sign_up("grace@example.com").unwrap(), 202);
    }
    late.send("ada@example.com").unwrap();
    assert_eq!(late.response().unwrap().0, 202);
    // A second one does not wait for the linger.
    service.process.terminate();
    service.wait(130);
}

#[test]
fn the_linger_is_part_of_the_grace() {
    for (grace, linger, code, told) in
        [("60", "0.3", 0, "background tasks drained took_seconds="), ("0.3", "3600", 1, "1 × program at ")]
    {
        let service = Service::start(&["--grace", grace, "--linger", linger]);
        let began = Instant::now();
        service.process.terminate();
        let (said, _) = service.wait(code);
        assert!(said.contains(told) && began.elapsed() >= Duration::from_millis(300), "{said}");
    }
}

#[test]
fn metrics_are_those_of_the_tasks() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    assert_eq!(client.sign_up("ada@example.com").unwrap(), 202);
    // The request, the mail, and its line.
    let completed = "background_tasks_total{registry=\"signups\",outcome=\"completed\",task=\"\"} 3\n";
    let metrics = metrics_with(&mut client, completed);
    assert!(metrics.contains("background_tasks_in_flight{registry=\"signups\"} 0\n"), "{metrics}");
    assert!(metrics.contains("# TYPE background_tasks_total counter\n"), "{metrics}");

    fs::remove_file(service.dir.path().join("outbox")).unwrap();
    fs::create_dir(service.dir.path().join("outbox")).unwrap();
    assert_eq!(client.sign_up("grace@example.com").unwrap(), 202);
    metrics_with(&mut client, "background_tasks_total{registry=\"signups\",outcome=\"failed\",task=\"outbox\"} 1\n");
    service.process.terminate();
    let (said, _) = service.wait(0);
    let told = |line: &str| line.contains("ERROR sign_up: background_tasks: background task failed task.name=\"outbox\"");
    assert!(said.lines().any(told), "not told in the span of its request: {said}");
}

/// Asks for the metrics until they have that in them.
#[track_caller]
fn metrics_with(client: &mut Client, text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, metrics) = client.get("/metrics").unwrap();
        assert_eq!(status, 200);
        if metrics.contains(text) {
            return metrics;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        thread::yield_now();
    }
}

#[test]
fn a_straggler_is_named() {
    let mut service = Service::start(&["--grace", "0.5"]);
    // To open the outbox waits for a reader of it, who never comes.
    mknodat(CWD, service.dir.path().join("outbox"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert_eq!(service.connect().sign_up("ada@example.com").unwrap(), 202);
    service.process.line("the mail is sent");
    let began = Instant::now();
    service.process.terminate();
    let said = service.process.wait(1);
    let took = began.elapsed();
    assert!(said.contains("1 × outbox at examples/axum/src/main.rs:"), "{said}");
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[test]
fn what_is_no_address_is_refused() {
    let service = Service::start(&[]);
    for address in ["", "ada", "ada@example.com\neve@example.com", "ada@example.com\r"] {
        assert_eq!(service.connect().sign_up(address).unwrap(), 400, "{address:?}");
    }
    assert_eq!(service.connect().sign_up(&"@".repeat(1025)).unwrap(), 413);
    service.process.terminate();
    assert!(service.wait(0).1.is_empty());
}

#[test]
fn the_page_is_there_when_it_is_asked_for() {
    for (options, expected) in [(&[][..], 404), (&["--page"][..], 200)] {
        let service = Service::start(options);
        assert_eq!(service.connect().get("/background").unwrap().0, expected);
        service.process.terminate();
        service.wait(0);
    }
}

/// As systemd does it: a socket that it reads.
#[cfg(target_os = "linux")]
#[test]
fn systemd_is_told() {
    let dir = TempDir::new().unwrap();
    let socket = std::os::unix::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 1024];
        let len = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..len].to_vec()).unwrap()
    };
    let service = Service::start_as(program().env("NOTIFY_SOCKET", dir.path().join("notify")));
    assert_eq!(told(), "READY=1\n");
    service.process.terminate();
    while !told().contains("STOPPING=1") {}
    service.wait(0);
}

/// It says why and does nothing.
#[test]
fn what_it_cannot_do() {
    let service = Service::start(&[]);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let (taken, file) = (service.address.to_string(), file.to_str().unwrap());
    for (args, why) in [
        (&["--address", &taken, "--dir", dir.path().to_str().unwrap()][..], format!("cannot listen on {taken}: ")),
        (&["--address", "127.0.0.1:0", "--dir", file], format!("cannot write to '{file}': ")),
        (&["--unknown"], "invalid option '--unknown'".into()),
        (&["--address", "localhost"], "cannot parse argument \"localhost\"".into()),
        (&["--grace", "-1"], "cannot parse argument \"-1\"".into()),
    ] {
        let said = Process::start(program().args(args)).wait(2);
        assert!(said.contains(&why), "{args:?}: {said}");
    }
    assert!(Process::start(program().arg("--help")).wait(0).starts_with("Signs people up"));
}
