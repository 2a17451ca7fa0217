//! Tests signals, and clients and tasks that delay a shutdown.

use super::Program;
use super::load::{assert_drained, check_complete, check_notes, name, random_stop, send_notes};
use super::service::{NotesClient, Service, Stall};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use testing::{Client, Ended, Process, Signal};

const GRACE: Duration = Duration::from_millis(500);

/// In the first case, the stragglers are a read and the connection that waits for it. The connection can be aborted. In the second case,
/// the straggler is a write. The read and the write cannot be aborted, and the destructor of the runtime would wait for them.
pub fn service_with_straggler_exits_within_a_second_of_the_deadline(program: Program) {
    exits_in_time(program, &["connection at ", "read at "], &|client| client.start_get("note").unwrap());
    exits_in_time(program, &["write at "], &|client| assert_eq!(client.put("note", b"in memory").unwrap().status, 202));
}

fn exits_in_time(program: Program, stragglers: &[&str], start_stragglers: &dyn Fn(&mut Client)) {
    let stall = Stall::new(program, "note");
    let service = stall.start(program, &["--grace", "0.5"]);
    let mut client = service.connect();
    start_stragglers(&mut client);
    service.await_stalled_task();
    let start = Instant::now();
    let (ended, dir) = service.stop();
    let took = start.elapsed();
    ended.assert_code(1);
    for straggler in stragglers {
        ended.assert_line(straggler);
    }
    assert!(took >= GRACE && took <= GRACE + Duration::from_secs(1), "{took:?}: {ended:#?}");
    assert!(!dir.path().join("note").exists());
    println!("{stragglers:?}: exited {took:?} after SIGTERM, with a grace period of {GRACE:?}");
}

/// Sends the head of a request and half of its body.
fn send_half(service: &Service, name: &str) -> Client {
    let mut client = service.connect();
    client.start_put(name, 8).unwrap();
    client.send(b"half").unwrap();
    client
}

/// The slow client sends one byte from time to time, so a timeout for each read would not end its request. The service must not lose a
/// note of the other clients.
pub fn slow_client_does_not_affect_others(program: Program) {
    let service = Service::start(program, &["--grace", "5"]);
    let mut slow = service.connect();
    slow.start_put("slow", 1 << 20).unwrap();
    let (has_exited, address) = (AtomicBool::new(false), service.address());
    let (accepted, ended, dir) = thread::scope(|scope| {
        scope.spawn(|| {
            while !has_exited.load(Ordering::Relaxed) && slow.send(b".").is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let accepted = send_notes(address, random_stop() / 2, || service.terminate());
        let (ended, dir) = service.wait();
        has_exited.store(true, Ordering::Relaxed);
        (accepted, ended, dir)
    });
    assert_drained(&ended);
    assert!(!dir.path().join("slow").exists());
    check_notes(dir.path(), &accepted);
}

/// Tests each pair of signals, both before and after the service has handled the first signal.
pub fn second_signal_exits_immediately(program: Program) {
    for (first, second) in
        [(Signal::INT, Signal::INT), (Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM), (Signal::TERM, Signal::INT)]
    {
        for wait_for_drain in [true, false] {
            // The kernel merges two equal signals until it has delivered the first signal.
            if wait_for_drain || first != second {
                let mut service = Service::start(program, &["--grace", "3600"]);
                let _client = send_half(&service, "half");
                service.signal(first);
                if wait_for_drain {
                    service.line("draining: ");
                }
                // For one second, the host treats a second signal as a repetition of the first signal. Therefore the test sends the
                // second signal until the process exits.
                service.process().signal_until_exit(second);
                let (ended, dir) = service.wait();
                ended.assert_code(130).assert_line("exiting immediately, ");
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
            }
        }
    }
    second_signal_under_load(program);
}

/// Each note must be on disk completely or not at all. The temporary files of interrupted writes may stay.
fn second_signal_under_load(program: Program) {
    let stall = Stall::new(program, &name(0));
    let mut service = stall.start(program, &["--grace", "3600"]);
    let address = service.address();
    send_notes(address, 50, || {
        service.signal(Signal::INT);
        service.line("draining: ");
        service.process().signal_until_exit(Signal::INT);
    });
    let (ended, dir) = service.wait();
    ended.assert_code(130).assert_line("exiting immediately, ");
    for entry in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
        if entry.file_name().as_encoded_bytes().ends_with(b".tmp") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    check_complete(dir.path());
}

/// The test sends the signal at different times of the start-up. Either the process has no handler yet and is killed, or it must drain.
pub fn signal_during_start_up(program: Program) {
    const STARTS: u32 = 60;
    let start = Instant::now();
    Service::start(program, &[]).stop().0.assert_code(0).assert_line("drained in ");
    let longest = start.elapsed();
    let (mut killed, mut drained) = (0, 0);
    for start in 0..STARTS {
        let dir = program.dir();
        let process = Process::start(&mut program.serve(dir.path(), &["--grace", "3600"]));
        thread::sleep(longest * start / STARTS);
        process.signal(Signal::TERM);
        let ended = process.wait();
        if ended.status.signal() == Some(Signal::TERM.as_raw()) {
            // A service that prints its address has installed its handler.
            assert!(!ended.has_line(""), "{ended:#?}");
            killed += 1;
        } else {
            assert_drained(&ended);
            drained += 1;
        }
        check_empty(&ended, dir.path());
    }
    println!("within {longest:?}: {killed} killed, {drained} drained");
}

/// Asserts that the folder is empty. If the process was killed, the folder may contain one file, which the start-up creates to check the
/// folder.
fn check_empty(ended: &Ended, dir: &std::path::Path) {
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let probe = |name: &std::ffi::OsString| ended.status.code().is_none() && name.as_encoded_bytes().ends_with(b"-0.tmp");
    assert!(left.iter().all(probe), "{left:?}");
}
