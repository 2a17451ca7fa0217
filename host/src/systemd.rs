//! Sends notifications to systemd, on Linux with the feature `systemd`. If the environment has no variable `NOTIFY_SOCKET`, this module
//! sends nothing.

use crate::terminal::{Level, log};
#[cfg(any(feature = "systemd", feature = "windows-service"))]
use crate::windows_service;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Notifies the service manager (systemd or Windows) that the service is ready. Call this function as soon as the service can accept
/// requests.
///
/// A systemd unit of `Type=notify` waits for this call (feature `systemd`). A Win32 service also waits for the call if you have called
/// `Host::running_when_ready` (feature `windows-service`). In other cases, for example if no service manager has started the process or if
/// shutdown has started, the call has no effect. If a notification to systemd fails, this function logs the error on stderr or as a tracing
/// event. Only the first failure in a process is logged.
#[cfg(any(feature = "systemd", feature = "windows-service"))]
pub fn notify_ready() {
    windows_service::report_ready();
    #[cfg(feature = "systemd")]
    notify::ready().unwrap_or_else(|error| log_failure(&error));
}

/// Records that a host starts its program, which can become ready.
pub(crate) fn start_host() {
    notify::start_host();
}

/// Notifies systemd that the service stops. From now on, [`notify_ready`] has no effect until another host starts its program.
pub(crate) fn notify_stopping() -> io::Result<()> {
    notify::stopping()
}

/// Reports the number of tasks in flight to systemd. If `extend` is `Some`, also requests this additional time before SIGKILL.
pub(crate) fn notify_draining(in_flight: usize, extend: Option<Duration>) -> io::Result<()> {
    notify::draining(in_flight, extend)
}

/// If systemd's watchdog is enabled, notifies the watchdog regularly while a thread polls this future. The future never resolves.
pub(crate) async fn keep_watchdog_alive<T>() -> T {
    notify::keep_watchdog_alive().await.unwrap_or_else(|error| log_failure(&error));
    std::future::pending().await
}

/// Logs that a notification to systemd has failed. Only the first call in a process logs a line.
pub(crate) fn log_failure(error: &io::Error) {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    if !LOGGED.swap(true, Ordering::Relaxed) {
        log(Level::Warn, format_args!("failed to notify systemd: {error}"));
    }
}

#[cfg(all(feature = "systemd", target_os = "linux"))]
mod notify {
    use crate::sync::lock;
    use event_listener::Event;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use std::{env, io, process, thread};

    /// Sends a notification. Fails with `WouldBlock` if systemd has not yet read earlier notifications, because neither the drain nor the
    /// program may wait for systemd. The crate `sd-notify` would wait.
    fn notify(message: &str) -> io::Result<()> {
        let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        socket.send_to_addr(message.as_bytes(), &address?).map(drop)
    }

    /// Whether a host has notified systemd that the service stops. `READY=1` must not follow. The lock prevents this, because it is held
    /// during both notifications.
    static IS_STOPPING: Mutex<bool> = Mutex::new(false);

    pub(super) fn start_host() {
        *lock(&IS_STOPPING) = false;
    }

    /// Waits while systemd does not read its socket, because systemd ends a service that does not become ready.
    pub(super) fn ready() -> io::Result<()> {
        loop {
            let is_stopping = lock(&IS_STOPPING);
            if *is_stopping {
                return Ok(());
            }
            match notify("READY=1\n") {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => drop(is_stopping),
                notified => return notified,
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(super) fn stopping() -> io::Result<()> {
        let mut is_stopping = lock(&IS_STOPPING);
        *is_stopping = true;
        notify("STOPPING=1\n")
    }

    pub(super) fn draining(in_flight: usize, extend: Option<Duration>) -> io::Result<()> {
        let extend = extend.map(|time| format!("EXTEND_TIMEOUT_USEC={}\n", time.as_micros())).unwrap_or_default();
        notify(&format!("STATUS=draining: {in_flight} in flight\n{extend}"))
    }

    /// Returns the time within which systemd expects a notification of its watchdog. Returns `None` if systemd does not watch this process.
    fn watchdog_timeout() -> Option<Duration> {
        let pid = env::var("WATCHDOG_PID").ok();
        let timeout = env::var("WATCHDOG_USEC").ok().filter(|_| pid.is_none_or(|pid| pid == process::id().to_string()))?;
        timeout.parse().map(Duration::from_micros).ok()
    }

    /// A separate thread measures the time, so this future needs no timer of a runtime. The future itself sends the notifications. If the
    /// thread that polls the future is blocked, the notifications stop, and the watchdog detects this. With `block_on` of a runtime with
    /// worker threads, that thread is not a worker thread.
    pub(super) async fn keep_watchdog_alive() -> io::Result<()> {
        let Some(timeout) = watchdog_timeout() else { return Ok(()) };
        let due = Arc::new(Event::new());
        let clock = Arc::downgrade(&due);
        let tick = move || {
            while let Some(due) = clock.upgrade() {
                due.notify(1);
                drop(due);
                thread::sleep(timeout / 2);
            }
        };
        thread::Builder::new().name("watchdog".into()).spawn(tick)?;
        loop {
            let listener = due.listen();
            notify("WATCHDOG=1\n").unwrap_or_else(|error| super::log_failure(&error));
            listener.await;
        }
    }
}

#[cfg(not(all(feature = "systemd", target_os = "linux")))]
#[expect(clippy::unnecessary_wraps, reason = "the signatures with systemd")]
mod notify {
    use std::future;
    use std::io;
    use std::time::Duration;

    pub(super) fn start_host() {}

    #[cfg(feature = "systemd")]
    pub(super) fn ready() -> io::Result<()> {
        Ok(())
    }

    pub(super) fn stopping() -> io::Result<()> {
        Ok(())
    }

    pub(super) fn draining(_in_flight: usize, _extend: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn keep_watchdog_alive() -> future::Ready<io::Result<()>> {
        future::ready(Ok(()))
    }
}
