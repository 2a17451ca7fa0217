//! Handles the signals that ask the process to stop.

use crate::sync::lock;
use background_tasks::{Registry, ShutdownSignal};
use std::io;
use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static HANDLERS: Mutex<Handlers> = Mutex::new(Handlers {
    installed: None,
    stop_request: None,
    requested_at: None,
    requested_by: "",
    first_signal_at: None,
    hooks: Vec::new(),
    next_key: 0,
    is_signal_used: false,
    handles_sighup: false,
    survives_sighup: false,
    handles_ignored: false,
});

/// A condition variable that is notified when the process is asked to stop, and when a hook is removed.
static CHANGED: Condvar = Condvar::new();

#[expect(clippy::struct_excessive_bools, reason = "the flags are independent")]
struct Handlers {
    installed: Option<os::Installed>,
    /// A registry without tasks. The first request to stop shuts this registry down, which triggers the signal that `shutdown_signal`
    /// returns.
    stop_request: Option<Registry<()>>,
    requested_at: Option<Instant>,
    /// The name of the signal or of the function that asked the process to stop.
    requested_by: &'static str,
    /// The time of the first signal. `requested_at` is earlier if `request_stop` was called before the first signal.
    first_signal_at: Option<Instant>,
    /// The hooks of all hosts, oldest first. The hooks of hosts that have ended come last, in the order in which the hosts ended.
    hooks: Vec<Hook>,
    next_key: usize,
    /// Whether code outside of a host has called `shutdown_signal`.
    is_signal_used: bool,
    handles_sighup: bool,
    /// Whether a drain has started, so that SIGHUP must not end the process.
    survives_sighup: bool,
    handles_ignored: bool,
}

struct Hook {
    key: HookKey,
    repeat_window: Duration,
    on_second_signal: Option<Box<dyn FnOnce() + Send>>,
    /// Whether the drain of the host has ended.
    has_ended: bool,
}

/// Identifies a [`SecondSignalHook`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct HookKey(usize);

/// Returns a future that resolves when the process is asked to stop, and then stays resolved.
///
/// On Unix, SIGTERM and SIGINT (Ctrl-C) ask the process to stop. On Windows, Ctrl-C, Ctrl-Break, the closing of the console and the
/// shutdown of the system ask the process to stop. After the closing of the console or the shutdown of the system, Windows ends the process
/// within seconds. The future works on every runtime and without a runtime, because a separate thread waits for the signals.
///
/// After this call, these signals no longer end the process. Your program must end when the future resolves, or a [`Host`](crate::Host)
/// must end the process. Without a host, a second signal has no effect. With a host, a further signal after the [repeat
/// window](crate::Host::repeat_window) ends the process immediately.
///
/// In a container, the kernel ignores each signal for which process 1 has no handler. If your program is process 1, it must therefore call
/// this function or run a host, or SIGTERM has no effect.
///
/// Call this function before a runtime starts threads, so that no signal is lost. If other threads already exist, a signal that arrives
/// during the first call, which takes a few microseconds, can be lost.
///
/// The future also resolves after a call to [`request_stop`].
///
/// # Inherited settings
///
/// A process inherits two settings from its parent process:
///
/// - **Ignored signals.** If SIGINT was ignored when the program started, SIGINT stays ignored. For example, a shell without job control
///   makes its background jobs ignore SIGINT. The crate always handles SIGTERM, because most supervisors have no other way to ask a process
///   to stop. [`Host::handle_ignored`](crate::Host::handle_ignored) handles ignored signals too. The crate reads the ignored signals from
///   `/proc/self/status`. On systems without this file, such as macOS, the crate cannot read them, so it handles all of its signals.
/// - **Blocked signals.** If the parent process has blocked a signal, the crate still handles it. The thread that waits for signals
///   unblocks the signal.
///
/// # Fork
///
/// If a process forks after this call, the child process does not have the thread that waits for signals. To start such a thread, the child
/// must call this function, [`Host::new`](crate::Host::new) or [`Host::run`](crate::Host::run). The new thread also handles the signals
/// that the child has already received. If a signal arrives in the microsecond of the fork itself, the child can hang, because it can
/// inherit a locked lock. To prevent this, block the signals during the fork, or fork before this call.
///
/// # Panics
///
/// Panics if the system refuses a thread, a signal handler or, on Unix, file descriptors. A [`Host`](crate::Host) does not panic in these
/// cases: [`run`](crate::Host::run) reports the error.
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

/// Asks this process to stop, as SIGTERM does. Any thread can call this function, even before a [`Host`](crate::Host) exists.
///
/// Use this function if a supervisor asks the process to stop without a signal, for example by an HTTP request, a message, or a callback.
/// The effect is the same as after a signal, with the same grace period, exit codes, and time for `main` after the drain. The function
/// works even if the executor is blocked, because the drain of a `Host` runs on a separate thread. [`Host::stop_on`](crate::Host::stop_on)
/// calls this function when a future resolves.
///
/// Further calls have no effect. Some supervisors send a request first and SIGTERM afterwards. Therefore the first signal after this call
/// counts as the same request, and starts the [repeat window](crate::Host::repeat_window). If a host runs, a second signal after the repeat
/// window ends the process immediately.
///
/// # Examples
///
/// This HTTP handler stops the service. The handler does not check who calls it, so mount it where only the supervisor can reach it, such
/// as on a loopback address.
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
    request_stop_by("`request_stop`");
}

/// Asks this process to stop. `source` is its name in the log.
pub(crate) fn request_stop_by(source: &'static str) {
    let handlers = lock(&HANDLERS);
    if handlers.requested_at.is_none() {
        start_shutdown(handlers, source);
    }
}

/// Installs the signal handlers, unless they are already installed.
pub(crate) fn install() -> io::Result<ShutdownSignal> {
    lock(&HANDLERS).install()
}

/// Makes the host treat SIGHUP as a request to stop, as it treats SIGTERM.
pub(crate) fn handle_sighup() -> io::Result<ShutdownSignal> {
    let mut handlers = lock(&HANDLERS);
    handlers.handles_sighup = true;
    handlers.install()
}

/// Prevents SIGHUP from ending the process, until [`forget_stop_request`] is called.
pub(crate) fn survive_sighup() -> io::Result<()> {
    let mut handlers = lock(&HANDLERS);
    handlers.survives_sighup = true;
    handlers.install().map(drop)
}

/// Makes the host handle its signals, even if the process ignored them when the program started.
pub(crate) fn handle_ignored() -> io::Result<ShutdownSignal> {
    let mut handlers = lock(&HANDLERS);
    handlers.handles_ignored = true;
    handlers.install()
}

/// Forgets that the process was asked to stop, and forgets the hosts that have ended. The next signal then counts as a new request.
pub(crate) fn forget_stop_request() {
    let mut handlers = lock(&HANDLERS);
    (handlers.survives_sighup, handlers.first_signal_at) = (false, None);
    // If there was no request, the registry stays, because callers of `shutdown_signal` may still wait for its signal.
    let previous = handlers.requested_at.take().and_then(|_| handlers.stop_request.take());
    let ended = handlers.remove_hooks(|hook| hook.has_ended);
    drop(handlers);
    drop((previous, ended));
}

/// Returns the time of the request to stop the process.
pub(crate) fn requested_at() -> Option<Instant> {
    lock(&HANDLERS).requested_at
}

/// Returns the name of the signal or of the function that asked the process to stop.
pub(crate) fn requested_by() -> &'static str {
    lock(&HANDLERS).requested_by
}

/// Waits until the condition is false or the deadline has passed.
fn wait_while(deadline: Option<Instant>, condition: impl FnMut(&mut Handlers) -> bool) -> MutexGuard<'static, Handlers> {
    let timeout = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
    CHANGED.wait_timeout_while(lock(&HANDLERS), timeout, condition).unwrap_or_else(PoisonError::into_inner).0
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

    fn contains(&self, key: HookKey) -> bool {
        self.hooks.iter().any(|hook| hook.key == key)
    }

    /// Removes some of the hooks. The caller must release the lock before it drops them: a hook may own the last handle of a registry, and
    /// the drop of this handle can call other code.
    fn remove_hooks(&mut self, is_removed: impl Fn(&Hook) -> bool) -> Vec<Hook> {
        let (removed, hooks) = mem::take(&mut self.hooks).into_iter().partition(is_removed);
        self.hooks = hooks;
        CHANGED.notify_all();
        removed
    }

    fn has_sighup(&self) -> bool {
        self.handles_sighup || self.survives_sighup
    }

    /// Returns whether a host or a caller of `shutdown_signal` still handles signals.
    fn has_users(&self) -> bool {
        self.is_signal_used || !self.hooks.is_empty()
    }
}

/// The function that a host runs when a second signal arrives. While this hook exists, the crate handles the signals. If several hosts
/// exist, only the function of the newest host that has not ended runs. If all hosts have ended, the function of the host that ended last
/// runs. Signals within the repeat window after the first signal do not count as second signals.
///
/// If there is no hook and no code has called [`shutdown_signal`], the signals have their default actions.
pub(crate) struct SecondSignalHook(HookKey);

impl SecondSignalHook {
    pub(crate) fn new(repeat_window: Duration, on_second_signal: impl FnOnce() + Send + 'static) -> Self {
        let mut handlers = lock(&HANDLERS);
        let key = HookKey(handlers.next_key);
        handlers.next_key += 1;
        handlers.hooks.push(Hook { key, repeat_window, on_second_signal: Some(Box::new(on_second_signal)), has_ended: false });
        Self(key)
    }

    pub(crate) fn key(&self) -> HookKey {
        self.0
    }

    /// Keeps the hook of a host that has ended, until the process exits or the next host has ended.
    pub(crate) fn keep(self) {
        let previous = lock(&HANDLERS).remove_hooks(|hook| hook.has_ended && hook.key != self.0);
        drop(previous);
        mem::forget(self);
    }
}

impl HookKey {
    /// Records that the drain of the host has ended.
    pub(crate) fn end(self) {
        let mut handlers = lock(&HANDLERS);
        let hook = handlers.hooks.iter().position(|hook| hook.key == self).map(|index| handlers.hooks.remove(index));
        handlers.hooks.extend(hook.map(|hook| Hook { has_ended: true, ..hook }));
    }

    /// Returns whether the host limits how long `main` may take: all hosts have ended, and this host ended last.
    pub(crate) fn limits_main(self) -> bool {
        let handlers = lock(&HANDLERS);
        handlers.hooks.iter().all(|hook| hook.has_ended) && handlers.hooks.last().is_some_and(|hook| hook.key == self)
    }

    /// Waits until the process is asked to stop, the deadline has passed, or the hook is removed. Returns the time of the request to stop,
    /// if there is one.
    pub(crate) fn wait_for_request(self, deadline: Option<Instant>) -> Option<Instant> {
        wait_while(deadline, |handlers| handlers.requested_at.is_none() && handlers.contains(self)).requested_at
    }

    /// Waits until the deadline has passed or the hook is removed.
    pub(crate) fn wait_for_removal(self, deadline: Option<Instant>) {
        drop(wait_while(deadline, |handlers| handlers.contains(self)));
    }
}

impl Drop for SecondSignalHook {
    fn drop(&mut self) {
        let mut handlers = lock(&HANDLERS);
        let hook = handlers.remove_hooks(|hook| hook.key == self.0);
        if !handlers.has_users() {
            (handlers.handles_sighup, handlers.survives_sighup, handlers.handles_ignored) = (false, false, false);
        }
        drop(handlers);
        drop(hook);
    }
}

/// Handles a signal. The first signal asks the process to stop. A second signal calls the [hook](SecondSignalHook) of a host. If no host
/// and no caller of [`shutdown_signal`] exists, the signal has its default action.
///
/// SIGHUP never counts as a second signal, because a closed terminal can send SIGHUP twice. A signal within the repeat window counts as the
/// same request, because one request can arrive twice. For example, a terminal signals the whole process group, and a launcher in this
/// group forwards the signal to its child.
fn on_signal(signal: os::Signal) {
    let mut handlers = lock(&HANDLERS);
    let is_sighup = os::is_sighup(signal);
    // The process was started with this signal ignored, and the current hosts do not call `handle_ignored`. An earlier host did, so the
    // handler exists.
    if !handlers.handles_ignored && handlers.installed.as_ref().is_some_and(|installed| installed.stays_ignored(signal)) {
        return;
    }
    if !handlers.has_users() || (is_sighup && !handlers.has_sighup()) {
        drop(handlers);
        os::run_default_action(signal);
    } else if let Some(first_signal_at) = handlers.first_signal_at {
        let insists = |hook: &&mut Hook| !is_sighup && first_signal_at.elapsed() >= hook.repeat_window;
        let newest = handlers.hooks.iter_mut().rev().min_by_key(|hook| hook.has_ended);
        let on_second_signal = newest.filter(insists).and_then(|hook| hook.on_second_signal.take());
        drop(handlers);
        if let Some(on_second_signal) = on_second_signal {
            on_second_signal();
        }
    } else {
        handlers.first_signal_at = Some(Instant::now());
        if handlers.requested_at.is_none() {
            start_shutdown(handlers, os::name(signal));
        }
    }
}

fn start_shutdown(mut handlers: MutexGuard<'_, Handlers>, source: &'static str) {
    (handlers.requested_at, handlers.requested_by) = (Some(Instant::now()), source);
    let stop_request = handlers.stop_request().clone();
    // The lock is released first, because `start_shutdown` calls wakers, and a waker can run any code.
    drop(handlers);
    stop_request.start_shutdown();
    CHANGED.notify_all();
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

    /// The state of one signal. The handler of the signal shares this state with the thread that waits for signals.
    ///
    /// The fields are atomic and need no lock. If a thread held a lock during a fork, the lock would stay locked in the child process.
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

    /// The signal handlers of this process. Each handler sets its flag in `SIGNALS`, and then writes to the pipe that wakes the thread.
    pub(super) struct Installed {
        /// The ID of the process in which the thread waits for signals. A forked child process inherits the handlers, but not the thread.
        process_id: u32,
        wake: UnixStream,
        writes_to_pipe: Vec<(Signal, SigId)>,
        /// The signals that were ignored when the program started. The bit with the index n - 1 is set if the signal n was ignored.
        ignored: u64,
    }

    pub(super) fn is_sighup(signal: Signal) -> bool {
        signal == Signal::SIGHUP
    }

    pub(super) fn name(signal: Signal) -> &'static str {
        signal.as_str()
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
                // A signal to the child must not wake the thread of the parent process.
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
        // The byte wakes the thread, which unblocks the new signals. In a forked child, the byte is always necessary. A signal may have
        // arrived after the new thread's first check, but before the handlers wrote to the new pipe.
        if missing.is_empty() && !is_forked { Ok(()) } else { installed.wake.write_all(&[0]) }
    }

    impl Installed {
        /// Returns whether the signal stays ignored unless a host calls `handle_ignored`.
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

    /// Blocks these signals in this thread, calls `register`, which registers their handlers, and restores the signal mask.
    ///
    /// The crate signal-hook first installs its handler and then stores the handler's action. It loses a signal that arrives between these
    /// two steps. If this thread is the only thread of the process, the system keeps a blocked signal until the action is stored.
    fn with_blocked<T>(signals: &[&SignalState], register: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let signals = signals.iter().map(|state| state.signal).collect::<SigSet>();
        let previous_mask = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let registered = register();
        previous_mask.thread_set_mask()?;
        registered
    }

    /// Starts the thread that waits for signals. Returns one end of a socket pair: a write to this end wakes the thread, and the thread
    /// ends when this end is closed.
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
        // The thread starts with all signals blocked. Otherwise, it could receive a signal that `with_blocked` blocks in this thread.
        with_blocked(&SIGNALS.each_ref(), || thread::Builder::new().name("signals".into()).spawn(wait))?;
        Ok(wake)
    }

    /// Calls `on_signal` for each signal that has arrived.
    ///
    /// Also unblocks the signals that have a handler in this thread. The parent process may have blocked them in all other threads, and the
    /// system delivers a signal only to a thread that does not block it.
    fn handle_arrived() {
        let handled = SIGNALS.iter().filter(|state| state.has_handler.load(Ordering::SeqCst));
        let _ = handled.map(|state| state.signal).collect::<SigSet>().thread_unblock();
        for state in &SIGNALS {
            if state.has_arrived.swap(false, Ordering::SeqCst) {
                on_signal(state.signal);
            }
        }
    }

    /// Ends the process as the system does if a signal has no handler.
    pub(super) fn run_default_action(signal: Signal) {
        if lock(&HANDLERS).installed.as_ref().is_some_and(|installed| installed.was_ignored(signal)) {
            return;
        }
        // The kernel runs no default actions for process 1, so process 1 only calls `exit_now`.
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

    /// This type is empty, because on Windows the crate always handles all of its signals, including the closing of the console.
    pub(super) struct Installed;
    impl Installed {
        #[expect(clippy::unused_self, reason = "the signature on Unix")]
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

    pub(super) fn name(_signal: Signal) -> &'static str {
        "the console or the system"
    }

    pub(super) fn install(installed: &mut Option<Installed>, _sighup: bool, _even_ignored: bool) -> io::Result<()> {
        if installed.is_none() {
            // The thread is started first, so that it can receive a signal that arrives immediately after the handlers are installed.
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
                // Each of the four signals must be polled, because a poll stores the waker. The operator `||` would skip some polls, so
                // this code uses `|`.
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
