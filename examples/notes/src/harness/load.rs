//! Tests the service under load: many clients send requests without a pause.

use super::Program;
use super::service::{NotesClient, Service};
use fastrand::Rng;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use testing::{Client, Ended};

const CONNECTIONS: usize = 16;
/// The maximum number of notes that the clients store before the test stops the service.
const MAX_BEFORE_STOP: usize = 400;
/// The maximum number of notes that the clients send. The test stops the service before the clients reach this number.
const NOTES: usize = 2000;
pub(super) const LARGEST: usize = 64 << 10;

/// Sends SIGTERM to the service while many clients store notes. Every note that was answered 202 must be on disk and complete. The folder
/// must contain no other file.
///
/// The grace period is longer than the test waits, so the service exits only because it has drained. The environment variable `ROUNDS`
/// sets how often the test stops a service.
pub fn every_accepted_note_is_written(program: Program) {
    for _ in 0..rounds() {
        let service = Service::start(program, &["--grace", "3600"]);
        let accepted = send_notes(service.address(), random_stop(), || service.terminate());
        let (ended, dir) = service.wait();
        assert_drained(&ended);
        println!("{} accepted; {}", accepted.len(), ended.lines.last().unwrap().text());
        check_notes(dir.path(), &accepted);
    }
}

pub(super) fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(2, |rounds| rounds.parse().unwrap())
}

/// Returns a random number of notes, which may be 0. The test stops the service after this number of notes.
pub(super) fn random_stop() -> usize {
    fastrand::usize(0..MAX_BEFORE_STOP)
}

/// Sends notes until the service has exited. Calls `stop` when the service has accepted `stop_after` notes. Returns the numbers of all
/// accepted notes.
pub(super) fn send_notes(address: SocketAddr, stop_after: usize, stop: impl FnOnce()) -> Vec<usize> {
    let (next, stopped) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    let send = |accepted: Sender<usize>| {
        let mut client = Client::connect(address)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= NOTES {
                return io::Result::Ok(());
            }
            assert_eq!(client.put(&name(number), &body(number))?.status, 202);
            let _ = accepted.send(number);
        }
    };
    thread::scope(|scope| {
        let (sender, receiver) = channel();
        for _ in 0..CONNECTIONS {
            let sender = sender.clone();
            scope.spawn(move || {
                let result = send(sender);
                assert!(
                    result.is_ok() || stopped.load(Ordering::SeqCst),
                    "the service failed before it was asked to stop: {result:?}"
                );
            });
        }
        drop(sender);
        let mut accepted: Vec<_> = receiver.iter().take(stop_after).collect();
        stopped.store(true, Ordering::SeqCst);
        stop();
        accepted.extend(receiver);
        assert!(accepted.len() >= stop_after, "the service stopped without being asked");
        accepted
    })
}

/// Asserts that the service has drained and has lost no task.
#[track_caller]
pub(super) fn assert_drained(ended: &Ended) {
    ended.assert_code(0).assert_line(" completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
}

#[track_caller]
pub(super) fn check_notes(dir: &Path, accepted: &[usize]) {
    let lost: Vec<_> = accepted.iter().filter(|number| !dir.join(name(**number)).exists()).collect();
    assert!(lost.is_empty(), "{} of {} accepted notes were lost: {lost:?}", lost.len(), accepted.len());
    check_complete(dir);
}

/// Asserts that every file in the folder is a complete note.
#[track_caller]
pub(super) fn check_complete(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let number = name.strip_prefix("note-").and_then(|number| number.parse().ok());
        let number = number.unwrap_or_else(|| panic!("unexpected file: {name}"));
        assert!(fs::read(entry.path()).unwrap() == body(number), "{name} is incomplete");
    }
}

pub(super) fn name(number: usize) -> String {
    format!("note-{number}")
}

pub(super) fn body(number: usize) -> Vec<u8> {
    let mut random = Rng::with_seed(number as u64);
    let mut body = vec![0; random.usize(..=LARGEST)];
    random.fill(&mut body);
    body
}
