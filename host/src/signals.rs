//! What asks the process to stop.

use background_tasks::{Registry, RegistryState, ShutdownSignal};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

static STATE: RegistryState = RegistryState::new();
/// Shut down by the first signal; it has no tasks.
static ASKED: Registry<()> = Registry::in_static(&STATE, ());

static WATCH: Mutex<Watch> = Mutex::new(Watch { handle: None, at_second: None });

struct Watch {
    handle: Option<os::Handle>,
    at_second: Option<(usize, Leave)>,
}

type Leave = Box<dyn FnOnce() + Send>;

fn watch() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a future that resolves once the process has been asked to stop, and for ever after.
///
/// On Unix that is SIGTERM or SIGINT (Ctrl-C), on Windows Ctrl-C, Ctrl-Break, and the console's closing or the system's shutdown, for
/// which that leaves some seconds. It works on every runtime, and on none, as a thread waits for the signals. From this call on, not from the
/// first poll, they do not end the process any more: ending is the caller's, or a [`Host`](crate::Host)'s, which has the second one do it
/// at once. A program that is process 1 of its container must make this call or run a host to be stopped at all: for process 1 the system ignores
/// a signal that nobody handles.
///
/// Make it early, before there is a runtime with threads: no signal is lost then. With other threads, one that comes in the few microseconds that the first
/// call takes may be, as if nobody had asked.
///
/// # Panics
///
/// When the system refuses what it takes: a thread and, on Unix, a pair of file descriptors. [`Host::run`](crate::Host::run) returns in place of that.
///
/// # Examples
///
/// ```no_run
/// # async fn example() {
/// background_tasks_host::terminated().await;
/// # }
/// ```
pub fn terminated() -> ShutdownSignal {
    install(false).unwrap_or_else(|error| panic!("cannot wait for signals: {error}"))
}

/// Has the signals shut `ASKED` down, SIGHUP among them if it is asked for, now or earlier.
pub(crate) fn install(hangup: bool) -> io::Result<ShutdownSignal> {
    let mut watch = watch();
    if watch.handle.is_none() {
        // The thread first: once the handlers are there, somebody has to listen to them.
        let (give, take) = channel();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || take.into_iter().for_each(|signals| os::each(signals, asked)))?;
        let (signals, handle) = os::signals()?;
        let _ = give.send(signals);
        watch.handle = Some(handle);
    }
    if let (true, Some(handle)) = (hangup, &watch.handle) {
        os::add_hangup(handle)?;
    }
    Ok(ASKED.signal())
}

/// Has the second signal do something while this is there. What is told last counts.
pub(crate) struct AtSecond(usize);

impl AtSecond {
    pub(crate) fn new(leave: impl FnOnce() + Send + 'static) -> Self {
        static KEYS: AtomicUsize = AtomicUsize::new(0);
        let key = KEYS.fetch_add(1, Ordering::Relaxed);
        let old = watch().at_second.replace((key, Box::new(leave)));
        // Not under the lock: it may own the last handle of a registry.
        drop(old);
        Self(key)
    }
}

impl Drop for AtSecond {
    fn drop(&mut self) {
        let old = watch().at_second.take_if(|(key, _)| *key == self.0);
        drop(old);
    }
}

/// A signal has come. One that asks and does not insist is none once the process has been asked: a terminal that is closed may send SIGHUP twice.
fn asked(insists: bool) {
    if !ASKED.is_shutting_down() {
        ASKED.shutdown();
    } else if insists {
        let leave = watch().at_second.take();
        if let Some((_, leave)) = leave {
            leave();
        }
    }
}

#[cfg(unix)]
mod os {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal};
    use signal_hook::iterator::Signals;
    use std::io;

    pub(super) use signal_hook::iterator::Handle;

    pub(super) fn signals() -> io::Result<(Signals, Handle)> {
        let signals = [Signal::SIGTERM, Signal::SIGINT];
        let signals = later(&signals, || Signals::new(signals.map(|signal| signal as i32)))?;
        let handle = signals.handle();
        Ok((signals, handle))
    }

    pub(super) fn add_hangup(handle: &Handle) -> io::Result<()> {
        later(&[Signal::SIGHUP], || handle.add_signal(Signal::SIGHUP as i32))
    }

    /// Has the signals that come to this thread meanwhile come afterwards.
    ///
    /// signal-hook loses one that comes after the system has its handler and before that one knows what to do. So the first
    /// thread, if it has no others yet, loses none.
    fn later<T>(signals: &[Signal], register: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let before = signals.iter().copied().collect::<SigSet>().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let registered = register();
        before.thread_set_mask()?;
        registered
    }

    pub(super) fn each(mut signals: Signals, asked: impl Fn(bool)) {
        for signal in signals.forever() {
            asked(signal != Signal::SIGHUP as i32);
        }
    }
}

#[cfg(windows)]
mod os {
    use futures_lite::future::block_on;
    use std::future::poll_fn;
    use std::io;
    use std::task::Poll;
    use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};

    /// Closing is among the signals there.
    pub(super) struct Handle;
    pub(super) struct Signals(CtrlC, CtrlBreak, CtrlClose, CtrlShutdown);

    pub(super) fn signals() -> io::Result<(Signals, Handle)> {
        Ok((Signals(ctrl_c()?, ctrl_break()?, ctrl_close()?, ctrl_shutdown()?), Handle))
    }

    #[expect(clippy::unnecessary_wraps, reason = "the shape of the one on Unix")]
    pub(super) fn add_hangup(_handle: &Handle) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn each(Signals(mut c, mut pause, mut close, mut shutdown): Signals, asked: impl Fn(bool)) {
        let mut next = || {
            block_on(poll_fn(|cx| {
                // Not `||`: each must know the waker.
                let some = c.poll_recv(cx).is_ready() | pause.poll_recv(cx).is_ready();
                let some = some | close.poll_recv(cx).is_ready() | shutdown.poll_recv(cx).is_ready();
                if some { Poll::Ready(()) } else { Poll::Pending }
            }));
        };
        loop {
            next();
            asked(true);
        }
    }
}

/// Ends the process whatever its output, its destructors and its other threads do.
#[cfg(unix)]
pub(crate) fn exit_now(code: u8) -> ! {
    signal_hook::low_level::exit(code.into())
}

#[cfg(not(unix))]
pub(crate) fn exit_now(_code: u8) -> ! {
    std::process::abort()
}
