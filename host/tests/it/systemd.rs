//! Reads the notifications that a host sends to systemd from a real socket. A test starts its own binary a second time as the service.

use background_tasks::{Registry, SmolSpawner, TokioSpawner};
use background_tasks_host::{Host, notify_ready, request_stop};
use std::future::pending;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;
use std::{env, process, thread};
use testing::{NotifySocket, PATIENCE, Process};

/// Runs the service of the other tests. The service starts three tasks. Each of the first three bytes on stdin ends a task, and the
/// fourth byte ends the program.
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
        notify_ready();
        signal.await;
        notify_ready();
        if env::var_os("BLOCK").is_some() {
            thread::sleep(PATIENCE);
        }
        program.recv().await.map(drop)
    }));
    assert_eq!(code, process::ExitCode::SUCCESS);
}

/// Runs a service whose host is a task of a runtime with one worker thread. After the request to stop, a task blocks this thread.
#[test]
#[ignore = "the service of another test"]
fn service_on_a_worker_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let registry = Registry::new(TokioSpawner);
    let host = Host::new(&registry).grace(Duration::from_secs(3600));
    let run = host.run(async move {
        let signal = registry.signal();
        registry.run(async move {
            signal.await;
            UnixDatagram::unbound().unwrap().send_to(b"BLOCKED=1", env::var_os("NOTIFY_SOCKET").unwrap()).unwrap();
            thread::sleep(PATIENCE);
        });
        pending::<()>().await;
    });
    let _ = runtime.block_on(runtime.spawn(run));
}

/// Runs three hosts one after the other. The first program ends, the second loses a critical task, and the third is asked to stop. After
/// each host, `main` sends a notification itself.
#[test]
#[ignore = "the service of another test"]
fn service_with_several_hosts() {
    let socket = UnixDatagram::unbound().unwrap();
    for end in ["returns", "loses", "is asked"] {
        let registry = Registry::new(SmolSpawner);
        smol::block_on(Host::new(&registry).run(async {
            notify_ready();
            match end {
                "returns" => return,
                "loses" => registry.critical().run(async { Err::<(), _>("broken") }),
                _ => request_stop(),
            }
            registry.signal().await;
        }));
        let notification = format!("STATUS=a program {end}");
        socket.send_to(notification.as_bytes(), env::var_os("NOTIFY_SOCKET").unwrap()).unwrap();
    }
}

struct Service {
    process: Process,
    stdin: ChildStdin,
    socket: NotifySocket,
}

impl Service {
    fn start(grace: u64, variables: &[(&str, &str)]) -> Self {
        Self::start_test("systemd::service", grace, variables)
    }

    /// Starts this test of the binary as the service.
    fn start_test(test: &str, grace: u64, variables: &[(&str, &str)]) -> Self {
        Self::start_with(NotifySocket::new(), test, grace, variables)
    }

    fn start_with(socket: NotifySocket, test: &str, grace: u64, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("NOTIFY_SOCKET", socket.address())
            .env("GRACE", grace.to_string())
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let stdin = process.stdin();
        Self { process, stdin, socket }
    }

    #[track_caller]
    fn notification(&self) -> String {
        self.socket.receive()
    }

    #[track_caller]
    fn notification_with(&self, parts: &[&str]) -> String {
        self.socket.receive_with(parts)
    }

    /// Returns the time by which the service extends the timeout in the notifications up to the one that contains `part`. A task may end
    /// while the service counts, so the extension may come in an earlier notification than the count.
    #[track_caller]
    fn extension_until(&self, part: &str) -> Option<u64> {
        let mut extended = None;
        loop {
            let notification = self.notification();
            extended = extension(&notification).or(extended);
            if notification.contains(part) {
                return extended;
            }
        }
    }

    fn terminate(&self) {
        self.process.terminate();
    }

    fn end_one(&mut self) {
        self.stdin.write_all(&[0]).unwrap();
    }

    /// Waits until the process has ended. Returns its output.
    #[track_caller]
    fn wait(self) -> String {
        self.process.wait().assert_code(0).output()
    }

    /// Waits until the process has ended. Returns the notifications that the test has not yet received.
    #[track_caller]
    fn remaining_notifications(self) -> Vec<String> {
        self.process.wait().assert_code(0);
        self.socket.receive_all()
    }
}

/// Returns the time by which a notification extends the timeout, in microseconds.
fn extension(notification: &str) -> Option<u64> {
    notification.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC=")).map(|time| time.parse().unwrap())
}

#[test]
fn host_notifies_systemd_of_each_step() {
    let mut service = Service::start(20, &[]);
    assert_eq!(service.notification(), "READY=1\n");
    service.terminate();
    assert_eq!(service.notification(), "STOPPING=1\n");
    let first = service.notification();
    assert!(first.starts_with("STATUS=draining: 4 in flight\n"), "{first}");
    // The requested time is the rest of the grace period plus the time until the exit.
    assert!(matches!(extension(&first), Some(10_000_000..=20_750_000)), "{first}");
    service.end_one();
    let second = service.extension_until("STATUS=draining: 3 in flight\n");
    assert!(second < extension(&first) && second.is_some(), "{second:?}");
    for _ in 0..3 {
        service.end_one();
    }
    service.wait();
}

/// The program calls `notify_ready` again after shutdown has started.
#[test]
fn program_is_not_ready_after_shutdown_has_started() {
    let mut service = Service::start(20, &[]);
    service.notification_with(&["READY=1"]);
    service.terminate();
    for _ in 0..4 {
        service.end_one();
    }
    let notifications = service.remaining_notifications();
    assert_eq!(notifications[0], "STOPPING=1\n");
    assert!(!notifications.contains(&"READY=1\n".into()), "{notifications:?}");
}

/// After a program that ends without a request to stop, `main` can run another program, and systemd must not stop the service.
#[test]
fn host_whose_program_ends_does_not_notify_systemd_of_a_stop() {
    let service = Service::start_test("systemd::service_with_several_hosts", 0, &[]);
    let mut notifications = service.remaining_notifications();
    notifications.retain(|notification| !notification.starts_with("STATUS=draining: "));
    let [ready, stopping] = ["READY=1\n", "STOPPING=1\n"];
    let expected = [ready, "STATUS=a program returns"].into_iter();
    let expected = expected.chain([ready, stopping, "STATUS=a program loses", ready, stopping, "STATUS=a program is asked"]);
    assert_eq!(notifications, expected.collect::<Vec<_>>());
}

#[test]
fn socket_may_have_a_name_instead_of_a_file() {
    let service = Service::start_with(NotifySocket::in_abstract_namespace(), "systemd::service", 3600, &[]);
    assert_eq!(service.notification(), "READY=1\n");
}

#[test]
fn host_requests_time_only_while_tasks_end() {
    let mut service = Service::start(3600, &[]);
    service.notification_with(&["READY=1"]);
    service.terminate();
    // If the grace period is long, the host requests only a part of the period.
    let first = service.notification_with(&["STATUS=draining: 4 in flight\n"]);
    assert!(matches!(extension(&first), Some(30_000_000..=30_750_000)), "{first}");
    for _ in 0..2 {
        let unchanged = service.notification_with(&["STATUS=draining: 4 in flight\n"]);
        assert_eq!(extension(&unchanged), None, "{unchanged}");
    }
    service.end_one();
    assert!(service.extension_until("STATUS=draining: 3 in flight\n").is_some());
    for _ in 0..3 {
        service.end_one();
    }
    service.wait();
}

#[test]
fn watchdog_notifications_come_from_the_executor() {
    let watchdog = [("WATCHDOG_USEC", "100000")];
    let service = Service::start(3600, &watchdog);
    for _ in 0..3 {
        service.notification_with(&["WATCHDOG=1"]);
    }
    service.terminate();
    // The notifications must continue during the drain.
    service.notification_with(&["STOPPING=1"]);
    for _ in 0..3 {
        service.notification_with(&["WATCHDOG=1"]);
    }
    drop(service);

    let blocked = Service::start(3600, &[watchdog[0], ("BLOCK", "")]);
    blocked.notification_with(&["WATCHDOG=1"]);
    blocked.terminate();
    // The thread of the drain continues, but the executor is blocked. One watchdog notification that was already being sent may arrive
    // before the second status.
    blocked.notification_with(&["STATUS=draining: 4 in flight\n"]);
    blocked.notification_with(&["STATUS=draining: 4 in flight\n"]);
    let mut watchdog_notifications = 0;
    for _ in 0..3 {
        watchdog_notifications += u32::from(!blocked.notification().contains("STATUS="));
    }
    assert_eq!(watchdog_notifications, 0);
}

#[test]
fn blocked_worker_thread_ends_watchdog_notifications_of_a_spawned_host() {
    let service = Service::start_test("systemd::service_on_a_worker_thread", 0, &[("WATCHDOG_USEC", "100000")]);
    service.notification_with(&["WATCHDOG=1"]);
    service.terminate();
    service.notification_with(&["BLOCKED=1"]);
    for _ in 0..3 {
        let notification = service.notification();
        assert!(notification.contains("STATUS="), "{notification}");
    }
}

/// If systemd does not read its socket, the drain takes place as usual.
#[test]
fn full_socket_does_not_delay_the_drain() {
    let mut service = Service::start(5, &[]);
    service.notification_with(&["READY=1"]);
    service.socket.fill();
    service.terminate();
    for _ in 0..4 {
        service.end_one();
    }
    let output = service.wait();
    assert!(output.contains("drained in "), "{output}");
}

#[test]
fn missing_socket_is_reported_once() {
    let mut service = Service::start(3600, &[]);
    service.notification_with(&["READY=1"]);
    service.socket.remove();
    service.terminate();
    for _ in 0..4 {
        service.end_one();
    }
    assert_eq!(service.wait().matches("failed to notify systemd: ").count(), 1);
}
