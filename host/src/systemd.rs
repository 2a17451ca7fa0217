//! What systemd is told: nothing unless it asks (`NOTIFY_SOCKET` in the environment), on Linux and with the feature `systemd`.

use crate::terminal::{Level, tell};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Tells systemd that the service is ready, as one of `Type=notify` must: call it once the listener is bound.
///
/// Elsewhere, and where systemd has not started the process, it does nothing. That systemd cannot be told is one line on stderr, and no error.
#[cfg(feature = "systemd")]
pub fn ready() {
    notify::ready().unwrap_or_else(|error| failed(&error));
}

/// Tells that the end has begun.
pub(crate) fn stopping() -> io::Result<()> {
    notify::stopping()
}

/// Tells how many are in flight, and asks for as much time as that if some have ended.
pub(crate) fn draining(in_flight: usize, extend: Option<Duration>) -> io::Result<()> {
    notify::draining(in_flight, extend)
}

/// Never resolves; tells systemd's watchdog, if there is one, that whoever polls this is alive.
pub(crate) async fn alive<T>() -> T {
    notify::alive().await.unwrap_or_else(|error| failed(&error));
    std::future::pending().await
}

/// Tells once that systemd cannot be told.
pub(crate) fn failed(error: &io::Error) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tell(Level::Warn, format_args!("systemd cannot be told: {error}"));
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
        // More than it holds, some 70 minutes, is asked for again in time.
        let extend = extend.map(|time| ExtendTimeoutUsec(time.as_micros().try_into().unwrap_or(u32::MAX)));
        notify(&[&[Status(&status)], extend.as_slice()].concat())
    }

    /// A thread tells the time and the task that polls this tells systemd, as the watchdog asks after the executor.
    pub(super) async fn alive() -> io::Result<()> {
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
            notify(&[Watchdog]).unwrap_or_else(|error| super::failed(&error));
            listener.await;
        }
    }
}

#[cfg(not(all(feature = "systemd", target_os = "linux")))]
#[expect(clippy::unnecessary_wraps, reason = "the shape of what systemd may refuse")]
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

    pub(super) fn alive() -> future::Ready<io::Result<()>> {
        future::ready(Ok(()))
    }
}
