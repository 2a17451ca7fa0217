//! Tests the service in unusual environments: with unread output, on a full disk, and as process 1 of a container.

use super::Program;
use super::load::{assert_drained, body, check_notes, name, random_stop, rounds, send_notes};
use super::service::{NotesClient, Service};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use testing::{Process, Signal, Tmpfs, prefixed, run_or_skip};

/// The service must continue when the reader of its output has exited, as after Ctrl-C in `notes 2>&1 | tee log`. The service must also
/// continue when its output is closed.
pub fn unread_output_does_not_affect_the_service(program: Program) {
    if !cfg!(target_os = "linux") {
        testing::skip("linux", "the port of a service without output is found only in Linux's /proc");
        return;
    }
    let broken = || {
        let (_, writer) = UnixStream::pair().unwrap();
        Stdio::from(OwnedFd::from(writer))
    };
    without_output(program, |mut service| Process::spawn(service.stdout(broken()).stderr(broken())));
    let closed = ["sh", "-c", r#"exec "$0" "$@" >&- 2>&-"#];
    without_output(program, |service| Process::spawn(&mut prefixed(&closed, &service)));
}

fn without_output(program: Program, start: impl Fn(Command) -> Process) {
    let dir = program.dir();
    let process = start(program.serve(dir.path(), &["--grace", "3600"]));
    let service = Service::without_output(process, dir);
    // The write of this note fails, so the service also reports a loss.
    fs::create_dir(service.dir().join("taken")).unwrap();
    assert_eq!(service.connect().put("taken", b"lost").unwrap().status, 202);
    service.signal(Signal::PIPE);
    let accepted = send_notes(service.address(), random_stop(), || service.terminate());
    let (ended, dir) = service.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:#?}");
    fs::remove_dir(dir.path().join("taken")).unwrap();
    check_notes(dir.path(), &accepted);
}

/// If notes do not fit on the disk, the service must report and count them, and continue.
pub fn full_disk(program: Program) {
    const NOTES: usize = 64;
    let Some(disk) = Tmpfs::mount(DISK) else { return };
    let process = Process::start(&mut program.serve(disk.path(), &["--grace", "3600"]));
    let service = Service::with_output(process, program.dir());
    let mut client = service.connect();
    let bodies: usize = (0..NOTES).map(|number| body(number).len()).sum();
    assert!(bodies > DISK);
    for number in 0..NOTES {
        assert_eq!(client.put(&name(number), &body(number)).unwrap().status, 202);
    }
    client.get_until("/", "Not on disk yet: 0<");
    let written: BTreeSet<_> = (0..NOTES).filter(|number| disk.path().join(name(*number)).exists()).collect();
    for number in &written {
        fs::remove_file(disk.path().join(name(*number))).unwrap();
    }
    assert_eq!(client.put(&name(NOTES), &body(NOTES)).unwrap().status, 202);
    let (ended, _) = service.stop();
    check_notes(disk.path(), &[NOTES]);
    let is_reported = |number: usize| ended.has_line(&format!(" failed: note {}: No space left on device", name(number)));
    let failed: BTreeSet<_> = (0..=NOTES).filter(|number| is_reported(*number)).collect();
    assert_eq!(failed, (0..NOTES).filter(|number| !written.contains(number)).collect(), "{ended:#?}");
    ended
        .assert_code(0)
        .assert_line(&format!(" completed, {} failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected", failed.len()));
}

/// The size of the disk, in bytes.
const DISK: usize = 1 << 20;

const NAMESPACE: [&str; 4] = ["unshare", "--pid", "--fork", "--kill-child"];

/// The kernel does not deliver a signal to process 1 of a PID namespace if this process has no handler for the signal. Therefore the
/// service must handle SIGTERM.
pub fn process_1_of_a_container(program: Program) {
    if run_or_skip("namespaces", &[&NAMESPACE[..], &["true"]].concat()).is_none() {
        return;
    }
    signal_without_handler(&mut Command::new("cat"), Some(Signal::TERM.as_raw()));
    signal_without_handler(&mut prefixed(&NAMESPACE, &Command::new("cat")), None);
    for _ in 0..rounds() {
        let service = start_as_process_1(program, &["--grace", "3600"]);
        let accepted = send_notes(service.address(), random_stop(), || service.terminate());
        let (ended, dir) = service.wait();
        assert_drained(&ended);
        check_notes(dir.path(), &accepted);
    }
}

/// Starts a service as process 1 of a PID namespace.
fn start_as_process_1(program: Program, options: &[&str]) -> Service {
    let dir = program.dir();
    let process = Process::start(&mut prefixed(&NAMESPACE, &program.serve(dir.path(), options)));
    let mut service = Service::with_output(process, dir);
    service.process().redirect_signals_to_child();
    service
}

/// Sends SIGTERM to a program without a handler. If `killed_by` is `None`, the program must ignore the signal and exit at the end of its
/// input. If `killed_by` is a signal, this signal must kill the program.
fn signal_without_handler(cat: &mut Command, killed_by: Option<i32>) {
    let mut process = Process::spawn(cat.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdin = process.stdin();
    writeln!(stdin, "before").unwrap();
    process.line("before");
    if killed_by.is_none() {
        process.redirect_signals_to_child();
    }
    process.signal(Signal::TERM);
    // This write fails if the signal has killed the program.
    let _ = writeln!(stdin, "after");
    drop(stdin);
    let ended = process.wait();
    assert_eq!(ended.status.signal(), killed_by);
    assert_eq!(ended.has_line("after"), killed_by.is_none());
}
