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
/// `Host::running_when_ready` (feature `windows-service`). In other cases, for example if no service manager has started the process, the
/// call has no effect. If a notification to systemd fails, this function logs the error on stderr or as a tracing event. Only the first
/// failure in a process is logged.
#[cfg(any(feature = "systemd", feature = "windows-service"))]
pub fn notify_ready() {
    windows_service::report_ready();
    #[cfg(feature = "systemd")]
    notify::ready().unwrap_or_else(|error| log_failure(&error));
}

/// Notifies systemd that shutdown has started.
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
    use event_listener::Event;
    use sd_notify::NotifyState::{ExtendTimeoutUsec, Ready, Status, Stopping, Watchdog};
    use sd_notify::notify;
    use std::io;
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    pub(super) fn ready() -> io::Result<()> {
        notify(&[Ready])
    }

    pub(super) fn stopping() -> io::Result<()> {
        notify(&[Stopping])
    }

    pub(super) fn draining(in_flight: usize, extend: Option<Duration>) -> io::Result<()> {
        let status = format!("draining: {in_flight} in flight");
        // The host requests at most about 31 seconds, so the number of microseconds always fits.
        let extend = extend.map(|time| ExtendTimeoutUsec(time.as_micros().try_into().unwrap_or(u32::MAX)));
        notify(&[&[Status(&status)], extend.as_slice()].concat())
    }

    /// A separate thread measures the time, so this future needs no timer of a runtime. The future itself sends the notifications. If the
    /// thread that polls the future is blocked, the notifications stop, and the watchdog detects this. With `block_on` of a runtime with
    /// worker threads, that thread is not a worker thread.
    pub(super) async fn keep_watchdog_alive() -> io::Result<()> {
        let Some(interval) = sd_notify::watchdog_enabled() else { return Ok(()) };
        let due = Arc::new(Event::new());
        let clock = Arc::downgrade(&due);
        let tick = move || {
            while let Some(due) = clock.upgrade() {
                due.notify(1);
                drop(due);
                thread::sleep(interval / 2);
            }
        };
        thread::Builder::new().name("watchdog".into()).spawn(tick)?;
        loop {
            let listener = due.listen();
            notify(&[Watchdog]).unwrap_or_else(|error| super::log_failure(&error));
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
