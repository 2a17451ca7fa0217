//! Tests of the service as a process, with real signals.
#![cfg(unix)]

use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use testing::{Client, Process, Signal, poll_until_some};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_signups"))
}

/// A running service and its folder.
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
        let address = process.rest_of_line("listening on http://").parse().unwrap();
        Self { process, address, dir }
    }

    fn connect(&self) -> Client {
        Client::connect(self.address).unwrap()
    }

    /// Waits until the process has ended. Returns its output and the addresses in its outbox.
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

/// Starts to sign up, and returns once the service waits for an address of `len` bytes.
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

/// Signs up over many connections, and sends SIGTERM meanwhile. A mail is sent for each sign-up that was answered 202.
#[test]
fn every_accepted_mail_is_sent() {
    let rounds = std::env::var("ROUNDS").map_or(2, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let service = Service::start(&["--grace", "60"]);
        let stop_after = 1 + SIGN_UPS / 2 * round / rounds;
        let accepted = sign_up_until_exit(&service, stop_after);
        assert!((stop_after..SIGN_UPS).contains(&accepted.len()), "{} of {stop_after}", accepted.len());
        let (output, mut sent) = service.wait(0);
        assert!(output.contains(" failed=0 panicked=0 abandoned=0 aborted=0 rejected=0"), "{output}");
        sent.sort();
        let lost: Vec<_> = accepted.iter().filter(|address| sent.binary_search(address).is_err()).collect();
        assert!(lost.is_empty(), "{} of {} mails were lost: {lost:?}", lost.len(), accepted.len());
    }
}

/// Signs up until the service has exited. Sends SIGTERM once `stop_after` addresses are accepted. Returns the accepted addresses.
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
            // An error means that the service has exited.
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

/// The tasks that the request starts are accepted too.
#[test]
fn current_request_finishes_after_the_signal() {
    let mut service = Service::start(&["--grace", "60"]);
    let mut client = service.connect();
    start_sign_up(&mut client, 15);
    service.process.terminate();
    service.process.line("background task shutdown started in_flight=2");
    poll_until_some(&"the service still listens", || Client::connect(service.address).err());
    client.send(b"ada@example.com").unwrap();
    assert_eq!(client.response().unwrap().status, 202);
    let (output, sent) = service.wait(0);
    // The request, the mail, the write to the outbox, and the program.
    assert!(output.contains(" completed=4 failed=0 panicked=0 abandoned=0 aborted=0 rejected=0"), "{output}");
    assert_eq!(sent, ["ada@example.com"]);
}

/// While the service lingers, it accepts connections and requests, but is not ready.
#[test]
fn service_is_not_ready_after_the_signal() {
    let mut service = Service::start(&["--grace", "3600", "--linger", "3600"]);
    let mut open = service.connect();
    assert_eq!(get(&mut open, "/healthz"), (200, "alive\n".into()));
    assert_eq!(get(&mut open, "/readyz"), (200, "ready\n".into()));
    let mut late = service.connect();
    start_sign_up(&mut late, 15);
    service.process.terminate();
    // Logged once the registry is shutting down.
    service.process.line("background task shutdown started in_flight=2");
    for client in [&mut open, &mut service.connect()] {
        assert_eq!(get(client, "/readyz"), (503, "draining\n".into()));
        assert_eq!(get(client, "/healthz"), (200, "alive\n".into()));
        assert_eq!(sign_up(client, "grace@example.com").unwrap(), 202);
    }
    late.send(b"ada@example.com").unwrap();
    assert_eq!(late.response().unwrap().status, 202);
    // A second signal does not wait for the linger time.
    service.process.signal_until_exit(Signal::TERM);
    service.wait(130);
}

#[test]
fn linger_time_is_part_of_the_grace_period() {
    for (grace, linger, code, expected) in
        [("60", "0.3", 0, "background tasks drained took_seconds="), ("0.3", "3600", 1, "still in flight task.name=\"program\" ")]
    {
        let service = Service::start(&["--grace", grace, "--linger", linger]);
        let start = Instant::now();
        service.process.terminate();
        let (output, _) = service.wait(code);
        assert!(output.contains(expected) && start.elapsed() >= Duration::from_millis(300), "{output}");
    }
}

#[test]
fn metrics_count_the_tasks() {
    let service = Service::start(&[]);
    let mut client = service.connect();
    assert_eq!(sign_up(&mut client, "ada@example.com").unwrap(), 202);
    // The request, the mail, and the write to the outbox.
    let completed = "background_tasks_total{registry=\"signups\",outcome=\"completed\",task=\"\"} 3\n";
    let metrics = client.get_until("/metrics", completed);
    assert!(metrics.contains("background_tasks_in_flight{registry=\"signups\"} 0\n"), "{metrics}");
    assert!(metrics.contains("# TYPE background_tasks_total counter\n"), "{metrics}");

    fs::remove_file(service.dir.path().join("outbox")).unwrap();
    fs::create_dir(service.dir.path().join("outbox")).unwrap();
    assert_eq!(sign_up(&mut client, "grace@example.com").unwrap(), 202);
    client.get_until("/metrics", "background_tasks_total{registry=\"signups\",outcome=\"failed\",task=\"outbox\"} 1\n");
    service.process.terminate();
    let (output, _) = service.wait(0);
    let is_reported = |line: &str| {
        line.contains("ERROR task{task.name=\"outbox\" task.location=examples/axum/src/main.rs:")
            && line.contains("}: background_tasks: background task failed task.name=\"outbox\"")
    };
    assert!(output.lines().any(is_reported), "not reported in the span of its task: {output}");
}

/// Without a timeout for the head of a request, the client holds its connection until the grace period has expired.
#[test]
fn half_a_request_head_does_not_delay_exit() {
    let service = Service::start(&["--grace", "30"]);
    let mut half = service.connect();
    half.send(b"POST /signups HTTP/1.1\r\nhost: local").unwrap();
    // The service has probably read the half when it has answered another client.
    assert_eq!(get(&mut service.connect(), "/healthz").0, 200);
    service.process.terminate();
    let (output, _) = service.wait(0);
    assert!(output.contains("background tasks drained"), "{output}");
    half.response().unwrap_err();
}

#[test]
fn straggler_is_reported() {
    let mut service = Service::start(&["--grace", "0.5"]);
    // The outbox is a named pipe without a reader, so opening it blocks.
    mknodat(CWD, service.dir.path().join("outbox"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert_eq!(sign_up(&mut service.connect(), "ada@example.com").unwrap(), 202);
    service.process.line("the mail is sent");
    let start = Instant::now();
    let output = service.process.stop().assert_code(1).output();
    let took = start.elapsed();
    assert!(output.contains("still in flight task.name=\"outbox\" task.location=examples/axum/src/main.rs:"), "{output}");
    assert!((Duration::from_millis(500)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[test]
fn invalid_address_is_rejected() {
    let service = Service::start(&[]);
    for address in ["", "ada", "ada@example.com\neve@example.com", "ada@example.com\r"] {
        assert_eq!(sign_up(&mut service.connect(), address).unwrap(), 400, "{address:?}");
    }
    assert_eq!(sign_up(&mut service.connect(), &"@".repeat(1025)).unwrap(), 413);
    service.process.terminate();
    assert!(service.wait(0).1.is_empty());
}

#[test]
fn dashboard_is_optional() {
    for (options, expected) in [(&[][..], 404), (&["--dashboard"][..], 200)] {
        let service = Service::start(options);
        assert_eq!(get(&mut service.connect(), "/background").0, expected);
        service.process.terminate();
        service.wait(0);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn service_notifies_systemd() {
    let socket = testing::NotifySocket::new();
    let service = Service::start_as(program().env("NOTIFY_SOCKET", socket.path()));
    assert_eq!(socket.receive(), "READY=1\n");
    service.process.terminate();
    socket.receive_with(&["STOPPING=1"]);
    service.wait(0);
}

/// The service prints why it fails to start.
#[test]
fn invalid_options_are_reported() {
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
        let output = Process::start(program().args(args)).wait().assert_code(2).output();
        assert!(output.contains(&why), "{args:?}: {output}");
    }
    assert!(Process::start(program().arg("--help")).wait().assert_code(0).output().starts_with("Signs people up"));
}
