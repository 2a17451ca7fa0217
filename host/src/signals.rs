//! The signals that ask the process to stop.

use crate::sync::lock;
use background_tasks::{Registry, RegistryState, ShutdownSignal};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;

static STATE: RegistryState = RegistryState::new();
/// A registry without tasks, which the first signal shuts down.
static STOP_REQUEST: Registry<()> = Registry::in_static(&STATE, ());

static HANDLERS: Mutex<Handlers> = Mutex::new(Handlers { installed: None, on_second_signal: None });

struct Handlers {
    installed: Option<os::Handle>,
    /// The hook and its key.
    on_second_signal: Option<(usize, Box<dyn FnOnce() + Send>)>,
}

/// Returns a future that resolves once the process has been asked to stop, and stays resolved.
///
/// On Unix, SIGTERM and SIGINT (Ctrl-C) ask the process to stop. On Windows, Ctrl-C, Ctrl-Break, closing the console and the shutdown of the
/// system do so; the last two leave the process some seconds. The future works on every runtime and without one, because a separate thread
/// waits for the signals.
///
/// From this call on (not from the first poll), these signals no longer end the process. The caller ends it, or a [`Host`](crate::Host), which
/// also makes a second signal end the process immediately. For process 1 of a container, the kernel ignores a signal without a handler. Such a
/// program must make this call or run a host to react to SIGTERM at all.
///
/// Call this function early, before a runtime has started threads: then no signal is lost. If other threads exist, a signal that arrives in the
/// few microseconds of the first call may be lost.
///
/// # Panics
///
/// Panics if the system refuses a thread or, on Unix, a pair of file descriptors. [`Host::run`](crate::Host::run) reports this error instead.
///
/// # Examples
///
/// ```no_run
/// # async fn example() {
/// background_tasks_host::shutdown_signal().await;
/// # }
/// ```
pub fn shutdown_signal() -> ShutdownSignal {
    install(false).unwrap_or_else(|error| panic!("failed to install signal handlers: {error}"))
}

/// Makes the signals shut `STOP_REQUEST` down. SIGHUP is one of them from the first call with `sighup` on.
pub(crate) fn install(sighup: bool) -> io::Result<ShutdownSignal> {
    let mut handlers = lock(&HANDLERS);
    if handlers.installed.is_none() {
        // The thread comes first: a signal that arrives right after the handlers are installed needs a receiver.
        let (sender, receiver) = channel();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || receiver.into_iter().for_each(|signals| os::for_each(signals, on_signal)))?;
        let (signals, handle) = os::install()?;
        let _ = sender.send(signals);
        handlers.installed = Some(handle);
    }
    if let (true, Some(handle)) = (sighup, &handlers.installed) {
        os::add_sighup(handle)?;
    }
    Ok(STOP_REQUEST.signal())
}

/// Runs a function at the second signal, until this hook is dropped. The newest hook replaces older ones.
pub(crate) struct SecondSignalHook(usize);

impl SecondSignalHook {
    pub(crate) fn new(on_second_signal: impl FnOnce() + Send + 'static) -> Self {
        static NEXT_KEY: AtomicUsize = AtomicUsize::new(0);
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let previous = lock(&HANDLERS).on_second_signal.replace((key, Box::new(on_second_signal)));
        // Not under the lock: the hook may own the last handle of a registry.
        drop(previous);
        Self(key)
    }
}

impl Drop for SecondSignalHook {
    fn drop(&mut self) {
        let hook = lock(&HANDLERS).on_second_signal.take_if(|(key, _)| *key == self.0);
        drop(hook);
    }
}

/// Handles a signal. One that `insists` ends the process if it is the second one. SIGHUP does not insist: a closed terminal may send it twice.
fn on_signal(insists: bool) {
    if !STOP_REQUEST.is_shutting_down() {
        STOP_REQUEST.start_shutdown();
    } else if insists {
        let hook = lock(&HANDLERS).on_second_signal.take();
        if let Some((_, on_second_signal)) = hook {
            on_second_signal();
        }
    }
}

#[cfg(unix)]
mod os {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal};
    use signal_hook::iterator::Signals;
    use std::io;

    pub(super) use signal_hook::iterator::Handle;

    pub(super) fn install() -> io::Result<(Signals, Handle)> {
        let signals = [Signal::SIGTERM, Signal::SIGINT];
        let signals = with_blocked(&signals, || Signals::new(signals.map(|signal| signal as i32)))?;
        let handle = signals.handle();
        Ok((signals, handle))
    }

    pub(super) fn add_sighup(handle: &Handle) -> io::Result<()> {
        with_blocked(&[Signal::SIGHUP], || handle.add_signal(Signal::SIGHUP as i32))
    }

    /// Blocks the signals in this thread while it registers their handlers.
    ///
    /// signal-hook loses a signal that arrives after the system has the handler and before signal-hook has its action. If this is the only thread
    /// of the process, blocking delays the signal instead.
    fn with_blocked<T>(signals: &[Signal], register: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let previous_mask = signals.iter().copied().collect::<SigSet>().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let registered = register();
        previous_mask.thread_set_mask()?;
        registered
    }

    pub(super) fn for_each(mut signals: Signals, on_signal: impl Fn(bool)) {
        for signal in signals.forever() {
            on_signal(signal != Signal::SIGHUP as i32);
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

    /// There is nothing to add later: closing the console is always among the signals.
    pub(super) struct Handle;
    pub(super) struct Signals(CtrlC, CtrlBreak, CtrlClose, CtrlShutdown);

    pub(super) fn install() -> io::Result<(Signals, Handle)> {
        Ok((Signals(ctrl_c()?, ctrl_break()?, ctrl_close()?, ctrl_shutdown()?), Handle))
    }

    #[expect(clippy::unnecessary_wraps, reason = "the signature on Unix")]
    pub(super) fn add_sighup(_handle: &Handle) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn for_each(Signals(mut c, mut r#break, mut close, mut shutdown): Signals, on_signal: impl Fn(bool)) {
        let mut next = || {
            block_on(poll_fn(|cx| {
                // Not `||`: each of them must store the waker.
                let is_ready = c.poll_recv(cx).is_ready() | r#break.poll_recv(cx).is_ready();
                let is_ready = is_ready | close.poll_recv(cx).is_ready() | shutdown.poll_recv(cx).is_ready();
                if is_ready { Poll::Ready(()) } else { Poll::Pending }
            }));
        };
        loop {
            next();
            on_signal(true);
        }
    }
}
