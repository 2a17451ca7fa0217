//! The signals that ask the process to stop.

use crate::sync::lock;
use background_tasks::{Registry, ShutdownSignal};
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static HANDLERS: Mutex<Handlers> = Mutex::new(Handlers {
    installed: None,
    stop_request: None,
    requested_at: None,
    first_signal_at: None,
    hooks: Vec::new(),
    kept: None,
    next_key: 0,
    is_signal_used: false,
    handles_sighup: false,
    survives_sighup: false,
    handles_ignored: false,
});

/// Notified when the process is asked to stop.
static REQUESTED: Condvar = Condvar::new();

#[expect(clippy::struct_excessive_bools, reason = "the flags are independent")]
struct Handlers {
    installed: Option<os::Installed>,
    /// A registry without tasks, which the first request to stop shuts down.
    stop_request: Option<Registry<()>>,
    requested_at: Option<Instant>,
    /// Later than `requested_at` if `request_stop` came first.
    first_signal_at: Option<Instant>,
    /// The hooks of the hosts. The last one is the newest.
    hooks: Vec<Hook>,
    /// The hook of the last host whose `run` has returned.
    kept: Option<HookKey>,
    next_key: usize,
    /// Other code waits for the signal: a caller of `shutdown_signal`.
    is_signal_used: bool,
    handles_sighup: bool,
    /// A drain has started, which SIGHUP must not end.
    survives_sighup: bool,
    handles_ignored: bool,
}

struct Hook {
    key: HookKey,
    repeat_window: Duration,
    on_second_signal: Option<Box<dyn FnOnce() + Send>>,
}

/// Identifies a [`SecondSignalHook`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct HookKey(usize);

/// Returns a future that resolves once the process has been asked to stop, and stays resolved.
///
/// On Unix, SIGTERM and SIGINT (Ctrl-C) ask the process to stop. On Windows, Ctrl-C, Ctrl-Break, closing the console and the shutdown of the
/// system do so; the last two leave the process some seconds. The future works on every runtime and without one, because a separate thread
/// waits for the signals.
///
/// From this call on (not from the first poll), these signals no longer end the process: the caller or a [`Host`](crate::Host) must end it.
/// Without a host, a second signal has no effect. With a host, a signal after the [repeat window](crate::Host::repeat_window) ends the
/// process immediately. The kernel ignores signals to process 1 of a container that have no handler. Such a program must make this call or
/// run a host to react to SIGTERM at all.
///
/// Call this function early, before a runtime has started threads: then no signal is lost. If other threads exist, a signal that arrives in the
/// few microseconds of the first call may be lost.
///
/// The future also resolves after a call of [`request_stop`].
///
/// # Inherited settings
///
/// A process inherits two settings of its parent:
///
/// - **Ignored signals.** A SIGINT that was ignored when the program started stays ignored. A shell without job control ignores SIGINT in its
///   background jobs. SIGTERM is handled even then, because supervisors have no other way to ask a process to stop.
///   [`Host::handle_ignored`](crate::Host::handle_ignored) handles ignored signals too. The crate reads the ignored signals from
///   `/proc/self/status`. On systems without this file, such as macOS, ignored signals are handled.
/// - **Blocked signals.** The crate handles blocked signals: the thread that waits for the signals unblocks them.
///
/// # Fork
///
/// A child that was forked after this call has no thread that waits for signals. The child must call this function, [`Host::new`](crate::Host::new)
/// or [`Host::run`](crate::Host::run), which start the thread again. These calls also handle the signals that the child has received before.
/// A signal that arrives in the microsecond of the fork itself can block the child: block the signals during the fork, or fork before this call.
///
/// # Panics
///
/// Panics if the system refuses a thread, a signal handler or, on Unix, file descriptors. [`Host::run`](crate::Host::run) reports these
/// errors instead.
///
/// # Examples
///
/// ```no_run
/// # async fn example() {
/// background_tasks_host::shutdown_signal().await;
/// # }
/// ```
pub fn shutdown_signal() -> ShutdownSignal {
    lock(&HANDLERS).is_signal_used = true;
    install().unwrap_or_else(|error| panic!("failed to install signal handlers: {error}"))
}

/// Asks this process to stop, as SIGTERM does. Any thread may call it, even before a [`Host`](crate::Host) exists.
///
/// Use this function if a supervisor asks in another way than by a signal: by an HTTP request, a message, or a callback of the system. The
/// grace period, the exit code, and the time that `main` has after the drain are the same as after a signal. The executor does not need to be
/// responsive: the drain of a `Host` runs on a separate thread. [`Host::stop_on`](crate::Host::stop_on) calls this function when a future
/// resolves.
///
/// Further calls have no effect. The first signal after this call repeats the request, because some supervisors ask first and then send SIGTERM.
/// Only a further signal, after the [repeat window](crate::Host::repeat_window), ends the process immediately.
///
/// # Examples
///
/// A handler that stops the service. It has no login: mount it where only the supervisor can reach it, such as a listener on a loopback
/// address.
///
/// ```
/// use axum::{Router, http::StatusCode, routing::post};
///
/// async fn stop() -> StatusCode {
///     background_tasks_host::request_stop();
///     StatusCode::ACCEPTED // the server sends this response before it stops
/// }
///
/// let app: Router = Router::new().route("/stop", post(stop));
/// ```
pub fn request_stop() {
    let handlers = lock(&HANDLERS);
    if handlers.requested_at.is_none() {
        start_shutdown(handlers);
    }
}

/// Makes signals ask this process to stop. Does nothing if they already do so.
pub(crate) fn install() -> io::Result<ShutdownSignal> {
    lock(&HANDLERS).install()
}

/// Makes SIGHUP ask the process to stop, too.
pub(crate) fn handle_sighup() -> io::Result<ShutdownSignal> {
    let mut handlers = lock(&HANDLERS);
    handlers.handles_sighup = true;
    handlers.install()
}

/// Keeps SIGHUP from ending the process, until the request to stop is forgotten.
pub(crate) fn survive_sighup() -> io::Result<()> {
    let mut handlers = lock(&HANDLERS);
    handlers.survives_sighup = true;
    handlers.install().map(drop)
}

/// Handles the signals that were ignored when the program started, too.
pub(crate) fn handle_ignored() -> io::Result<ShutdownSignal> {
    let mut handlers = lock(&HANDLERS);
    handlers.handles_ignored = true;
    handlers.install()
}

/// Forgets that the process was asked to stop. The next signal is the first one of a new request.
pub(crate) fn forget_stop_request() {
    let mut handlers = lock(&HANDLERS);
    (handlers.survives_sighup, handlers.first_signal_at) = (false, None);
    // Without a request, the registry stays: the signals of its other users must remain connected.
    let previous = handlers.requested_at.take().and_then(|_| handlers.stop_request.take());
    drop(handlers);
    drop(previous);
}

/// Returns when the process was asked to stop.
pub(crate) fn requested_at() -> Option<Instant> {
    lock(&HANDLERS).requested_at
}

/// Waits until the process is asked to stop or the deadline has passed, and returns when the process was asked to stop.
pub(crate) fn wait_for_request(deadline: Option<Instant>) -> Option<Instant> {
    let timeout = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
    let waited = REQUESTED.wait_timeout_while(lock(&HANDLERS), timeout, |handlers| handlers.requested_at.is_none());
    waited.unwrap_or_else(PoisonError::into_inner).0.requested_at
}

impl Handlers {
    fn install(&mut self) -> io::Result<ShutdownSignal> {
        let has_sighup = self.has_sighup();
        os::install(&mut self.installed, has_sighup, self.handles_ignored)?;
        Ok(self.stop_request().signal())
    }

    fn stop_request(&mut self) -> &Registry<()> {
        self.stop_request.get_or_insert_with(|| Registry::new(()))
    }

    fn remove(&mut self, key: HookKey) -> Option<Hook> {
        self.hooks.iter().position(|hook| hook.key == key).map(|index| self.hooks.remove(index))
    }

    fn has_sighup(&self) -> bool {
        self.handles_sighup || self.survives_sighup
    }

    /// Returns whether a host or a caller of `shutdown_signal` still handles signals.
    fn has_users(&self) -> bool {
        self.is_signal_used || !self.hooks.is_empty()
    }
}

/// Makes a host the user of the signals, until this hook is dropped. The newest hook runs its function at a signal that repeats the request to
/// stop, except within the window after the first signal.
///
/// Without hooks and callers of [`shutdown_signal`], signals have their default actions.
pub(crate) struct SecondSignalHook(HookKey);

impl SecondSignalHook {
    pub(crate) fn new(repeat_window: Duration, on_second_signal: impl FnOnce() + Send + 'static) -> Self {
        let mut handlers = lock(&HANDLERS);
        let key = HookKey(handlers.next_key);
        handlers.next_key += 1;
        handlers.hooks.push(Hook { key, repeat_window, on_second_signal: Some(Box::new(on_second_signal)) });
        Self(key)
    }

    pub(crate) fn key(&self) -> HookKey {
        self.0
    }

    /// Keeps the hook until the process exits or another hook is kept.
    pub(crate) fn keep(self) {
        let mut handlers = lock(&HANDLERS);
        let previous = handlers.kept.replace(self.0).and_then(|key| handlers.remove(key));
        drop(handlers);
        // Not under the lock: the hook may own the last handle of a registry.
        drop(previous);
        std::mem::forget(self);
    }
}

impl HookKey {
    /// Returns whether no newer host uses the signals.
    pub(crate) fn is_newest(self) -> bool {
        lock(&HANDLERS).hooks.last().is_some_and(|hook| hook.key == self)
    }
}

impl Drop for SecondSignalHook {
    fn drop(&mut self) {
        let mut handlers = lock(&HANDLERS);
        let hook = handlers.remove(self.0);
        if !handlers.has_users() {
            (handlers.handles_sighup, handlers.survives_sighup, handlers.handles_ignored) = (false, false, false);
        }
        drop(handlers);
        // Not under the lock: the hook may own the last handle of a registry.
        drop(hook);
    }
}

/// Handles a signal.
///
/// A second SIGHUP does not end the process, because a closed terminal may send SIGHUP twice. A signal within the repeat window does not end the
/// process either: a terminal signals the whole process group, so a launcher that forwards Ctrl-C to its child delivers one request twice.
fn on_signal(signal: os::Signal) {
    let mut handlers = lock(&HANDLERS);
    let is_sighup = os::is_sighup(signal);
    // An earlier host may have installed the handler.
    if !handlers.handles_ignored && handlers.installed.as_ref().is_some_and(|installed| installed.stays_ignored(signal)) {
        return;
    }
    if !handlers.has_users() || (is_sighup && !handlers.has_sighup()) {
        drop(handlers);
        os::run_default_action(signal);
    } else if let Some(first_signal_at) = handlers.first_signal_at {
        let insists = |hook: &&mut Hook| !is_sighup && first_signal_at.elapsed() >= hook.repeat_window;
        let on_second_signal = handlers.hooks.last_mut().filter(insists).and_then(|hook| hook.on_second_signal.take());
        drop(handlers);
        if let Some(on_second_signal) = on_second_signal {
            on_second_signal();
        }
    } else {
        handlers.first_signal_at = Some(Instant::now());
        if handlers.requested_at.is_none() {
            start_shutdown(handlers);
        }
    }
}

fn start_shutdown(mut handlers: MutexGuard<'_, Handlers>) {
    handlers.requested_at = Some(Instant::now());
    let stop_request = handlers.stop_request().clone();
    // Not under the lock: this wakes the waiters.
    drop(handlers);
    stop_request.start_shutdown();
    REQUESTED.notify_all();
}

#[cfg(unix)]
mod os {
    use super::{HANDLERS, on_signal};
    use crate::exit::exit_now;
    use crate::sync::lock;
    use nix::sys::signal::{SigSet, SigmaskHow};
    use signal_hook::SigId;
    use signal_hook::low_level::{emulate_default_handler, pipe, unregister};
    use std::io::{self, ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::{fs, process, thread};

    pub(super) use nix::sys::signal::Signal;

    /// Contains the data that the handler of a signal shares with the thread that waits for signals.
    ///
    /// The data needs no lock. A lock that this thread holds during a fork would stay locked in the child.
    struct SignalState {
        signal: Signal,
        has_handler: AtomicBool,
        has_arrived: AtomicBool,
    }

    impl SignalState {
        const fn new(signal: Signal) -> Self {
            Self { signal, has_handler: AtomicBool::new(false), has_arrived: AtomicBool::new(false) }
        }
    }

    static SIGNALS: [SignalState; 3] =
        [SignalState::new(Signal::SIGTERM), SignalState::new(Signal::SIGINT), SignalState::new(Signal::SIGHUP)];

    /// The handlers of this process. Each sets its flag in `SIGNALS`, and then writes to the pipe of the thread that waits for signals.
    pub(super) struct Installed {
        /// The process whose thread waits for signals. A child that this process forks inherits the handlers, but not the thread.
        process_id: u32,
        wake: UnixStream,
        writes_to_pipe: Vec<(Signal, SigId)>,
        /// The signals that were ignored when the program started: the bit n - 1 for the signal n.
        ignored: u64,
    }

    pub(super) fn is_sighup(signal: Signal) -> bool {
        signal == Signal::SIGHUP
    }

    pub(super) fn install(installed: &mut Option<Installed>, sighup: bool, even_ignored: bool) -> io::Result<()> {
        let process_id = process::id();
        let installed = match installed {
            Some(installed) => installed,
            None => installed.insert(Installed {
                process_id,
                wake: start_thread()?,
                writes_to_pipe: Vec::new(),
                ignored: ignored_signals(),
            }),
        };
        let is_forked = installed.process_id != process_id;
        if is_forked {
            installed.wake = start_thread()?;
            for (signal, write_to_pipe) in &mut installed.writes_to_pipe {
                // A signal of the child must not wake its parent.
                unregister(*write_to_pipe);
                *write_to_pipe = pipe::register(*signal as i32, installed.wake.try_clone()?)?;
            }
            installed.process_id = process_id;
        }
        let is_missing = |state: &&SignalState| match state.signal {
            _ if state.has_handler.load(Ordering::SeqCst) => false,
            Signal::SIGHUP if !sighup => false,
            signal => even_ignored || !installed.stays_ignored(signal),
        };
        let missing: Vec<_> = SIGNALS.iter().filter(is_missing).collect();
        with_blocked(&missing, || missing.iter().try_for_each(|state| installed.handle(state)))?;
        // The thread unblocks the signals. In a child, a signal may have arrived after the thread's check and before the handlers write to
        // its pipe.
        if missing.is_empty() && !is_forked { Ok(()) } else { installed.wake.write_all(&[0]) }
    }

    impl Installed {
        /// Returns whether the signal is ignored unless a host handles ignored signals.
        pub(super) fn stays_ignored(&self, signal: Signal) -> bool {
            signal != Signal::SIGTERM && self.was_ignored(signal)
        }

        fn was_ignored(&self, signal: Signal) -> bool {
            self.ignored >> (signal as i32 - 1) & 1 == 1
        }

        fn handle(&mut self, state: &'static SignalState) -> io::Result<()> {
            let SignalState { signal, has_handler, has_arrived } = state;
            signal_hook::flag::register(*signal as i32, has_arrived)?;
            self.writes_to_pipe.push((*signal, pipe::register(*signal as i32, self.wake.try_clone()?)?));
            has_handler.store(true, Ordering::SeqCst);
            Ok(())
        }
    }

    /// Returns the signals that this process ignores. Returns 0 if the system has no `/proc/self/status`.
    fn ignored_signals() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    }

    /// Blocks the signals in this thread while it registers their handlers.
    ///
    /// signal-hook loses a signal that arrives after the system has the handler and before signal-hook has its action. If this is the only thread
    /// of the process, blocking delays the signal instead.
    fn with_blocked<T>(signals: &[&SignalState], register: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let signals = signals.iter().map(|state| state.signal).collect::<SigSet>();
        let previous_mask = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let registered = register();
        previous_mask.thread_set_mask()?;
        registered
    }

    /// Starts the thread that waits for signals, and returns the pipe that wakes the thread. The thread ends if the pipe is closed.
    fn start_thread() -> io::Result<UnixStream> {
        let (mut wakeups, wake) = UnixStream::pair()?;
        let wait = move || {
            loop {
                handle_arrived();
                match wakeups.read(&mut [0; 64]) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => return,
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(wait)?;
        Ok(wake)
    }

    /// Handles the signals that have arrived.
    ///
    /// Also unblocks the signals in this thread. The parent process may have blocked them, and the system delivers a signal only to a thread that
    /// does not block it.
    fn handle_arrived() {
        let handled = SIGNALS.iter().filter(|state| state.has_handler.load(Ordering::SeqCst));
        let _ = handled.map(|state| state.signal).collect::<SigSet>().thread_unblock();
        for state in &SIGNALS {
            if state.has_arrived.swap(false, Ordering::SeqCst) {
                on_signal(state.signal);
            }
        }
    }

    /// Does what the system does at a signal that has no handler.
    pub(super) fn run_default_action(signal: Signal) {
        if lock(&HANDLERS).installed.as_ref().is_some_and(|installed| installed.was_ignored(signal)) {
            return;
        }
        // The system has no default actions for process 1.
        if process::id() != 1 {
            let _ = emulate_default_handler(signal as i32);
        }
        exit_now(128 + signal as u8);
    }
}

#[cfg(windows)]
mod os {
    use super::on_signal;
    use crate::deadline::SECOND_SIGNAL_EXIT_CODE;
    use crate::exit::exit_now;
    use futures_lite::future::block_on;
    use std::future::poll_fn;
    use std::io;
    use std::sync::mpsc::channel;
    use std::task::Poll;
    use std::thread;
    use tokio::signal::windows::{CtrlBreak, CtrlC, CtrlClose, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};

    /// There is nothing to add later: closing the console is always among the signals.
    pub(super) struct Installed;
    impl Installed {
        pub(super) fn stays_ignored(&self, _signal: Signal) -> bool {
            false
        }
    }
    #[derive(Clone, Copy)]
    pub(super) struct Signal;
    struct Signals(CtrlC, CtrlBreak, CtrlClose, CtrlShutdown);

    pub(super) fn is_sighup(_signal: Signal) -> bool {
        false
    }

    pub(super) fn install(installed: &mut Option<Installed>, _sighup: bool, _even_ignored: bool) -> io::Result<()> {
        if installed.is_none() {
            // The thread comes first: a signal that arrives right after the handlers are installed needs a receiver.
            let (sender, receiver) = channel();
            thread::Builder::new().name("signals".into()).spawn(move || receiver.into_iter().for_each(wait))?;
            let _ = sender.send(Signals(ctrl_c()?, ctrl_break()?, ctrl_close()?, ctrl_shutdown()?));
            *installed = Some(Installed);
        }
        Ok(())
    }

    fn wait(Signals(mut c, mut r#break, mut close, mut shutdown): Signals) {
        loop {
            block_on(poll_fn(|cx| {
                // Not `||`: each of them must store the waker.
                let is_ready = c.poll_recv(cx).is_ready() | r#break.poll_recv(cx).is_ready();
                let is_ready = is_ready | close.poll_recv(cx).is_ready() | shutdown.poll_recv(cx).is_ready();
                if is_ready { Poll::Ready(()) } else { Poll::Pending }
            }));
            on_signal(Signal);
        }
    }

    /// Ends the process, as the system does when no handler is installed.
    pub(super) fn run_default_action(_signal: Signal) {
        exit_now(SECOND_SIGNAL_EXIT_CODE);
    }
}
