//! The tests that the service must pass on every runtime, against its program: `service_tests!(path)` makes them all.

mod client;
mod load;
mod managers;
mod places;
mod service;
mod stopping;

pub use self::load::every_accepted_note_is_written;
pub use self::managers::{under_runit, under_systemd};
pub use self::places::*;
pub use self::stopping::*;

use self::client::{Client, Response};
use self::load::{LARGEST, assert_drained, body};
use self::service::{Line, Service, patiently};
use background_tasks::TaskId;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Makes a test of each function of this module, for one program.
#[macro_export]
macro_rules! service_tests {
    ($path:expr) => {
        $crate::service_tests! { $path;
            every_accepted_note_is_written
            the_last_of_one_name_wins
            a_note_can_be_read
            names_are_checked
            large_bodies_are_refused
            paths_and_methods
            a_request_that_is_being_answered_may_finish
            idle_connections_do_not_hold_it
            a_write_that_fails_is_told_and_counted
            tasks_are_listed
            a_straggler_is_aborted
            a_write_that_hangs_does_not_hold_it
            a_straggler_is_gone_within_a_second
            a_client_that_never_finishes
            a_second_signal_leaves_at_once
            a_signal_during_start_up
            nobody_hears_it
            a_full_disk
            as_the_first_process
            a_port_in_use
            a_folder_that_cannot_be
            options
        }
    };
    ($path:expr; $($test:ident)*) => {$(
        #[test]
        fn $test() {
            $crate::harness::$test($crate::harness::Program { path: $path, tmp: env!("CARGO_TARGET_TMPDIR") });
        }
    )*};
}

/// The service of one runtime.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    pub path: &'static str,
    /// Where the folders of the tests are: on a disk, more likely than the system's own, so that writing takes its time.
    pub tmp: &'static str,
}

pub fn the_last_of_one_name_wins(program: Program) {
    let service = Service::start(program, &[]);
    let mut client = service.connect();
    for name in 0..20 {
        for number in 0..5 {
            // The first ones are the larger ones, which take the longer to write.
            let body = vec![b'0' + number; LARGEST >> (3 * number)];
            assert_eq!(client.put(&name.to_string(), &body).unwrap().status, 202);
        }
    }
    let (ended, dir) = service.stop();
    ended.assert(0, "drained in ");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 20);
    for name in 0..20 {
        assert_eq!(fs::read(dir.path().join(name.to_string())).unwrap(), b"4444444444444444");
    }
}

pub fn a_note_can_be_read(program: Program) {
    let service = Service::start(program, &[]);
    let mut client = service.connect();
    let body = body(7);
    assert_eq!(client.put("a.b_c-7", &body).unwrap().status, 202);
    assert_eq!(client.get("/notes/a.b_c-7").unwrap(), Response { status: 200, body: body.clone() });
    // Once the page says so it is read from disk.
    page_with(&mut client, "Written: 1");
    assert_eq!(client.get("/notes/a.b_c-7").unwrap(), Response { status: 200, body: body.clone() });
    assert_eq!(fs::read(service.dir().join("a.b_c-7")).unwrap(), body);
    // The last request is in flight until its connection has handed the response over, which may be after it has arrived.
    let page = page_with(&mut client, "2 in flight");
    assert!(page.contains("href=\"/notes/a.b_c-7\""), "{page}");
    service.stop().0.assert(0, "drained in ");
}

/// Asks for the page until it has that in it.
fn page_with(client: &mut Client, what: &str) -> String {
    loop {
        let page = text(client.get("/").unwrap());
        if page.contains(what) {
            return page;
        }
        thread::yield_now();
    }
}

fn text(response: Response) -> String {
    String::from_utf8(response.body).unwrap()
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
    ended.assert(0, "drained in ");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [fits.as_str()]);
}

pub fn large_bodies_are_refused(program: Program) {
    let service = Service::start(program, &[]);
    let mebibyte = vec![1; 1 << 20];
    let larger = [&mebibyte[..], b"!"].concat();
    assert_eq!(service.connect().put("whole", &mebibyte).unwrap().status, 202);
    assert_eq!(service.connect().put_in_chunks("chunked", &[&mebibyte]).unwrap().status, 202);
    assert_eq!(service.connect().put("larger", &larger).unwrap().status, 413);
    assert_eq!(service.connect().put_in_chunks("larger", &[&mebibyte, b"!"]).unwrap().status, 413);
    assert_eq!(service.connect().get("/notes/larger").unwrap().status, 404);
    let (ended, dir) = service.stop();
    ended.assert(0, "drained in ");
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
    service.stop().0.assert(0, "drained in ");
}

/// Nor is what it starts then refused.
pub fn a_request_that_is_being_answered_may_finish(program: Program) {
    let mut service = Service::start(program, &["--grace", "3600"]);
    let mut client = service.connect();
    client.begin_put("late", 4).unwrap();
    service.terminate();
    service.line("draining: ");
    patiently(&"it listens still", || Client::connect(service.address()).err());
    client.send(b"late").unwrap();
    assert_eq!(client.response().unwrap().status, 202);
    let (ended, dir) = service.wait();
    assert_drained(&ended);
    assert_eq!(fs::read(dir.path().join("late")).unwrap(), b"late");
}

pub fn idle_connections_do_not_hold_it(program: Program) {
    let service = Service::start(program, &["--grace", "3600"]);
    let _silent = service.connect();
    let mut idle = service.connect();
    assert_eq!(idle.get("/").unwrap().status, 200);
    service.stop().0.assert(0, "drained in ");
}

/// The client was told 202 by then; whoever runs the service is told, and who asks for the note is.
pub fn a_write_that_fails_is_told_and_counted(program: Program) {
    let mut service = Service::start(program, &[]);
    fs::create_dir(service.dir().join("note")).unwrap();
    let mut client = service.connect();
    assert_eq!(client.put("note", b"lost").unwrap().status, 202);
    let told = service.line(" failed: note note: ");
    assert!(told.starts_with("write at ") && told.contains("src/answer.rs:"), "{told}");
    // Counted after it is told.
    while !text(client.get("/").unwrap()).contains(" 1 failed, ") {
        thread::yield_now();
    }
    assert_eq!(client.get("/notes/note").unwrap().status, 500);
    assert!(service.line(" failed: note note: ").starts_with("read at "));
    let (ended, dir) = service.stop();
    ended.assert(0, " completed, 2 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "its temporary file was left");
}

pub fn tasks_are_listed(program: Program) {
    let service = Service::start(program, &[]);
    service.hold_first_write();
    let mut late = service.connect();
    late.begin_put("late", 4).unwrap();
    let mut client = service.connect();
    assert_eq!(client.put("note", b"held").unwrap().status, 202);
    let tasks: Vec<Value> = serde_json::from_str(&text(client.get("/tasks").unwrap())).unwrap();
    let text = |task: &Value, field: &str| task[field].as_str().unwrap_or_default().to_owned();
    // The clock may be too coarse to tell who came first of those that came together.
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

/// Its client was not answered, so what it sent is nothing that was promised.
pub fn a_straggler_is_aborted(program: Program) {
    let service = Service::start(program, &["--grace", "0.3"]);
    let mut client = service.connect();
    client.begin_put("half", 8).unwrap();
    client.send(b"half").unwrap();
    let began = Instant::now();
    let (ended, dir) = service.stop();
    let told = |line: &Line| line.text().starts_with("connection at ") && line.text().contains(" was aborted after ");
    assert!(ended.lines.iter().any(told), "{ended:#?}");
    ended.assert(1, " completed, 0 failed, 0 panicked, 0 abandoned, 1 aborted, 0 rejected");
    assert!(began.elapsed() >= Duration::from_millis(300));
    println!("gone {:?} after SIGTERM, with a grace of 300 ms", began.elapsed());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// It cannot be aborted either, so it is named. Nor does it hold the reader: what is not on disk is in memory.
pub fn a_write_that_hangs_does_not_hold_it(program: Program) {
    let service = Service::start(program, &["--grace", "0.3"]);
    service.hold_first_write();
    let mut client = service.connect();
    assert_eq!(client.put("note", b"in memory").unwrap().status, 202);
    assert_eq!(text(client.get("/notes/note").unwrap()), "in memory");
    assert!(text(client.get("/").unwrap()).contains("Not on disk yet: 1"));
    let (ended, _) = service.stop();
    ended.assert(1, " still in flight (");
    ended.assert(1, "  1 × write at ");
    ended.assert(1, "s (a blocking closure cannot be aborted)");
}

pub fn a_port_in_use(program: Program) {
    let service = Service::start(program, &[]);
    let dir = program.dir();
    let args = ["--port", &service.port(), "--dir", dir.path().to_str().unwrap()];
    refuses(program, &args, &format!("the program failed: cannot listen on {}: ", service.address()));
}

pub fn a_folder_that_cannot_be(program: Program) {
    let dir = program.dir();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for folder in [file.join("below"), file] {
        let folder = folder.to_str().unwrap();
        refuses(program, &["--port", "0", "--dir", folder], &format!("the program failed: cannot write to '{folder}': "));
    }
}

pub fn options(program: Program) {
    refuses(program, &["--unknown"], "notes: invalid option '--unknown'");
    refuses(program, &["stray"], "notes: unexpected argument \"stray\"");
    refuses(program, &["--port"], "notes: missing argument for option '--port'");
    refuses(program, &["--port", "65536"], "notes: cannot parse argument \"65536\"");
    refuses(program, &["--grace", "-1"], "notes: cannot parse argument \"-1\"");
    refuses(program, &["--grace", "soon"], "notes: cannot parse argument \"soon\"");
    program.start(["--help"]).wait().assert(0, "Usage: ");
}

/// It says why in one line, and does nothing.
#[track_caller]
fn refuses(program: Program, args: &[&str], why: &str) {
    let ended = program.start(args).wait();
    ended.assert(2, why);
    assert!(matches!(&ended.lines[..], [Line::Err(line)] if line.starts_with(why)), "{ended:#?}");
}
