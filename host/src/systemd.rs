//! What systemd is told: nothing unless it asks (`NOTIFY_SOCKET` in the environment), on Linux and with the feature `systemd`.

use std::time::Duration;

/// Tells systemd that the service is ready, as one of `Type=notify` must: call it once the listener is bound.
///
/// Elsewhere, and where systemd has not started the process, it does nothing. That systemd cannot be told is one line on stderr, and no error.
#[cfg(feature = "systemd")]
pub fn ready() {
    notify::ready();
}

/// Tells that the end has begun.
pub(crate) fn stopping() {
    notify::stopping();
}

/// Tells how many are in flight, and asks for as much time as that if some have ended.
pub(crate) fn draining(in_flight: usize, extend: Option<Duration>) {
    notify::draining(in_flight, extend);
}

/// Never resolves; tells systemd's watchdog, if there is one, that whoever polls this is alive.
pub(crate) async fn alive<T>() -> T {
    notify::alive().await;
    std::future::pending().await
}

#[cfg(all(feature = "systemd", target_os = "linux"))]
mod notify {
    use crate::terminal::{Level, tell};
    use event_listener::Event;
    use sd_notify::NotifyState::{self, ExtendTimeoutUsec, Ready, Status, Stopping, Watchdog};
    use std::sync::{Arc, Once};
    use std::thread;
    use std::time::Duration;

    static FAILED: Once = Once::new();

    fn notify(states: &[NotifyState]) {
        if let Err(error) = sd_notify::notify(states) {
            FAILED.call_once(|| tell(Level::Warn, format_args!("systemd cannot be told: {error}")));
        }
    }

    pub(super) fn ready() {
        notify(&[Ready]);
    }

    pub(super) fn stopping() {
        notify(&[Stopping]);
    }

    pub(super) fn draining(in_flight: usize, extend: Option<Duration>) {
        let status = format!("draining: {in_flight} in flight");
        // More than it holds, some 70 minutes, is asked for again in time.
        let extend = extend.map(|time| ExtendTimeoutUsec(time.as_micros().try_into().unwrap_or(u32::MAX)));
        notify(&[&[Status(&status)], extend.as_slice()].concat());
    }

    /// A thread tells the time and the task that polls this tells systemd, as the watchdog asks after the executor.
    pub(super) async fn alive() {
        let Some(interval) = sd_notify::watchdog_enabled() else { return };
        let due = Arc::new(Event::new());
        let clock = Arc::downgrade(&due);
        let tick = move || {
            while let Some(due) = clock.upgrade() {
                due.notify(1);
                drop(due);
                thread::sleep(interval / 2);
            }
        };
        if let Err(error) = thread::Builder::new().name("watchdog".into()).spawn(tick) {
            return tell(Level::Error, format_args!("systemd's watchdog is not served: {error}"));
        }
        loop {
            let listener = due.listen();
            notify(&[Watchdog]);
            listener.await;
        }
    }
}

#[cfg(not(all(feature = "systemd", target_os = "linux")))]
mod notify {
    use std::future;
    use std::time::Duration;

    #[cfg(feature = "systemd")]
    pub(super) fn ready() {}

    pub(super) fn stopping() {}

    pub(super) fn draining(_in_flight: usize, _extend: Option<Duration>) {}

    pub(super) fn alive() -> future::Ready<()> {
        future::ready(())
    }
}
