//! Tests the service with files and clients that attack the service.

use super::load::{assert_drained, body, check_complete, send_notes};
use super::service::{NotesClient, Service, Stall};
use super::{Program, fails_to_start};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use testing::{Client, Process, Signal, poll_until};

const MIB: usize = 1 << 20;

/// The test places links at the path of a note and at the paths of the next temporary files. The service must not follow the links.
pub fn links_are_not_followed(program: Program) {
    let mut service = Service::start(program, &[]);
    let outside = program.dir();
    let secret = outside.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    symlink(&secret, service.dir().join("note")).unwrap();
    let mut client = service.connect();
    assert_eq!(client.get("/notes/note").unwrap().status, 500);
    assert!(service.line(" failed: note note: ").starts_with("read at "));
    for number in 0..10 {
        symlink(&secret, service.temporary(number)).unwrap();
    }
    assert_eq!(client.put("note", b"public").unwrap().status, 202);
    client.get_until("/", "Written: 1<");
    assert_eq!(client.get("/notes/note").unwrap().text(), "public");
    let (ended, dir) = service.stop();
    ended.assert_code(0).assert_line(" completed, 1 failed, ");
    assert_eq!(fs::read_to_string(secret).unwrap(), "secret");
    assert!(fs::symlink_metadata(dir.path().join("note")).unwrap().is_file());
}

pub fn only_regular_files_up_to_a_mebibyte_are_read(program: Program) {
    let mut service = Service::start(program, &[]);
    let file = |name: &str, len| File::create_new(service.dir().join(name)).unwrap().set_len(len).unwrap();
    file("fits", MIB as u64);
    file("larger", MIB as u64 + 1);
    file("huge", 1 << 40);
    mkfifoat(CWD, service.dir().join("pipe"), Mode::RWXU).unwrap();
    let mut client = service.connect();
    assert_eq!(client.get("/notes/fits").unwrap().body.len(), MIB);
    for (name, reason) in [("larger", "larger than 1 MiB"), ("huge", "larger than 1 MiB"), ("pipe", "not a regular file")] {
        assert_eq!(client.get(&format!("/notes/{name}")).unwrap().status, 500, "{name}");
        service.line(&format!(" failed: note {name}: {reason}"));
    }
    service.stop().0.assert_code(0).assert_line(" completed, 3 failed, ");
}

pub fn temporary_files_of_a_killed_process_are_removed(program: Program) {
    let service = Service::start(program, &[]);
    send_notes(service.address(), 50, || service.signal(Signal::KILL));
    let (_, dir) = service.wait();
    let path = |name: &str| dir.path().join(name);
    let files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    println!("{} temporary files were left", files.filter(|file| file.as_encoded_bytes().starts_with(b".")).count());
    // The process may have been killed between two writes. Therefore the test adds a temporary file.
    fs::write(path(".4000000-12.tmp"), "half").unwrap();
    let others = [".4000000-12.tmp.swp", ".4000000.tmp", ".-12.tmp", ".a-12.tmp", "4000000-12.tmp"];
    for other in others {
        fs::write(path(other), "").unwrap();
    }
    let process = Process::start(&mut program.serve(dir.path(), &[]));
    let (ended, dir) = Service::with_output(process, dir).stop();
    assert_drained(&ended);
    for other in others {
        fs::remove_file(dir.path().join(other)).unwrap();
    }
    check_complete(dir.path());
}

/// A second process must not use the folder. Otherwise, the second process would remove the temporary files of the first process, and an
/// older note could replace a newer note.
pub fn folder_is_locked(program: Program) {
    let service = Service::start(program, &[]);
    let folder = service.dir().to_str().unwrap();
    let why = format!("the program failed: cannot write to '{folder}': another process uses this folder");
    fails_to_start(program, &["--listen", "127.0.0.1:0", "--dir", folder], &why);
    assert_eq!(service.connect().put("note", b"note").unwrap().status, 202);
    assert_drained(&service.stop().0);
}

/// The memory for a body is reserved when the head of its request arrives, and released when the body is on disk.
pub fn memory_for_bodies_is_limited(program: Program) {
    let service = Service::start(program, &["--memory", "3"]);
    let body = vec![b'a'; MIB];
    let mut half = service.connect();
    half.start_put("half", MIB).unwrap();
    let mut other = service.connect();
    other.start_put("other", MIB).unwrap();
    assert_eq!(service.connect().put("more", &body).unwrap().status, 503);
    // For a body without an announced length, the service reserves memory for a body of the maximum length.
    assert_eq!(service.connect().put_in_chunks("more", &[b"a"]).unwrap().status, 503);
    assert_eq!(service.connect().put("small", b"a").unwrap().status, 202);
    half.send(&body).unwrap();
    assert_eq!(half.response().unwrap().status, 202);
    drop(other);
    poll_until(&"memory is lost", || service.connect().put("more", &body).unwrap().status == 202);
    let (ended, dir) = service.stop();
    ended.assert_code(0).assert_line("drained in ");
    assert!(fs::read(dir.path().join("half")).unwrap() == body);
}

/// Even an empty note reserves memory for its task.
pub fn number_of_empty_bodies_is_limited(program: Program) {
    let stall = Stall::new(program, "note");
    let service = stall.start(program, &["--memory", "2"]);
    let mut client = service.connect();
    let accepted = (0..10_000).take_while(|_| client.put("note", b"").unwrap().status == 202).count();
    assert!((1000..10_000).contains(&accepted), "{accepted}");
    let _pipe = stall.end("note");
    assert_drained(&service.stop().0);
}

/// Two clients repeatedly request a note, and do not read the responses. The memory for the responses must stay limited.
pub fn memory_for_responses_is_limited(program: Program) {
    // The drain timeout is half of this grace period. The kernel can accept more bytes of a blocked write after fractions of a second, even
    // if the client reads nothing, and such progress restarts the drain timeout.
    let service = Service::start(program, &["--memory", "3", "--grace", "8"]);
    let mut client = service.connect();
    assert_eq!(client.put("note", &vec![b'a'; MIB]).unwrap().status, 202);
    client.get_until("/", "Written: 1<");
    let status = |client: &mut Client| client.get("/notes/note").unwrap().status;
    let mut unread = vec![service.connect(), service.connect()];
    let mut rejected = 0;
    // The first responses fit into the buffers of the operating system, and several responses may be in memory by chance.
    poll_until(&"memory is not limited", || {
        for unread in &mut unread {
            unread.start_get("note").unwrap();
        }
        rejected = if status(&mut client) == 503 { rejected + 1 } else { 0 };
        rejected == 10
    });
    unread.pop();
    poll_until(&"memory is lost", || status(&mut client) == 200);
    // A client that does not read responses must not delay the drain until the grace period expires.
    service.stop().0.assert_code(0).assert_line("drained in ");
}

/// After the client has connected, idle connections use all other file descriptors. The simulated disk hangs, so many writes are in
/// flight. The service must not lose a note that it has accepted.
pub fn idle_connections_and_a_slow_disk_do_not_lose_accepted_notes(program: Program) {
    const NOTES: usize = 200;
    allow_open_files(1024);
    let stall = Stall::new(program, "note");
    let service = stall.start_with_descriptors(program, 256);
    let mut client = service.connect();
    assert_eq!(client.get("/").unwrap().status, 200);
    let idle: Vec<_> = (0..400).map_while(|_| service.try_connect().ok()).collect();
    for number in 0..NOTES {
        assert_eq!(client.put("note", &body(number)).unwrap().status, 202);
    }
    let _pipe = stall.end("note");
    client.get_until("/", "Not on disk yet: 0<");
    drop(idle);
    let (ended, dir) = service.stop();
    assert_drained(&ended);
    assert!(fs::read(dir.path().join("note")).unwrap() == body(NOTES - 1));
}

/// Raises the limit of open files for this process. On some systems, the limit is 256.
fn allow_open_files(count: u64) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < count) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(count), ..limit }).unwrap();
    }
}

/// In an attack by DNS rebinding, a page of another site sends requests to this service. These requests contain the host name of the
/// other site, so the service can refuse them.
pub fn foreign_hosts_are_refused(program: Program) {
    let service = Service::start(program, &[]);
    let status = |headers: &[&str], method: &str, path: &str| {
        service.connect().with_headers(headers).request(method, path, b"").unwrap().status
    };
    for (method, path) in [("PUT", "/notes/note"), ("GET", "/notes/note"), ("GET", "/tasks"), ("GET", "/")] {
        for host in ["host: attacker.example", "host: localhost.attacker.example:80", "host: 127.0.0.1.attacker.example"] {
            assert_eq!(status(&[host], method, path), 421, "{host} {method} {path}");
        }
        assert_eq!(status(&[], method, path), 400, "{method} {path}");
        assert_eq!(status(&["host: localhost", "host: localhost"], method, path), 400, "{method} {path}");
        assert_eq!(status(&["host: a b"], method, path), 400, "{method} {path}");
    }
    for host in ["host: LOCALHOST:80", "host: 127.0.0.1", "host: [::1]:80"] {
        assert_eq!(status(&[host], "GET", "/tasks"), 200, "{host}");
    }
    let (ended, dir) = service.stop();
    assert_drained(&ended);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
