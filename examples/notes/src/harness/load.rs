//! Many clients that send as fast as they are answered.

use super::Program;
use super::client::Client;
use super::service::{Ended, Service};
use fastrand::Rng;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

const CONNECTIONS: usize = 16;
/// The most that are accepted before a service is asked to stop.
const ENOUGH: usize = 400;
/// The most that are sent. It has stopped by then, if it stops at all.
const NOTES: usize = 2000;
pub(super) const LARGEST: usize = 64 << 10;

/// Sends notes over many connections and SIGTERM among them: what was answered 202 is on disk, whole, and nothing else is.
///
/// The grace is longer than the test's patience: the service is gone because it has drained. `ROUNDS` in the environment says how
/// often.
pub fn every_accepted_note_is_written(program: Program) {
    for _ in 0..rounds() {
        let service = Service::start(program, &["--grace", "3600"]);
        let accepted = send_notes(service.address(), anytime(), || service.terminate());
        let (ended, dir) = service.wait();
        assert_drained(&ended);
        println!("{} accepted; {}", accepted.len(), ended.lines.last().unwrap().text());
        check_notes(dir.path(), &accepted);
    }
}

pub(super) fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(2, |rounds| rounds.parse().unwrap())
}

/// Returns after how many notes a service is to be stopped: now and then before the first.
pub(super) fn anytime() -> usize {
    fastrand::usize(0..ENOUGH)
}

/// Sends notes until the service is gone. It is asked to be that, by `stop`, when `enough` are accepted; returns which were.
pub(super) fn send_notes(address: SocketAddr, enough: usize, stop: impl FnOnce()) -> Vec<usize> {
    let (next, stopped) = (&AtomicUsize::new(0), &AtomicBool::new(false));
    let send = |tell: Sender<usize>| {
        let mut client = Client::connect(address)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= NOTES {
                return io::Result::Ok(());
            }
            assert_eq!(client.put(&name(number), &body(number))?.status, 202);
            let _ = tell.send(number);
        }
    };
    thread::scope(|scope| {
        let (tell, told) = channel();
        for _ in 0..CONNECTIONS {
            let tell = tell.clone();
            scope.spawn(move || {
                let result = send(tell);
                assert!(result.is_ok() || stopped.load(Ordering::SeqCst), "it was not asked to stop: {result:?}");
            });
        }
        drop(tell);
        let mut accepted: Vec<_> = told.iter().take(enough).collect();
        stopped.store(true, Ordering::SeqCst);
        stop();
        accepted.extend(told);
        assert!(accepted.len() >= enough, "it has stopped by itself");
        accepted
    })
}

/// Nothing was lost.
#[track_caller]
pub(super) fn assert_drained(ended: &Ended) {
    ended.assert(0, " completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
}

#[track_caller]
pub(super) fn check_notes(dir: &Path, accepted: &[usize]) {
    let lost: Vec<_> = accepted.iter().filter(|number| !dir.join(name(**number)).exists()).collect();
    assert!(lost.is_empty(), "{} of {} accepted notes were lost: {lost:?}", lost.len(), accepted.len());
    check_whole(dir);
}

/// What is there is a note, and whole.
#[track_caller]
pub(super) fn check_whole(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let number = name.strip_prefix("note-").and_then(|number| number.parse().ok());
        let number = number.unwrap_or_else(|| panic!("a stray file: {name}"));
        assert!(fs::read(entry.path()).unwrap() == body(number), "{name} is not whole");
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
