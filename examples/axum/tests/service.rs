//! Starts the service as a process, and sends HTTP requests and signals to it.
#![cfg(unix)]

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::net::{AddressFamily, SocketType};
#[cfg(target_os = "linux")]
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use testing::{Client, Process, Signal, Systemd, poll_until, poll_until_some, prefixed, with_open_files};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_signups"))
}

/// The process of a service, and the folder that contains the outbox of the service.
struct Service {
    process: Process,
    address: SocketAddr,
    dir: TempDir,
}

impl Service {
    #[track_caller]
    fn start(options: &[&str]) -> Self {
        Self::start_as(&mut program(), options)
    }

    #[track_caller]
    fn start_as(command: &mut Command, options: &[&str]) -> Self {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut process = Process::start(command.args(["--listen", "127.0.0.1:0", "--dir"]).arg(dir.path()).args(options));
        let address = process.rest_of_line("listening on http://").parse().unwrap();
        Self { process, address, dir }
    }

    fn connect(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    /// Waits until the process has ended. Returns the output of the process and the addresses in the outbox.
    #[track_caller]
    fn wait(self, code: i32) -> (String, Vec<String>) {
        let output = self.process.wait().assert_code(code).output();
        let outbox = fs::read_to_string(self.dir.path().join("outbox")).unwrap_or_default();
        (output, outbox.lines().map(str::to_owned).collect())
    }
}

fn sign_up(client: &mut Client, address: &str) -> io::Result<u16> {
    Ok(client.request("POST", "/signups", address.as_bytes())?.status)
}

/// Sends the head of a sign-up request. Returns as soon as the service waits for the body, an address of `len` bytes.
fn start_sign_up(client: &mut Client, len: usize) {
    client.start_request("POST", "/signups", len).unwrap();
}

#[track_caller]
fn get(client: &mut Client, path: &str) -> (u16, String) {
    let response = client.get(path).unwrap();
    (response.status, response.text().to_owned())
}

const SIGN_UPS: usize = 2000;
const CONNECTIONS: usize = 16;

/// Sends SIGTERM to the service while many clients sign up. For each sign-up that was answered 202, the service must send a mail.
#[test]
fn every_accepted_mail_is_sent() {
    let rounds = std::env::var("ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let service = Service::start(&["--grace", "60"]);
        let stop_after = 1 + SIGN_UPS / 2 * round / rounds;
        let accepted = sign_up_until_exit(&service, stop_after);
        assert!(accepted.len() >= stop_after, "{} of {stop_after}", accepted.len());
        let (output, mut sent) = service.wait(0);
        assert!(output.contains(" failed=0 panicked=0 abandoned=0 aborted=0 rejected=0"), "{output}");
        sent.sort();
        let lost: Vec<_> = accepted.iter().filter(|address| sent.binary_search(address).is_err()).collect();
        assert!(lost.is_empty(), "{} of {} mails were lost: {lost:?}", lost.len(), accepted.len());
    }
}

/// Sends sign-ups until the service has exited. Sends SIGTERM as soon as the service has accepted `stop_after` addresses. Returns all
/// accepted addresses.
fn sign_up_until_exit(service: &Service, stop_after: usize) -> Vec<String> {
    let (next, address) = (&AtomicUsize::new(0), service.address);
    let sign_up_all = |accepted: Sender<String>| {
        let mut client = Client::connect(address)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= SIGN_UPS {
                return io::Result::Ok(());
            }
            let reader = format!("reader-{number}@example.com");
            assert_eq!(sign_up(&mut client, &reader)?, 202);
            let _ = accepted.send(reader);
        }
    };
    thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..CONNECTIONS {
            let sender = sender.clone();
            // The client gets an error if the service has exited.
            scope.spawn(|| drop(sign_up_all(sender)));
        }
        drop(sender);
        let accepted = receiver.iter().enumerate().inspect(|(before, _)| {
            if before + 1 == stop_after {
                service.process.terminate();
            }
        });
        accepted.map(|(_, address)| address).collect()
    })
}

/// A request that is in flight when the signal arrives must finish, and the registry must accept the tasks that this request starts.
#[test]
fn current_request_finishes_after_the_signal() {
    let mut service = Service::start(&["--grace", "60"]);
    let mut client = service.connect();
    start_sign_up(&mut client, 15);
    service.process.terminate();
    // The three tasks in flight are the program, the connection, and the request.
    service.process.line("background task shutdown started in_flight=3");
    poll_until_some(&"the service still listens", || Client::connect(service.address).err());
    client.send(b"ada@example.com").unwrap();
    assert_eq!(client.response().unwrap().status, 202);
    let (output, sent) = service.wait(0);
    assert!(output.contains(" failed=0 panicked=0 abandoned=0 aborted=0 rejected=0"), "{output}");
    assert_eq!(sent, ["ada@example.com"]);
}

/// During the delay, the service accepts connections and requests, but `/readyz` answers 503.
#[test]
fn service_is_not_ready_after_the_signal() {
    let mut service = Service::start(&["--grace", "3600", "--delay", "3600"]);
    let mut open = service.connect();
    assert_eq!(get(&mut open, "/healthz"), (200, "alive\n".into()));
    assert_eq!(get(&mut open, "/readyz"), (200, "ready\n".into()));
    let mut late = service.connect();
    start_sign_up(&mut late, 15);
    service.process.terminate();
    service.process.line("asked to stop by SIGTERM: the drain starts in 3600.0s");
    for client in [&mut open, &mut service.connect()] {
        assert_eq!(get(client, "/readyz"), (503, "draining\n".into()));
        assert_eq!(get(client, "/healthz"), (200, "alive\n".into()));
        assert_eq!(sign_up(client, "grace@example.com").unwrap(), 202);
    }
    late.send(b"ada@example.com").unwrap();
    assert_eq!(late.response().unwrap().status, 202);
    // The second signal ends the process even during the delay.
    service.process.signal_until_exit(Signal::TERM);
    service.wait(130);
}

/// The delay is part of the grace period. In the second case, the delay is as long as the grace period, so the mail is still in flight when
/// the grace period expires.
#[test]
fn delay_is_part_of_the_grace_period() {
    for (grace, delay, takes, code, expected) in [
        ("60", "0.3", "0", 0, "background tasks drained took_seconds="),
        ("0.3", "3600", "3600000", 1, "still in flight task.name=\"welcome-mail\" "),
    ] {
        let service = Service::start(&["--grace", grace, "--delay", delay, "--takes", takes]);
        assert_eq!(sign_up(&mut service.connect(), "ada@example.com").unwrap(), 202);
        let start = Instant::now();
        service.process.terminate();
        let (output, _) = service.wait(code);
        assert!(output.contains(expected) && start.elapsed() >= Duration::from_millis(300), "{output}");
    }
}

/// Returns a command that starts the service with an inherited listener.
fn with_listener(listener: &TcpListener) -> Command {
    // The shell makes its stdin the first inherited file descriptor (3). The shell then replaces itself with the service.
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_signups")]);
    command.stdin(OwnedFd::from(listener.try_clone().unwrap())).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn dashboard_needs_a_loopback_listener() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let process = Process::spawn(with_listener(&listener).arg("--dashboard").arg("--dir").arg(dir.path()));
    let output = process.wait().assert_code(2).output();
    assert!(output.contains("the dashboard has no login"), "{output}");
}

/// Sets the flag when this value is dropped, even if a panic drops it.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// 32 clients sign up while the service restarts five times. Every sign-up must be answered 202 and written.
fn restarts_fail_no_sign_up(address: SocketAddr, outbox: &Path, mut restart: impl FnMut()) {
    const CLIENTS: usize = 32;
    let (is_over, answered, failed) = (&AtomicBool::new(false), &AtomicUsize::new(0), &Mutex::new(Vec::new()));
    let client = || {
        while !is_over.load(Ordering::Relaxed) {
            match Client::connect(address).and_then(|mut client| sign_up(&mut client, "ada@example.com")) {
                Ok(202) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                other => return failed.lock().unwrap().push(other),
            }
        }
    };
    thread::scope(|scope| {
        let _end = SetOnDrop(is_over);
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
        for round in 1..=5 {
            poll_until(&"the clients wait", || answered.load(Ordering::Relaxed) > round * 4 * CLIENTS);
            restart();
        }
    });
    let (answered, failed) = (answered.load(Ordering::Relaxed), failed.lock().unwrap());
    println!("{answered} sign-ups were answered during five restarts");
    assert!(failed.is_empty(), "{} of {} sign-ups failed: {failed:?}", failed.len(), answered + failed.len());
    poll_until(&"a mail is not sent", || fs::read_to_string(outbox).unwrap().lines().count() == answered);
}

/// The test keeps the listener open, as systemd does for a socket unit.
#[test]
fn restart_with_an_inherited_listener_refuses_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let start = || {
        let mut process = Process::spawn(with_listener(&listener).arg("--dir").arg(dir.path()));
        assert_eq!(process.rest_of_line("listening on http://"), address.to_string());
        process
    };
    let mut process = Some(start());
    restarts_fail_no_sign_up(address, &dir.path().join("outbox"), || {
        process.take().unwrap().stop().assert_code(0);
        process = Some(start());
    });
    process.unwrap().stop().assert_code(0);
}

/// The units of the README run under systemd, without the sandbox, and with the folder and the address of this test.
#[test]
fn systemctl_restart_refuses_no_connection() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // This socket does not listen. It reserves a port, which `ReusePort` lets systemd use.
    let reserved = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::sockopt::set_socket_reuseport(&reserved, true).unwrap();
    rustix::net::bind(&reserved, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address: SocketAddr = rustix::net::getsockname(&reserved).unwrap().try_into().unwrap();
    let (address_text, dir_text) = (address.to_string(), dir.path().to_str().unwrap());
    let socket = include_str!("../signups.socket").replace("127.0.0.1:3000", &format!("{address_text}\nReusePort=yes"));
    let service = include_str!("../signups.service").split_once("\n\n# systemd creates a user").unwrap().0;
    let service = service.replace("/usr/local/bin/signups", env!("CARGO_BIN_EXE_signups")).replace("${STATE_DIRECTORY}", dir_text);
    for (name, unit) in [("signups.socket", &*socket), ("signups.service", &service)] {
        assert!(unit.contains(if name == "signups.socket" { &address_text } else { dir_text }), "{unit}");
        fs::write(dir.path().join(name), unit.replace("[Unit]", "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0"))
            .unwrap();
    }
    let Some(systemd) = Systemd::boot(dir.path()) else { return };
    systemd.systemctl("start", "signups.socket");
    // The first connection starts the service.
    restarts_fail_no_sign_up(address, &dir.path().join("outbox"), || systemd.systemctl("restart", "signups"));
}

#[test]
fn metrics_count_the_tasks() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    assert_eq!(sign_up(&mut client, "ada@example.com").unwrap(), 202);
    for name in ["request", "welcome-mail", "outbox"] {
        let completed = format!("background_tasks_total{{registry=\"signups\",outcome=\"completed\",task=\"{name}\"}} 1\n");
        client.get_until("/metrics", &completed);
    }
    let metrics = client.get_until("/metrics", "background_tasks_started_total{registry=\"signups\",task=\"outbox\"} 1\n");
    assert!(metrics.contains("background_tasks_in_flight{registry=\"signups\",task=\"connection\"} 1\n"), "{metrics}");
    let duration = "background_tasks_duration_seconds_count{registry=\"signups\",task=\"outbox\",outcome=\"completed\"} 1\n";
    assert!(metrics.contains(duration), "{metrics}");
    assert!(metrics.contains("# TYPE background_tasks_total counter\n"), "{metrics}");

    // A write to the deleted file would succeed, but nobody could read the mail.
    fs::remove_file(service.dir.path().join("outbox")).unwrap();
    assert_eq!(sign_up(&mut client, "grace@example.com").unwrap(), 202);
    client.get_until("/metrics", "background_tasks_total{registry=\"signups\",outcome=\"failed\",task=\"welcome-mail\"} 1\n");
    service.process.terminate();
    let (output, _) = service.wait(0);
    let line = "ERROR sign_up{address=\"grace@example.com\"}: background_tasks: background task failed task.name=\"welcome-mail\"";
    assert!(output.contains(line), "the sign-up of the failed mail is not reported: {output}");
}

/// When the service receives the signal, it closes a connection that has sent only a part of a request head. The service does not wait
/// for the head timeout of 5 s.
#[test]
fn half_a_request_head_does_not_delay_exit() {
    let service = Service::start(&["--grace", "30"]);
    let mut half = service.connect();
    half.send(b"POST /signups HTTP/1.1\r\nhost: local").unwrap();
    let mut idle = service.connect();
    assert_eq!(get(&mut idle, "/healthz").0, 200);
    let start = Instant::now();
    service.process.terminate();
    let (output, _) = service.wait(0);
    assert!(start.elapsed() < Duration::from_millis(4500), "{output}");
    assert!(output.contains("background tasks drained"), "{output}");
    for client in [&mut half, &mut idle] {
        client.response().unwrap_err();
    }
}

/// During the drain, a client must send the rest of a body within half of the grace period.
#[test]
fn half_a_request_body_does_not_exceed_the_grace_period() {
    let service = Service::start(&["--grace", "6"]);
    let mut half = service.connect();
    start_sign_up(&mut half, 15);
    half.send(b"ada").unwrap();
    service.process.terminate();
    assert_eq!(half.response().unwrap().status, 408);
    let (output, sent) = service.wait(0);
    assert!(output.contains("background tasks drained") && sent.is_empty(), "{output}");
}

/// The input of up to 4096 connections must fit into 256 MiB, the memory limit of kubernetes.yaml.
#[cfg(target_os = "linux")]
#[test]
fn half_request_heads_hold_little_memory() {
    let service = Service::start(&[]);
    let head = format!("GET /healthz HTTP/1.1\r\nx: {}", "x".repeat(300 * 1024));
    let clients: Vec<_> = (0..400)
        .map(|_| {
            let mut client = service.connect();
            // The client gets an error if the service has rejected the head.
            let _ = client.send(head.as_bytes());
            client
        })
        .collect();
    assert_eq!(get(&mut service.connect(), "/healthz").0, 200);
    let status = fs::read_to_string(format!("/proc/{}/status", service.process.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix(" kB")?.trim().parse::<u32>().ok());
    assert!(peak.unwrap() < 40 * 1024, "{status}");
    drop(clients);
}

/// Many idle connections must leave enough file descriptors for the mails.
#[cfg(target_os = "linux")]
#[test]
fn idle_connections_lose_no_mail() {
    let service = Service::start_as(&mut with_open_files(128, &program()), &[]);
    let mut client = service.connect();
    assert_eq!(get(&mut client, "/healthz").0, 200);
    let idle: Vec<_> = (0..150).map(|_| service.connect()).collect();
    let addresses: Vec<_> = (0..50).map(|number| format!("{number}@example.com")).collect();
    for address in &addresses {
        assert_eq!(sign_up(&mut client, address).unwrap(), 202);
    }
    service.process.terminate();
    let (output, mut sent) = service.wait(0);
    sent.sort_by_key(|address| addresses.iter().position(|other| other == address));
    assert_eq!(sent, addresses, "{output}");
    drop(idle);
}

/// With DNS rebinding, a web page of another site makes its own host name point to the address of the service. The service must reject
/// requests for such host names.
#[test]
fn unknown_hosts_are_rejected() {
    let service = Service::start(&["--host", "signups.example.com", "--host", "signups", "--dashboard"]);
    for (headers, expected) in [
        (&["host: localhost"][..], 202),
        (&["host: 127.0.0.1:3000"], 202),
        (&["host: [::1]"], 202),
        (&["host: signups"], 202),
        (&["host: SIGNUPS.example.com:80"], 202),
        (&["host: example.com"], 421),
        (&["host: localhost.example.com"], 421),
        (&["host: "], 400),
        (&[], 400),
        (&["host: localhost", "host: signups"], 400),
    ] {
        let mut client = service.connect().with_headers(headers);
        assert_eq!(sign_up(&mut client, "ada@example.com").unwrap(), expected, "{headers:?}");
        let expected = if expected == 202 { 200 } else { expected };
        for path in ["/healthz", "/background"] {
            assert_eq!(get(&mut service.connect().with_headers(headers), path).0, expected, "{path} {headers:?}");
        }
    }
    service.process.terminate();
    assert_eq!(service.wait(0).1.len(), 5);
}

#[test]
fn straggler_is_reported() {
    let service = Service::start(&["--grace", "0.5", "--takes", "3600000"]);
    assert_eq!(sign_up(&mut service.connect(), "ada@example.com").unwrap(), 202);
    let start = Instant::now();
    let output = service.process.stop().assert_code(1).output();
    let took = start.elapsed();
    assert!(output.contains("still in flight task.name=\"welcome-mail\" task.location=examples/axum/src/main.rs:"), "{output}");
    let line = "WARN sign_up{address=\"ada@example.com\"}: background_tasks: background task aborted task.name=\"welcome-mail\"";
    assert!(output.contains(line), "the sign-up of the aborted mail is not reported: {output}");
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

/// The service answers a sign-up with 202 only if the registry has accepted the task that sends the mail.
#[test]
fn sign_up_beyond_the_limit_is_answered_503() {
    let service = Service::start(&["--max-in-flight", "4", "--takes", "3600000", "--grace", "0.1"]);
    let statuses = ["1@b", "2@b", "3@b", "4@b", "5@b", "6@b"].map(|address| sign_up(&mut service.connect(), address).unwrap());
    assert_eq!(statuses, [202, 202, 202, 202, 503, 503]);
    service.process.terminate();
    let (output, _) = service.wait(1);
    assert_eq!(output.matches("still in flight task.name=\"welcome-mail\"").count(), 4, "{output}");
}

/// The task of a mail keeps its permit until the address is written. Therefore every accepted mail must be sent.
#[test]
fn mails_within_the_limit_are_sent() {
    let service = Service::start(&["--max-in-flight", "1"]);
    let mut accepted = Vec::new();
    let mut client = service.connect();
    for number in 0..20 {
        let address = format!("{number}@example.com");
        poll_until(&"the mail before is not sent", || sign_up(&mut client, &address).unwrap() == 202);
        accepted.push(address);
    }
    service.process.terminate();
    assert_eq!(service.wait(0).1, accepted);
}

/// The service must reject an outbox that is a named pipe, because opening a pipe without a reader would block. The service must also
/// reject a symbolic link, because the link could name a file of another service.
#[test]
fn outbox_must_be_a_regular_file() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [other, outbox] = ["other", "outbox"].map(|name| dir.path().join(name));
    fs::write(&other, "the file of another service\n").unwrap();
    let is_refused = || {
        let mut command = program();
        let ended = Process::start(command.args(["--listen", "127.0.0.1:0", "--dir"]).arg(dir.path())).wait();
        ended.assert_code(2).assert_line(&format!("cannot append to '{}', which must be a regular file: ", outbox.display()));
    };
    symlink(&other, &outbox).unwrap();
    is_refused();
    fs::remove_file(&outbox).unwrap();
    symlink(dir.path().join("missing"), &outbox).unwrap();
    is_refused();
    fs::remove_file(&outbox).unwrap();
    mknodat(CWD, &outbox, FileType::Fifo, Mode::RWXU, 0).unwrap();
    is_refused();
    // If a named pipe has a reader, the service can open the pipe. The service must then reject the pipe by the type of the file.
    let reader = fs::OpenOptions::new().read(true).write(true).open(&outbox).unwrap();
    is_refused();
    drop(reader);
    assert_eq!(fs::read_to_string(&other).unwrap(), "the file of another service\n");
    assert!(!dir.path().join("missing").exists());
}

/// If the disk is full, the system can write a part of a line. The next mail must not become a part of this line.
#[cfg(target_os = "linux")]
#[test]
fn mail_after_a_part_of_a_line_starts_a_new_line() {
    // The limit for the size of a file has the same effect as a full disk, if its signal is ignored.
    let ignoring = prefixed(&["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""], &program());
    let service = Service::start_as(&mut { ignoring }, &[]);
    let limit_file_size = |current| {
        let pid = Pid::from_raw(service.process.id().try_into().unwrap());
        prlimit(pid, Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    };
    let mut client = service.connect();
    let mut ends_as = |outcome: &str, address: &str, count: u32| {
        assert_eq!(sign_up(&mut client, address).unwrap(), 202);
        let total = format!("background_tasks_total{{registry=\"signups\",outcome=\"{outcome}\",task=\"welcome-mail\"}} {count}\n");
        client.get_until("/metrics", &total);
    };
    ends_as("completed", "ada@example.com", 1);
    limit_file_size(Some(20));
    ends_as("failed", "grace@example.com", 1);
    // No part of this line fits.
    ends_as("failed", "grace@example.com", 2);
    limit_file_size(None);
    ends_as("completed", "alan@example.com", 2);
    service.process.terminate();
    assert_eq!(service.wait(0).1, ["ada@example.com", "grac", "alan@example.com"]);
}

#[test]
fn invalid_address_is_rejected() {
    let service = Service::start(&[]);
    let separators = ["\n", "\r", "\t", " ", "\u{b}", "\u{85}", "\u{2028}", "\u{2029}"];
    let two_lines = separators.map(|separator| format!("ada@example.com{separator}eve@example.com"));
    for address in ["", "ada"].into_iter().chain(two_lines.iter().map(String::as_str)) {
        assert_eq!(sign_up(&mut service.connect(), address).unwrap(), 400, "{address:?}");
    }
    assert_eq!(sign_up(&mut service.connect(), &"@".repeat(1025)).unwrap(), 413);
    service.process.terminate();
    assert!(service.wait(0).1.is_empty());
}

#[test]
fn dashboard_is_optional() {
    for (options, expected) in [(&[][..], 404), (&["--dashboard"], 200), (&["--public-dashboard", "--listen", "0.0.0.0:0"], 200)] {
        let service = Service::start(options);
        assert_eq!(get(&mut service.connect(), "/background").0, expected);
        service.process.terminate();
        service.wait(0);
    }
}

/// A browser that keeps the dashboard open must not delay the end of the drain until the grace period expires.
#[test]
fn open_dashboard_does_not_delay_exit() {
    let service = Service::start(&["--dashboard", "--grace", "3600"]);
    let mut page = TcpStream::connect(service.address).unwrap();
    page.write_all(b"GET /background/events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut status = [0; 12];
    page.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    service.process.terminate();
    service.wait(0);
}

#[cfg(target_os = "linux")]
#[test]
fn service_notifies_systemd() {
    let socket = testing::NotifySocket::new();
    let service = Service::start_as(program().env("NOTIFY_SOCKET", socket.address()), &[]);
    assert_eq!(socket.receive(), "READY=1\n");
    service.process.terminate();
    socket.receive_with(&["STOPPING=1"]);
    service.wait(0);
}

/// If the service cannot start, it must print the reason.
#[test]
fn invalid_options_are_reported() {
    let service = Service::start(&[]);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let (taken, file) = (service.address.to_string(), file.to_str().unwrap());
    for (args, why) in [
        (&["--listen", &taken, "--dir", dir.path().to_str().unwrap()][..], format!("cannot listen on {taken}: ")),
        (&["--listen", "127.0.0.1:0", "--dir", file], format!("cannot write to '{file}': ")),
        (&["--unknown"], "unexpected argument '--unknown'".into()),
        (&["--listen", "localhost"], "invalid value 'localhost' for '--listen <ADDRESS>'".into()),
        (&["--grace", "-1"], "invalid value '-1' for '--grace <SECONDS>'".into()),
        (&["--max-in-flight", "0"], "invalid value '0' for '--max-in-flight <MAILS>'".into()),
        (&["--listen", "0.0.0.0:0", "--dashboard"], "the dashboard has no login".into()),
    ] {
        let output = Process::start(program().args(args)).wait().assert_code(2).output();
        assert!(output.contains(&why), "{args:?}: {output}");
    }
    // If an option is repeated, the service uses the last value.
    let service = Service::start(&["--grace", "1", "--grace", "2"]);
    service.process.terminate();
    service.wait(0);
    assert!(Process::start(program().arg("--help")).wait().assert_code(0).output().starts_with("Signs people up"));
}
