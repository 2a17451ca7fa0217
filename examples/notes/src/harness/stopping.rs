//! Signals, and those who would hold the end up.

use super::Program;
use super::client::Client;
use super::load::{anytime, assert_drained, check_notes, check_whole, send_notes};
use super::service::{Ended, Process, Service};
use rustix::process::Signal;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_millis(500);

/// One that can be aborted, and one that cannot and that the runtime's own drop would wait for.
///
/// The bound is the service's, the delays are the machine's: one of three times has to keep it.
pub fn a_straggler_is_gone_within_a_second(program: Program) {
    let half_a_request = |service: &Service| begin(service, "half");
    let a_write_that_hangs = |service: &Service| {
        service.hold_first_write();
        let mut client = service.connect();
        assert_eq!(client.put("note", b"in memory").unwrap().status, 202);
        client
    };
    straggle(program, "connection at ", &half_a_request);
    straggle(program, "write at ", &a_write_that_hangs);
}

fn straggle(program: Program, named: &str, hold: &dyn Fn(&Service) -> Client) {
    let took = (0..3).map(|_| {
        let service = Service::start(program, &["--grace", "0.5"]);
        let _client = hold(&service);
        let began = Instant::now();
        let (ended, dir) = service.stop();
        let took = began.elapsed();
        ended.assert(1, named);
        assert!(took >= GRACE, "{took:?}: {ended:#?}");
        assert!(!dir.path().join("half").exists() && !dir.path().join("note").exists());
        println!("{named}… was gone {took:?} after SIGTERM, with a grace of {GRACE:?}");
        took
    });
    assert!({ took }.any(|took| took <= GRACE + Duration::from_secs(1)));
}

/// Begins a request and leaves it at that.
fn begin(service: &Service, name: &str) -> Client {
    let mut client = service.connect();
    client.begin_put(name, 8).unwrap();
    client.send(b"half").unwrap();
    client
}

/// It sends a byte now and then, so no timeout of a read would end it. Those beside it lose nothing.
pub fn a_client_that_never_finishes(program: Program) {
    let service = Service::start(program, &["--grace", "5"]);
    let mut slow = service.connect();
    slow.begin_put("slow", 1 << 20).unwrap();
    let (gone, address) = (AtomicBool::new(false), service.address());
    let (accepted, ended, dir) = thread::scope(|scope| {
        scope.spawn(|| {
            while !gone.load(Ordering::Relaxed) && slow.send(b".").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let accepted = send_notes(address, anytime() / 2, || service.terminate());
        let (ended, dir) = service.wait();
        gone.store(true, Ordering::Relaxed);
        (accepted, ended, dir)
    });
    ended.assert(1, "connection at ");
    ended.assert(1, " 0 failed, 0 panicked, 0 abandoned, 1 aborted, 0 rejected");
    assert!(!dir.path().join("slow").exists());
    check_notes(dir.path(), &accepted);
}

/// Whichever the two are, and whether the first one has been seen to by then or not.
pub fn a_second_signal_leaves_at_once(program: Program) {
    for (first, second) in
        [(Signal::INT, Signal::INT), (Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM), (Signal::TERM, Signal::INT)]
    {
        for waits in [true, false] {
            // Two of a kind are one while nobody has taken the first.
            if waits || first != second {
                let mut service = Service::start(program, &["--grace", "3600"]);
                let _client = begin(&service, "half");
                service.signal(first);
                if waits {
                    service.line("draining: ");
                }
                service.signal(second);
                let (ended, dir) = service.wait();
                ended.assert(130, "left at once, ");
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
            }
        }
    }
    a_second_signal_under_load(program);
}

/// A note is on disk whole or not at all, even then. What was being written is left under its temporary name.
fn a_second_signal_under_load(program: Program) {
    let mut service = Service::start(program, &["--grace", "3600"]);
    let _client = begin(&service, "half");
    service.hold_first_write();
    let address = service.address();
    send_notes(address, 50, || {
        service.signal(Signal::INT);
        service.line("draining: ");
        service.signal(Signal::INT);
    });
    let (ended, dir) = service.wait();
    ended.assert(130, "left at once, ");
    for entry in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        if entry.file_name().as_encoded_bytes().ends_with(b".tmp") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    check_whole(dir.path());
}

/// Whenever it comes: the process has died of it, as it had no handler yet, or it drains. Nothing else, and it is gone by itself.
pub fn a_signal_during_start_up(program: Program) {
    const STARTS: u32 = 60;
    let began = Instant::now();
    Service::start(program, &[]).stop().0.assert(0, "drained in ");
    let longest = began.elapsed();
    let (mut died, mut drained) = (0, 0);
    for start in 0..STARTS {
        let dir = program.dir();
        let process = Process::start(program.serve(dir.path(), &["--grace", "3600"]));
        thread::sleep(longest * start / STARTS);
        process.signal(Signal::TERM);
        let ended = process.wait();
        if ended.status.signal() == Some(Signal::TERM.as_raw()) {
            // Once it listens it has its handler.
            assert!(!ended.says(""), "{ended:#?}");
            died += 1;
        } else {
            assert_drained(&ended);
            drained += 1;
        }
        check_nothing(&ended, dir.path());
    }
    println!("within {longest:?}: {died} died, {drained} drained");
}

/// Nothing was asked of it, and nothing is left. A start leaves its probe when it dies of the signal at that very moment.
fn check_nothing(ended: &Ended, dir: &std::path::Path) {
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let probe = |name: &std::ffi::OsString| ended.status.code().is_none() && name.as_encoded_bytes().ends_with(b"-0.tmp");
    assert!(left.iter().all(probe), "{left:?}");
}
