//! What systemd is told, read from a real notify socket; the service is this program once more.
#![cfg(all(target_os = "linux", feature = "systemd"))]

use background_tasks::{Registry, SmolSpawner};
use background_tasks_host::{Host, ready};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, process, thread};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts three tasks. Each byte that it reads ends one of them, and the fourth one the program.
#[test]
#[ignore = "the service of the other tests"]
fn service() {
    let (end_task, task) = smol::channel::unbounded::<()>();
    let (end_program, program) = smol::channel::unbounded::<()>();
    thread::spawn(move || {
        for end in [&end_task, &end_task, &end_task, &end_program] {
            std::io::stdin().read_exact(&mut [0]).unwrap();
            end.try_send(()).unwrap();
        }
    });
    let registry = Registry::new(SmolSpawner);
    for _ in 0..3 {
        let task = task.clone();
        registry.run(async move { task.recv().await.map(drop) });
    }
    let grace = Duration::from_secs(env::var("GRACE").unwrap().parse().unwrap());
    let signal = registry.signal();
    let code = smol::block_on(Host::new(&registry).grace(grace).run(async move {
        ready();
        signal.await;
        if env::var_os("BLOCK").is_some() {
            thread::sleep(PATIENCE);
        }
        program.recv().await.map(drop)
    }));
    assert_eq!(code, process::ExitCode::SUCCESS);
}

struct Service {
    child: Child,
    socket: UnixDatagram,
    dir: TempDir,
}

impl Service {
    fn start(grace: u64, more: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "service", "--ignored", "--nocapture"])
            .env("NOTIFY_SOCKET", &path)
            .env("GRACE", grace.to_string());
        let child =
            command.envs(more.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, socket, dir }
    }

    fn told(&self) -> String {
        let mut message = [0; 1000];
        let len = self.socket.recv(&mut message).expect("systemd would have waited for longer");
        String::from_utf8(message[..len].to_vec()).unwrap()
    }

    /// Waits for a message that has all of that.
    fn told_of(&self, parts: &[&str]) -> String {
        loop {
            let told = self.told();
            if parts.iter().all(|part| told.contains(part)) {
                return told;
            }
        }
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    fn end_one(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(&[0]).unwrap();
    }

    /// Waits for its end and returns what it wrote on stderr.
    fn wait(mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{text}");
        text
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Microseconds that the message asks for.
fn extension(told: &str) -> Option<u64> {
    told.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).map(|time| time.parse().unwrap())
}

#[test]
fn its_life_is_told() {
    let mut service = Service::start(20, &[]);
    assert_eq!(service.told(), "READY=1\n");
    service.terminate();
    assert_eq!(service.told(), "STOPPING=1\n");
    let first = service.told();
    assert!(first.starts_with("STATUS=draining: 4 in flight\n"), "{first}");
    // What is left of the grace, and what the end takes after it.
    assert!(matches!(extension(&first), Some(19_000_000..=20_750_000)), "{first}");
    service.end_one();
    let second = service.told_of(&["STATUS=draining: 3 in flight\n"]);
    assert!(extension(&second) < extension(&first) && extension(&second).is_some(), "{second}");
    for _ in 0..3 {
        service.end_one();
    }
    service.wait();
}

#[test]
fn time_is_asked_for_while_tasks_end_alone() {
    let mut service = Service::start(3600, &[]);
    service.told_of(&["READY=1"]);
    service.terminate();
    // Not for the whole of a long grace.
    let first = service.told_of(&["STATUS=draining: 4 in flight\n"]);
    assert!(matches!(extension(&first), Some(30_000_000..=30_750_000)), "{first}");
    for _ in 0..2 {
        let still = service.told_of(&["STATUS=draining: 4 in flight\n"]);
        assert_eq!(extension(&still), None, "{still}");
    }
    service.end_one();
    let second = service.told_of(&["STATUS=draining: 3 in flight\n"]);
    assert!(extension(&second).is_some(), "{second}");
    for _ in 0..3 {
        service.end_one();
    }
    service.wait();
}

#[test]
fn the_watchdog_asks_after_the_executor() {
    let watchdog = [("WATCHDOG_USEC", "100000")];
    let service = Service::start(3600, &watchdog);
    for _ in 0..3 {
        service.told_of(&["WATCHDOG=1"]);
    }
    service.terminate();
    // While it drains, too.
    service.told_of(&["STOPPING=1"]);
    for _ in 0..3 {
        service.told_of(&["WATCHDOG=1"]);
    }
    drop(service);

    let blocked = Service::start(3600, &[watchdog[0], ("BLOCK", "")]);
    blocked.told_of(&["WATCHDOG=1"]);
    blocked.terminate();
    // The drain's thread goes on; who polls `run` does not, so no more than what it was at is told of it.
    blocked.told_of(&["STATUS=draining: 4 in flight\n"]);
    blocked.told_of(&["STATUS=draining: 4 in flight\n"]);
    let mut alive = 0;
    for _ in 0..3 {
        alive += u32::from(!blocked.told().contains("STATUS="));
    }
    assert_eq!(alive, 0);
}

#[test]
fn a_socket_that_is_not_there_is_told() {
    let mut service = Service::start(1, &[]);
    service.told_of(&["READY=1"]);
    fs::remove_dir_all(service.dir.path()).unwrap();
    service.terminate();
    for _ in 0..4 {
        service.end_one();
    }
    assert_eq!(service.wait().matches("systemd cannot be told: ").count(), 1);
}
