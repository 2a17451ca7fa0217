//! Where a service may find itself.

use super::Program;
use super::load::{anytime, assert_drained, body, check_notes, name, rounds, send_notes};
use super::page_with;
use super::service::{Process, Service, prefixed};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// It goes on when nobody reads its output any more, as after Ctrl-C in `notes 2>&1 | tee log`, and when it has none.
pub fn nobody_hears_it(program: Program) {
    if !cfg!(target_os = "linux") {
        println!("skipped: the port of a service that cannot tell it is found by Linux's /proc");
        return;
    }
    let broken = || {
        let (_, theirs) = UnixStream::pair().unwrap();
        Stdio::from(OwnedFd::from(theirs))
    };
    unheard(program, |mut service| Process::spawn(service.stdout(broken()).stderr(broken())));
    let closed = ["sh", "-c", r#"exec "$0" "$@" >&- 2>&-"#];
    unheard(program, |service| Process::spawn(&mut prefixed(&closed, &service)));
}

fn unheard(program: Program, start: impl Fn(Command) -> Process) {
    let dir = program.dir();
    let process = start(program.serve(dir.path(), &["--grace", "3600"]));
    let service = Service::that_is_mute(process, dir);
    // It has a loss to tell as well.
    fs::create_dir(service.dir().join("taken")).unwrap();
    assert_eq!(service.connect().put("taken", b"lost").unwrap().status, 202);
    service.signal(Signal::PIPE);
    let accepted = send_notes(service.address(), anytime(), || service.terminate());
    let (ended, dir) = service.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:#?}");
    fs::remove_dir(dir.path().join("taken")).unwrap();
    check_notes(dir.path(), &accepted);
}

/// What does not fit is told, counted and left out; the service lives on.
pub fn a_full_disk(program: Program) {
    const NOTES: usize = 64;
    let Some(disk) = Disk::mount(program) else { return };
    let process = Process::start(program.serve(disk.path(), &["--grace", "3600"]));
    let service = Service::that_tells(process, program.dir());
    let mut client = service.connect();
    let bodies: usize = (0..NOTES).map(|number| body(number).len()).sum();
    assert!(bodies > DISK);
    for number in 0..NOTES {
        assert_eq!(client.put(&name(number), &body(number)).unwrap().status, 202);
    }
    page_with(&mut client, "Not on disk yet: 0<");
    let written: BTreeSet<_> = (0..NOTES).filter(|number| disk.path().join(name(*number)).exists()).collect();
    for number in &written {
        fs::remove_file(disk.path().join(name(*number))).unwrap();
    }
    assert_eq!(client.put(&name(NOTES), &body(NOTES)).unwrap().status, 202);
    let (ended, _) = service.stop();
    check_notes(disk.path(), &[NOTES]);
    let told = |number: usize| ended.says(&format!(" failed: note {}: No space left on device", name(number)));
    let failed: BTreeSet<_> = (0..=NOTES).filter(|number| told(*number)).collect();
    assert_eq!(failed, (0..NOTES).filter(|number| !written.contains(number)).collect(), "{ended:#?}");
    ended.assert(0, &format!(" completed, {} failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected", failed.len()));
}

/// Its size.
const DISK: usize = 1 << 20;

/// A small file system, which does not outlive its test.
struct Disk(TempDir);

impl Disk {
    fn mount(program: Program) -> Option<Self> {
        let disk = Self(program.dir());
        let size = format!("size={DISK}");
        run(&["mount", "-t", "tmpfs", "-o", &size, "tmpfs", disk.path().to_str().unwrap()]).map(|()| disk)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).stderr(Stdio::null()).status();
    }
}

/// Says why not if it cannot be run here.
pub(super) fn run(words: &[&str]) -> Option<()> {
    let why = match Command::new(words[0]).args(&words[1..]).output() {
        Ok(output) if output.status.success() => return Some(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    println!("skipped: {}: {why}", words[0]);
    None
}

const NAMESPACE: [&str; 4] = ["unshare", "--pid", "--fork", "--kill-child"];

/// As in a container: the kernel keeps from the first process of a PID namespace every signal that it has no handler for.
pub fn as_the_first_process(program: Program) {
    if run(&[&NAMESPACE[..], &["true"]].concat()).is_none() {
        return;
    }
    a_signal_without_a_handler(&mut Command::new("cat"), Some(Signal::TERM.as_raw()));
    a_signal_without_a_handler(&mut prefixed(&NAMESPACE, &Command::new("cat")), None);
    for _ in 0..rounds() {
        let service = first(program, &["--grace", "3600"]);
        let accepted = send_notes(service.address(), anytime(), || service.terminate());
        let (ended, dir) = service.wait();
        assert_drained(&ended);
        check_notes(dir.path(), &accepted);
    }
}

/// Starts a service as the first process of a namespace.
fn first(program: Program, options: &[&str]) -> Service {
    let dir = program.dir();
    let process = Process::start(prefixed(&NAMESPACE, &program.serve(dir.path(), options)));
    let mut service = Service::that_tells(process, dir);
    service.process().aim_at_child();
    service
}

/// Sends SIGTERM to a program that has no handler for it. It dies of that, or ends when it has nothing more to read.
fn a_signal_without_a_handler(cat: &mut Command, dies_of: Option<i32>) {
    let mut process = Process::spawn(cat.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut stdin = process.stdin();
    writeln!(stdin, "before").unwrap();
    process.line("before");
    if dies_of.is_none() {
        process.aim_at_child();
    }
    process.signal(Signal::TERM);
    // Whoever has died does not answer.
    let _ = writeln!(stdin, "after");
    drop(stdin);
    let ended = process.wait();
    assert_eq!(ended.status.signal(), dies_of);
    assert_eq!(ended.says("after"), dies_of.is_none());
}
