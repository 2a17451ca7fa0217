//! Contains the tests that the service must pass on every runtime. The macro `service_tests!(path)` defines all of them for the program
//! at `path`.

mod attacks;
mod environments;
mod load;
mod managers;
mod service;
mod shutdown;

pub use self::attacks::*;
pub use self::environments::*;
pub use self::load::every_accepted_note_is_written;
pub use self::managers::{under_runit, under_systemd};
pub use self::shutdown::*;

use self::load::{LARGEST, assert_drained, body};
use self::service::{NotesClient, Service, Stall};
use background_tasks::TaskId;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use testing::{Client, Line, poll_until_some};

/// Defines one test for each function in the list. Each test runs the program at `$path`.
#[macro_export]
macro_rules! service_tests {
    ($path:expr) => {
        $crate::service_tests! { $path;
            every_accepted_note_is_written
            newest_note_of_a_name_wins
            accepted_note_can_be_read
            names_are_checked
            large_bodies_are_rejected
            paths_and_methods
            current_request_finishes_after_the_signal
            idle_connections_do_not_delay_exit
            half_a_request_head_does_not_delay_exit
            half_a_request_body_does_not_use_up_the_grace_period
            failed_write_is_reported_and_counted
            tasks_are_listed
            slow_client_does_not_affect_others
            second_signal_exits_immediately
            signal_during_start_up
            unread_output_does_not_affect_the_service
            full_disk
            process_1_of_a_container
            port_in_use
            invalid_folder
            options
            links_are_not_followed
            only_regular_files_up_to_a_mebibyte_are_read
            temporary_files_of_a_killed_process_are_removed
            folder_is_locked
            memory_for_bodies_is_limited
            number_of_empty_bodies_is_limited
            memory_for_responses_is_limited
            idle_connections_and_a_slow_disk_do_not_lose_accepted_notes
            foreign_hosts_are_refused
        }
        // After its deadline, the service exits in time, even if it has not written all lines. If the machine delays the service, such
        // a test fails. Therefore only one of three attempts must pass.
        $crate::service_tests! { $path, 3;
            straggler_is_aborted
            blocked_write_does_not_delay_exit
            service_with_straggler_exits_within_a_second_of_the_deadline
        }
    };
    ($path:expr; $($test:ident)*) => {
        $crate::service_tests! { $path, 1; $($test)* }
    };
    ($path:expr, $attempts:literal; $($test:ident)*) => {$(
        #[test]
        fn $test() {
            let program = $crate::harness::Program { path: $path, tmp: env!("CARGO_TARGET_TMPDIR") };
            $crate::harness::one_attempt_passes($attempts, || $crate::harness::$test(program));
        }
    )*};
}

/// Runs a test up to `attempts` times, until it passes. Panics as the last attempt does.
pub fn one_attempt_passes(attempts: usize, test: impl Fn()) {
    if !(1..attempts).any(|_| catch_unwind(AssertUnwindSafe(&test)).is_ok()) {
        test();
    }
}

/// The program that runs the service on one runtime.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    pub path: &'static str,
    /// The folder in which the tests create their folders. This folder is probably on a disk, so that writes take time. The folder for
    /// temporary files of the system may be in memory.
    pub tmp: &'static str,
}

pub fn newest_note_of_a_name_wins(program: Program) {
    let service = Service::start(program, &[]);
    let mut client = service.connect();
    for name in 0..20 {
        for number in 0..5 {
            // The first notes are the largest, so writing them takes the longest time.
            let body = vec![b'0' + number; LARGEST >> (3 * number)];
            assert_eq!(client.put(&name.to_string(), &body).unwrap().status, 202);
        }
    }
    let (ended, dir) = service.stop();
    ended.assert_code(0).assert_line("drained in ");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 20);
    for name in 0..20 {
        assert_eq!(fs::read(dir.path().join(name.to_string())).unwrap(), b"4444444444444444");
    }
}

pub fn accepted_note_can_be_read(program: Program) {
    let service = Service::start(program, &[]);
    let mut client = service.connect();
    let body = body(7);
    assert_eq!(client.put("a.b_c-7", &body).unwrap().status, 202);
    let read = |client: &mut Client| client.get("/notes/a.b_c-7").map(|note| (note.status, note.body)).unwrap();
    assert_eq!(read(&mut client), (200, body.clone()));
    // After the note is written, the service reads it from disk.
    client.get_until("/", "Written: 1");
    assert_eq!(read(&mut client), (200, body.clone()));
    assert_eq!(fs::read(service.dir().join("a.b_c-7")).unwrap(), body);
    // The last request counts as in flight until its connection has sent the response. The client may receive the response earlier.
    let page = client.get_until("/", "2 in flight");
    assert!(page.contains("href=\"/notes/a.b_c-7\""), "{page}");
    service.stop().0.assert_code(0).assert_line("drained in ");
}

pub fn names_are_checked(program: Program) {
    let service = Service::start(program, &[]);
    let mut client = service.connect();
    let (fits, long) = ("a".repeat(100), "a".repeat(101));
    for name in ["", ".", "..", ".hidden", "../up", "a/b", "a/../b", "%2e%2e%2f", "a%00", "a\\b", "a:b", "a~", &long] {
        assert_eq!(service.connect().put(name, b"no").unwrap().status, 400, "{name:?}");
        assert_eq!(client.get(&format!("/notes/{name}")).unwrap().status, 400, "{name:?}");
    }
    assert_eq!(client.put(&fits, b"yes").unwrap().status, 202);
    let (ended, dir) = service.stop();
    ended.assert_code(0).assert_line("drained in ");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [fits.as_str()]);
}

pub fn large_bodies_are_rejected(program: Program) {
    let service = Service::start(program, &[]);
    let mebibyte = vec![1; 1 << 20];
    let larger = [&mebibyte[..], b"!"].concat();
    assert_eq!(service.connect().put("whole", &mebibyte).unwrap().status, 202);
    assert_eq!(service.connect().put_in_chunks("chunked", &[&mebibyte]).unwrap().status, 202);
    assert_eq!(service.connect().put("larger", &larger).unwrap().status, 413);
    assert_eq!(service.connect().put_in_chunks("larger", &[&mebibyte, b"!"]).unwrap().status, 413);
    assert_eq!(service.connect().get("/notes/larger").unwrap().status, 404);
    let (ended, dir) = service.stop();
    ended.assert_code(0).assert_line("drained in ");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    assert_eq!(fs::read(dir.path().join("chunked")).unwrap(), mebibyte);
}

pub fn paths_and_methods(program: Program) {
    let service = Service::start(program, &[]);
    let mut client = service.connect();
    for (method, path, status) in [
        ("GET", "/", 200),
        ("GET", "/tasks", 200),
        ("GET", "/readyz", 200),
        ("GET", "/notes/none", 404),
        ("GET", "/notes", 404),
        ("GET", "/other", 404),
        ("PUT", "/", 405),
        ("PUT", "/tasks", 405),
        ("POST", "/notes/none", 405),
        ("DELETE", "/notes/none", 405),
    ] {
        assert_eq!(client.request(method, path, &[]).unwrap().status, status, "{method} {path}");
    }
    service.stop().0.assert_code(0).assert_line("drained in ");
}

/// A request that is in flight at the signal starts a task during the drain. The registry must also accept this task.
pub fn current_request_finishes_after_the_signal(program: Program) {
    let mut service = Service::start(program, &["--grace", "3600"]);
    let mut client = service.connect();
    client.start_put("late", 4).unwrap();
    service.terminate();
    service.line("draining: ");
    poll_until_some(&"the service still listens", || Client::connect(service.address()).err());
    client.send(b"late").unwrap();
    assert_eq!(client.response().unwrap().status, 202);
    let (ended, dir) = service.wait();
    assert_drained(&ended);
    assert_eq!(fs::read(dir.path().join("late")).unwrap(), b"late");
}

pub fn idle_connections_do_not_delay_exit(program: Program) {
    let service = Service::start(program, &["--grace", "3600"]);
    let _silent = service.connect();
    let mut idle = service.connect();
    assert_eq!(idle.get("/").unwrap().status, 200);
    service.stop().0.assert_code(0).assert_line("drained in ");
}

/// The grace period is 3 seconds. A client has 5 seconds to send a head, so the service must not wait for the rest of the head.
pub fn half_a_request_head_does_not_delay_exit(program: Program) {
    let service = Service::start(program, &["--grace", "3"]);
    let mut half = service.connect();
    half.send(b"PUT /notes/half HTTP/1.1\r\nhost: local").unwrap();
    // The service has probably read this part of the head when it has answered another client.
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    service.stop().0.assert_code(0).assert_line("drained in ");
    half.response().unwrap_err();
}

/// A client that sends only half of a body may delay the exit for at most half of the grace period.
pub fn half_a_request_body_does_not_use_up_the_grace_period(program: Program) {
    let service = Service::start(program, &["--grace", "6"]);
    let mut half = service.connect();
    half.start_put("half", 8).unwrap();
    half.send(b"half").unwrap();
    let (ended, dir) = service.stop();
    assert_drained(&ended);
    assert_eq!(half.response().unwrap().text(), "408 Request Timeout\n");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The client has already been answered 202 when the write fails. The service must log the failure, and requests for the note must fail.
pub fn failed_write_is_reported_and_counted(program: Program) {
    let mut service = Service::start(program, &[]);
    fs::create_dir(service.dir().join("note")).unwrap();
    let mut client = service.connect();
    assert_eq!(client.put("note", b"lost").unwrap().status, 202);
    let line = service.line(" failed: note note: ");
    assert!(line.starts_with("write at ") && line.contains("src/handler.rs:"), "{line}");
    // The registry reports the loss before it counts the loss.
    client.get_until("/", " 1 failed, ");
    assert_eq!(client.get("/notes/note").unwrap().status, 500);
    assert!(service.line(" failed: note note: ").starts_with("read at "));
    let (ended, dir) = service.stop();
    ended.assert_code(0).assert_line(" completed, 2 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left");
}

pub fn tasks_are_listed(program: Program) {
    let stall = Stall::new(program, "note");
    let service = stall.start(program, &[]);
    let mut late = service.connect();
    late.start_put("late", 4).unwrap();
    let mut client = service.connect();
    assert_eq!(client.put("note", b"held").unwrap().status, 202);
    let tasks: Vec<Value> = serde_json::from_str(client.get("/tasks").unwrap().text()).unwrap();
    let text = |task: &Value, field: &str| task[field].as_str().unwrap_or_default().to_owned();
    // The clock may be too coarse to order tasks that started at almost the same time.
    let mut listed: Vec<_> = tasks.iter().map(|task| (text(task, "name"), text(task, "kind"))).collect();
    listed.sort();
    let expected =
        [("connection", "future"), ("connection", "future"), ("request", "guard"), ("request", "guard"), ("write", "blocking")];
    assert_eq!(listed, expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
    assert!(tasks.iter().all(|task| text(task, "location").contains(".rs:")), "{tasks:?}");
    assert!(tasks.is_sorted_by_key(|task| -task["age_seconds"].as_f64().unwrap()), "{tasks:?}");
    let ids: BTreeSet<TaskId> = tasks.iter().map(|task| text(task, "id").parse().unwrap()).collect();
    assert_eq!(ids.len(), 5);
}

/// The read is a blocking closure, which cannot be aborted. The connection waits for the read and can be aborted. The program waits for
/// the connection, so it is aborted too, or returns.
pub fn straggler_is_aborted(program: Program) {
    let stall = Stall::new(program, "note");
    let service = stall.start(program, &["--grace", "0.3"]);
    let mut client = service.connect();
    client.start_get("note").unwrap();
    service.await_stalled_task();
    let start = Instant::now();
    let (ended, _) = service.stop();
    let is_abort = |line: &Line| line.text().starts_with("connection at ") && line.text().contains(" was aborted after ");
    assert!(ended.lines.iter().any(is_abort), "{ended:#?}");
    ended.assert_code(1).assert_line(" completed, 0 failed, 0 panicked, 1 abandoned, ");
    assert!(start.elapsed() >= Duration::from_millis(300));
    println!("exited {:?} after SIGTERM, with a grace period of 300 ms", start.elapsed());
}

/// A blocked write cannot be aborted, so the service reports it as a straggler. Clients can read the note meanwhile, because it is in
/// memory.
pub fn blocked_write_does_not_delay_exit(program: Program) {
    let stall = Stall::new(program, "note");
    let service = stall.start(program, &["--grace", "0.3"]);
    let mut client = service.connect();
    assert_eq!(client.put("note", b"in memory").unwrap().status, 202);
    assert_eq!(client.get("/notes/note").unwrap().text(), "in memory");
    assert!(client.get("/").unwrap().text().contains("Not on disk yet: 1"));
    let (ended, _) = service.stop();
    ended.assert_code(1).assert_line(" still in flight (");
    ended.assert_code(1).assert_line("  1 × write at ");
    ended.assert_code(1).assert_line("s (a blocking closure that has started cannot be aborted)");
}

pub fn port_in_use(program: Program) {
    let service = Service::start(program, &[]);
    let dir = program.dir();
    let args = ["--listen", &service.address().to_string(), "--dir", dir.path().to_str().unwrap()];
    fails_to_start(program, &args, &format!("the program failed: cannot listen on {}: ", service.address()));
}

pub fn invalid_folder(program: Program) {
    let dir = program.dir();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for folder in [file.join("below"), file] {
        let folder = folder.to_str().unwrap();
        fails_to_start(
            program,
            &["--listen", "127.0.0.1:0", "--dir", folder],
            &format!("the program failed: cannot write to '{folder}': "),
        );
    }
}

pub fn options(program: Program) {
    is_refused(program, &["--unknown"], "error: unexpected argument '--unknown' found");
    is_refused(program, &["stray"], "error: unexpected argument 'stray' found");
    is_refused(program, &["--listen"], "error: a value is required for '--listen <ADDRESS>' but none was supplied");
    for (address, why) in [("127.0.0.1:65536", "invalid socket address syntax"), ("0.0.0.0:0", "expected a loopback address")] {
        is_refused(program, &["--listen", address], &format!("error: invalid value '{address}' for '--listen <ADDRESS>': {why}"));
    }
    is_refused(program, &["--grace", "-1"], "error: invalid value '-1' for '--grace <SECONDS>': ");
    is_refused(program, &["--grace", "soon"], "error: invalid value 'soon' for '--grace <SECONDS>': invalid float literal");
    is_refused(program, &["--memory", "1"], "error: invalid value '1' for '--memory <MIB>': the minimum is 2");
    let help = program.start(["--help"]).wait();
    help.assert_code(0)
        .assert_line("Usage: ")
        .assert_line("--grace <SECONDS>")
        .assert_line("[default: 10]")
        .assert_line("Exit status: 0 ");
}

/// Asserts that the service exits with code 2 and prints only to stderr. The first line must be the reason.
#[track_caller]
fn is_refused(program: Program, args: &[&str], why: &str) {
    let ended = program.start(args).wait();
    ended.assert_code(2);
    assert!(matches!(&ended.lines[0], Line::Stderr(line) if line.starts_with(why)), "{ended:#?}");
    assert!(ended.lines.iter().all(|line| matches!(line, Line::Stderr(_))), "{ended:#?}");
}

/// Asserts that the service exits with code 2 and prints only one line, the reason.
#[track_caller]
fn fails_to_start(program: Program, args: &[&str], why: &str) {
    let ended = program.start(args).wait();
    ended.assert_code(2).assert_line(why);
    assert!(matches!(&ended.lines[..], [Line::Stderr(line)] if line.starts_with(why)), "{ended:#?}");
}
