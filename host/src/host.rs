use crate::deadline::{self, Limits};
use crate::liveness::{Liveness, WatchedTask};
use crate::program::{FAILED, HostState, NotifyOnDrop, PANICKED};
use crate::readiness::Readiness;
use crate::signals::{self, SecondSignalHook};
use crate::status::HostStatus;
use crate::terminal::{Level, log};
use crate::{drain, phases::Phases, systemd, webjobs, windows_service};
use background_tasks::{Registry, ShutdownSignal, Summary, TaskOutput};
use futures_lite::FutureExt;
use std::fmt;
use std::future::pending;
use std::io;
use std::panic::{AssertUnwindSafe, Location};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Runs a program until it ends or the process is asked to stop, and then drains its registries.
///
/// [`run`](Self::run) takes these steps:
///
/// 1. It polls the program's future. Shutdown starts when SIGTERM or SIGINT arrives (see [`shutdown_signal`](crate::shutdown_signal) for
///    Windows), after a request without a signal ([`stop_on`](Self::stop_on), [`request_stop`](crate::request_stop)), when the program has
///    ended, when a task with a [critical](Liveness::critical) handle reports no progress in time, or when other code shuts one of the
///    registries down.
/// 2. It shuts the first registry down, which triggers the registry's signal. The program continues until it ends: a server that waits for the
///    signal accepts no new connections and finishes its current requests. Meanwhile the program counts as in flight, with the name
///    `program`, so the registry accepts the tasks that these requests start. The program takes [no permit](Registry::without_permit) of a
///    registry that has a [limit](background_tasks::RegistryBuilder::max_in_flight), so it is in flight even if the registry is full. A
///    program that must still start tasks in a full registry marks them as [follow-ups](Registry::follow_up), which may wait for a permit.
/// 3. It drains the first registry, then each registry of [`then`](Self::then) in order. When the last task has ended, `run` returns the
///    exit code, at most two seconds later if stderr is blocked. If the process was asked to stop, `main` must then return within the
///    [`main_timeout`](Self::main_timeout). If `main` takes longer, for example because a runtime's destructor waits for a blocking read of
///    stdin, the host ends the process.
/// 4. If the drain takes longer than the [grace period](Self::grace), it shuts all registries down and reports the stragglers. Then it
///    [aborts](Registry::abort) them, and each task that starts later, and drops the program's future. It waits at most another half
///    a second for the aborted tasks, and then reports the remaining stragglers. Only the tasks of
///    [inspected](background_tasks::RegistryBuilder::inspect) registries have names in these reports, and only these tasks are aborted.
///    If no registry is inspected and tasks are in flight, a warning at the start of the drain says so. An aborted program counts as
///    aborted if the first registry is inspected, and otherwise as abandoned. If only the program is left, the report says so. In a
///    server, a connection is then usually still open, for example because a client has sent half a request.
///
/// A process that was asked to stop, or that missed the deadline, exits at most one second after the deadline. Nothing in `main` or in the
/// executor delays this exit: neither a runtime's destructor that waits for blocking work, nor an executor that is blocked forever. Before the
/// exit, the host flushes stdout, unless nobody reads it. The host uses separate threads for all of this.
///
/// If the program ends on its own, `main` has unlimited time by default, for example to write a report. If the process is asked to stop
/// meanwhile, `main` must return within the grace period, which then starts with the request.
///
/// # Signals
///
/// A second signal ends the process immediately, with three exceptions:
///
/// - Signals shortly after the first signal [repeat](Self::repeat_window) the same request.
/// - The first signal after a [request without a signal](crate::request_stop) repeats that request.
/// - SIGHUP does not end the process during the delay and the drain, with or without [`handle_sighup`](Self::handle_sighup), because the
///   work must end even if the terminal was closed. After the drain, SIGHUP limits the time of `main`, as SIGTERM does.
///
/// [`shutdown_signal`](crate::shutdown_signal) lists the signals, and describes signals that the parent process has ignored or blocked.
///
/// # Fork
///
/// A program may create the host and then fork, to become a daemon. [`run`](Self::run) then receives the signals of the child, including
/// signals that arrived between the fork and `run`. Fork before `run`, and before the program has started threads. A signal that arrives in
/// the microsecond of the fork itself can block the child, because the thread that waits for signals may hold a lock. To exclude this,
/// block the signals during the fork, or fork before you create the host.
///
/// # Several hosts
///
/// A request to stop concerns the whole process. A host that is created later in the same process stops immediately, unless it
/// [forgets](Self::forget_stop_request) the request. While several hosts exist, the host whose `new` or `run` was called last reacts to a
/// second signal, and limits the time of `main`.
///
/// # Exit codes
///
/// | exit code | meaning |
/// | --- | --- |
/// | 0 | all registries drained within the grace period, and `main` returned in time |
/// | 1 | the grace period expired first, `main` did not return in time, or the function of [`fail_if`](Self::fail_if) returned true or panicked |
/// | 2 | the program returned an error, the loss of a task or a critical [`Liveness`] started the shutdown, or the host failed to start |
/// | 101 | the program or a future of [`stop_on`](Self::stop_on) panicked |
/// | 130 | a second signal arrived after the [repeat window](Self::repeat_window) |
///
/// The loss of a task starts the shutdown if the task is [critical](Registry::critical), or by
/// [`shutdown_on_panic`](background_tasks::RegistryBuilder::shutdown_on_panic) and
/// [`shutdown_on_failure`](background_tasks::RegistryBuilder::shutdown_on_failure). With the codes 2 and 101, the process exits after
/// the drain. If several of the codes 1, 2 and 101 apply, the cause that happens first decides: if a program fails and its tasks then miss
/// the deadline, the process exits with code 2. If a program fails after the deadline, the process exits with code 1.
///
/// # Output
///
/// The host reports the drain on stderr. On a terminal it shows a progress bar with the oldest tasks (feature `bar`). Elsewhere it writes a
/// line at the start, and a line with the oldest tasks every two seconds. These lines show no ages of services. In both cases it writes a line with the outcomes at the end. The
/// host reports nothing if the program succeeds without a signal, no task is in flight, and no task was lost.
///
/// With the feature `tracing` and a global subscriber, the host emits events without a parent span instead of lines. The stragglers, at
/// most the 100 oldest of each registry, are events with the fields of
/// [`TracingObserver`](https://docs.rs/background-tasks/latest/background_tasks/struct.TracingObserver.html). The host then draws no
/// progress bar unless `progress_bar` asks for it. If all registries have a `TracingObserver`, or another observer that [logs the
/// shutdown](background_tasks::Observer::logs_shutdown), the host does not report the start and the end a second time.
///
/// The reports name tasks only if their registry is [inspected](background_tasks::RegistryBuilder::inspect). The host does not report each
/// loss: an [`Observer`](background_tasks::Observer) of the registry does, for example [`StderrObserver`](crate::StderrObserver).
///
/// # Examples
///
/// ```no_run
/// # use background_tasks::{Registry, SmolSpawner};
/// # use background_tasks_host::Host;
/// # use std::{process::ExitCode, time::Duration};
/// fn main() -> ExitCode {
///     let requests = Registry::new(SmolSpawner);
///     let workers = Registry::new(SmolSpawner);
///     let host = Host::new(&requests).then(&workers).grace(Duration::from_secs(25));
///     smol::block_on(host.run(async move {
///         // Serve until `requests.signal()` is triggered. The host logs an error, and exits with code 2 after the drain.
///         Err::<(), _>("the port is in use")
///     }))
/// }
/// ```
#[must_use = "a host does nothing until it runs"]
pub struct Host {
    phases: Phases,
    status: Arc<HostStatus>,
    limits: Limits,
    delay: Duration,
    liveness: Vec<WatchedTask>,
    repeat_window: Duration,
    fail_if: Box<dyn FnOnce(&Summary) -> bool + Send>,
    progress_bar: Option<bool>,
    stop_on: Pin<Box<dyn Future<Output = ()> + Send>>,
    webjobs_file: bool,
    stop_requested: io::Result<ShutdownSignal>,
    second_signal_hook: SecondSignalHook,
    location: &'static Location<'static>,
}

impl Host {
    /// Returns the host of a registry, and installs the signal handlers. If this fails, [`run`](Self::run) reports the error.
    ///
    /// Signals that arrive between this call and [`run`](Self::run) are kept. In an async `main`, such as one with `#[tokio::main]`, the runtime
    /// has already started threads. A signal that arrives in the few microseconds of this call may then be lost. To exclude this, create the host
    /// in a synchronous `main`, before the runtime. See [`shutdown_signal`](crate::shutdown_signal).
    ///
    /// If the host is dropped, signals have their default actions again, unless other hosts or callers of `shutdown_signal` use them.
    #[track_caller]
    pub fn new<S>(registry: &Registry<S>) -> Self {
        let phases = Phases::new(registry.with_spawner(()));
        // A second signal also ends a start-up that hangs.
        let repeat_window = Duration::from_secs(1);
        let second_signal_hook = deadline::exit_on_second_signal(&phases, repeat_window);
        Self {
            status: Arc::new(HostStatus::new(&phases)),
            phases,
            limits: Limits { grace: Duration::from_secs(10), main_timeout: None },
            delay: Duration::ZERO,
            liveness: Vec::new(),
            repeat_window,
            fail_if: Box::new(|_| false),
            progress_bar: None,
            stop_on: Box::pin(pending()),
            webjobs_file: true,
            stop_requested: signals::install(),
            second_signal_hook,
            location: Location::caller(),
        }
    }

    /// Adds a registry that is shut down after the registries before it have drained.
    ///
    /// Until then the registry stays open, and accepts tasks that the tasks of the earlier registries start. A typical order: requests,
    /// then workers, then the tasks of the connection pool.
    ///
    /// The registries can be [children](Registry::child) of one registry. Do not pass that registry too: its summary includes the tasks of its
    /// drained children, so the host would count these tasks twice.
    ///
    /// Without a reserve, the earlier registries may use up the whole grace period. The shutdown of this registry then starts when the grace
    /// period expires, immediately before its tasks are aborted. To prevent this, call [`then_with_reserve`](Self::then_with_reserve).
    pub fn then<S>(self, registry: &Registry<S>) -> Self {
        self.then_with_reserve(registry, Duration::ZERO)
    }

    /// Adds a registry as [`then`](Self::then) does, and reserves the last part of the [grace period](Self::grace) for it.
    ///
    /// The shutdown of this registry starts when the registries before it have drained, or when only the reserve is left. So the earlier
    /// registries have the grace period less all later reserves, and one task that does not end cannot use up the time of the later
    /// registries. When only the reserve is left, the host reports the stragglers of the earlier registries. It aborts them only when the
    /// grace period expires. Several reserves add up: with a grace period of 25 seconds and two later registries with reserves of 5 and 2
    /// seconds, their shutdowns start after at most 18 and 23 seconds. If the reserves of this registry and of all later registries
    /// together are not shorter than the grace period, the shutdown of this registry starts with the drain.
    ///
    /// # Examples
    ///
    /// Workers have five seconds to return their jobs to the queue, even if a request hangs:
    ///
    /// ```
    /// # use background_tasks::Registry;
    /// # use background_tasks_host::Host;
    /// # use std::time::Duration;
    /// # let (requests, workers) = (Registry::new(()), Registry::new(()));
    /// let host = Host::new(&requests).then_with_reserve(&workers, Duration::from_secs(5)).grace(Duration::from_secs(25));
    /// ```
    pub fn then_with_reserve<S>(mut self, registry: &Registry<S>, reserve: Duration) -> Self {
        self.phases.push(registry.with_spawner(()), reserve);
        self.status.set_phases(&self.phases);
        self
    }

    /// Sets the grace period: the longest time until the last registry has drained. Default: 10 seconds.
    ///
    /// The grace period starts when the process is asked to stop or, without such a request, when shutdown starts. A time that the clock
    /// cannot represent, such as `Duration::MAX`, has no end.
    ///
    /// If the process is asked to stop only after the drain, `main` must return within the grace period, which then starts with the signal.
    ///
    /// The supervisor must wait at least two seconds longer before it kills the process: the page [deployment](crate::deployment) explains
    /// the settings of supervisors. With a grace period of zero, tasks that can be aborted are aborted immediately.
    ///
    /// The default is too long for two signals of [Windows](crate::deployment#windows), the closing of the console and the shutdown of the
    /// system. If a program must handle these signals, choose at most 3 seconds.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.limits.grace = grace;
        self
    }

    /// Sets how long the program continues after a request to stop, before the drain starts. Default: zero.
    ///
    /// Use a delay if a load balancer must see that the service is not ready before the service stops accepting connections. During the
    /// delay, [`readiness`](Self::readiness) is false, and the host has reported the stop to systemd or Windows. The registry's signal is
    /// not triggered, and new tasks start. The delay is part of the [grace period](Self::grace), so choose a longer grace period.
    /// The host requests no more time from systemd or Windows until the drain starts, so the delay must be shorter than `TimeoutStopSec`,
    /// or than 30 seconds on Windows.
    ///
    /// The drain starts earlier if the program ends or a registry is shut down by other code, for example by the loss of a critical task. A
    /// shutdown that starts without a request to stop has no delay. A second signal ends the process during the delay too.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Returns a value for a readiness probe. It is ready until the process is asked to stop or the shutdown of the first registry starts.
    #[must_use = "this returns a value for a readiness probe"]
    pub fn readiness(&self) -> Readiness {
        Readiness::new(self.phases.first().clone())
    }

    #[cfg(feature = "dashboard")]
    pub(crate) fn status(&self) -> Arc<HostStatus> {
        self.status.clone()
    }

    /// Makes the host report a task or service that reports no progress for too long; see [`Liveness`].
    ///
    /// Call this method once for each task. The host keeps no clone of the handle.
    pub fn liveness(mut self, liveness: &Liveness) -> Self {
        self.liveness.push(WatchedTask::new(liveness));
        self.status.add_liveness(liveness);
        self
    }

    /// Sets how long `main` may take to return after the drain. Default: 5 seconds if the process was asked to stop, and otherwise
    /// unlimited. A shutdown that the program or a task starts is not such a request.
    ///
    /// `main` returns after its own clean-up and the destructors of its variables. The destructor of a tokio runtime waits for blocking
    /// work that no registry counts, such as a read of stdin, and for blocking closures of libraries. If `main` has not returned when this
    /// time or the grace period has expired, the host reports an error and ends the process. The exit code is 1, unless another code than 0
    /// was set before. A time that is set with this method also applies to a program that ends on its own.
    ///
    /// With zero, the host does not wait for `main`: [`run`](Self::run) does not return after a drain in time. The process exits when the
    /// last task has ended, with the exit code that `run` would have returned. After a missed deadline, `run` returns. Use zero if a
    /// program reads stdin on a runtime, and its `main` only returns the exit code.
    pub fn main_timeout(mut self, timeout: Duration) -> Self {
        self.limits.main_timeout = Some(timeout);
        self
    }

    /// Sets how long after the first signal further signals repeat the same request to stop. Default: 1 second.
    ///
    /// One request may arrive several times within milliseconds. For example, a launcher such as `npm` forwards the Ctrl-C that the
    /// terminal has already sent to the whole process group. A supervisor may signal a process and then its group. A signal after this time
    /// ends the process immediately. With zero, any second signal does so.
    pub fn repeat_window(mut self, window: Duration) -> Self {
        self.repeat_window = window;
        self.second_signal_hook = deadline::exit_on_second_signal(&self.phases, window);
        self
    }

    /// Asks the process to stop when `stop` resolves. This counts as a signal does: the grace period, the exit codes, and the time that
    /// `main` has after the drain are the same. Use it if something other than a signal ends the program, such as a message of an
    /// orchestrator.
    ///
    /// [`run`](Self::run) polls the future together with the program, so it may use the program's runtime. A blocked executor cannot poll
    /// the future: [`request_stop`](crate::request_stop) works even then, and its documentation describes further requests and signals. If
    /// the future panics, the process stops too, with exit code 101. After several calls of this method, the process stops when the first
    /// of the futures resolves.
    ///
    /// # Examples
    ///
    /// ```
    /// # use background_tasks::Registry;
    /// # use background_tasks_host::Host;
    /// # let registry = Registry::new(());
    /// # let lease_lost = std::future::pending();
    /// let host = Host::new(&registry).stop_on(lease_lost);
    /// ```
    pub fn stop_on(mut self, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop_on = Box::pin(self.stop_on.or(stop));
        self
    }

    /// Makes the process the Win32 service with this name. Call it in the main function of the service. Does nothing on other systems.
    ///
    /// | state of the service | when |
    /// | --- | --- |
    /// | start pending | from this call on, with a wait hint of 30 seconds |
    /// | running | when [`run`](Self::run) starts the program, or later: see [`running_when_ready`](Self::running_when_ready) |
    /// | stop pending | when the process is asked to stop or shutdown starts. The checkpoint rises whenever tasks have ended, and the wait hint is the rest of the grace period, at most about 30 seconds |
    /// | stopped | when `run` returns, or before the host ends the process. An exit code other than 0 is the service-specific error |
    ///
    /// The controls stop, shutdown and preshutdown ask the process to stop, as a signal does. When the system shuts down, all services
    /// together have about 5 seconds. Before that, services that accept preshutdown, such as this one, have 10 seconds. So choose a grace
    /// period of at most 8 seconds, or install the service with a longer preshutdown timeout. When the service is reported as stopped,
    /// Windows may end the process: do the clean-up in the program, and not after `run`.
    ///
    /// If the process is not a service, `run` reports that the host failed to start.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # #[cfg(windows)] mod service {
    /// # use background_tasks::{Registry, SmolSpawner};
    /// # use background_tasks_host::Host;
    /// # use std::{ffi::OsString, time::Duration};
    /// # async fn serve(registry: Registry<SmolSpawner>) { registry.signal().await }
    /// windows_service::define_windows_service!(ffi_service_main, service_main);
    ///
    /// fn service_main(_arguments: Vec<OsString>) {
    ///     let registry = Registry::builder(SmolSpawner).inspect().build();
    ///     let host = Host::new(&registry).grace(Duration::from_secs(8)).windows_service("invoices");
    ///     smol::block_on(host.run(serve(registry)));
    /// }
    /// # }
    /// ```
    ///
    /// The repository's `examples/windows-service` is a complete service, with commands to install and uninstall it.
    #[cfg(feature = "windows-service")]
    pub fn windows_service(mut self, name: &str) -> Self {
        self.stop_requested = self.stop_requested.and_then(|stop| windows_service::register(name).map(|()| stop));
        self
    }

    /// Keeps the [Win32 service](Self::windows_service) start pending until the program calls [`notify_ready`](crate::notify_ready). Default: the
    /// service is running when [`run`](Self::run) starts the program.
    ///
    /// Services that depend on this service then start when the program is ready, and `net start` and `Start-Service` wait for that, or
    /// report that the start has failed. Until the program is ready, Windows sends the service no request to stop. The host announces 30
    /// seconds for the start: if the program needs more time, Windows may report that the service does not respond. If the program ends or
    /// shutdown starts before it is ready, the service is stop pending and then stopped.
    ///
    /// Does nothing on other systems, and in a process that is not a service.
    #[cfg(feature = "windows-service")]
    pub fn running_when_ready(self) -> Self {
        windows_service::wait_for_ready();
        self
    }

    /// Sets whether a shutdown file of Azure WebJobs asks the process to stop, as a signal does. Default: true.
    ///
    /// WebJobs sends no signal. It names a file in the environment variable `WEBJOBS_SHUTDOWN_FILE`, and creates the file to stop the job. While the
    /// host runs, a thread checks every tenth of a second whether the file exists. Without the variable, nothing is checked. The default grace
    /// period is too long for WebJobs: see [deployment](crate::deployment#azure-webjobs).
    pub fn webjobs_file(mut self, is_handled: bool) -> Self {
        self.webjobs_file = is_handled;
        self
    }

    /// Makes SIGHUP start the shutdown too. The system sends SIGHUP when the terminal is closed. Without this call, SIGHUP ends the process
    /// if no drain or delay has started.
    ///
    /// `nohup` makes programs ignore SIGHUP. On Linux, SIGHUP then stays ignored, unless [`handle_ignored`](Self::handle_ignored) is called
    /// too. On Windows, which has no SIGHUP, this method has no effect.
    pub fn handle_sighup(mut self) -> Self {
        self.stop_requested = self.stop_requested.and_then(|_| signals::handle_sighup());
        self
    }

    /// Handles signals that were ignored when the program started. Without this call, they stay ignored on Linux, except SIGTERM.
    ///
    /// SIGHUP is ignored under `nohup`, and SIGINT in a background job of a shell script. On systems without `/proc/self/status`, ignored
    /// signals are always handled; see [`shutdown_signal`](crate::shutdown_signal).
    pub fn handle_ignored(mut self) -> Self {
        self.stop_requested = self.stop_requested.and_then(|_| signals::handle_ignored());
        self
    }

    /// Forgets an earlier request to stop the process, so that this host runs until the next one.
    ///
    /// Use it in a process that runs several hosts one after the other, such as a test or a supervisor. Earlier hosts that drained in time
    /// no longer limit how long `main` may take. Signals that [`shutdown_signal`](crate::shutdown_signal) returned before stay resolved.
    pub fn forget_stop_request(mut self) -> Self {
        signals::forget_stop_request();
        self.stop_requested = self.stop_requested.and_then(|_| signals::install());
        self
    }

    /// Makes the process exit with code 1 if `is_failure` returns true. Default: losses do not change the exit code. A loss that starts the
    /// shutdown results in code 2 even without this function.
    ///
    /// The host calls `is_failure` once, on a thread of the host, if all registries drain within the grace period. Otherwise it does not
    /// call `is_failure`. The summary counts the tasks of all registries. If `is_failure` returns true, the last line of the host says so,
    /// at the level of an error. An exit code other than 0 that was set before stays. If `is_failure` panics, the process exits with code 1
    /// too.
    ///
    /// A second call replaces the function of the first call.
    ///
    /// # Examples
    ///
    /// A service that answers before its work is done exits with code 1 if it had to reject work:
    ///
    /// ```
    /// # use background_tasks::Registry;
    /// # use background_tasks_host::Host;
    /// # let registry = Registry::new(());
    /// let host = Host::new(&registry).fail_if(|summary| summary.rejected > 0);
    /// ```
    ///
    /// A batch program fails after any loss: `fail_if(|summary| !summary.is_clean())`.
    pub fn fail_if(mut self, is_failure: impl FnOnce(&Summary) -> bool + Send + 'static) -> Self {
        self.fail_if = Box::new(is_failure);
        self
    }

    /// Shows or hides the progress bar of the drain. Default: shown, unless the host reports the drain as tracing events. If stderr is not
    /// a terminal, the bar is never shown.
    ///
    /// A subscriber that writes to the same terminal overwrites the bar; `tracing_subscriber::fmt::init()` does so on stdout. Before you show
    /// the bar in a program with a subscriber, make the subscriber write to [`stderr`](crate::stderr()):
    /// `tracing_subscriber::fmt().with_writer(background_tasks_host::stderr).init()`. Its lines then appear above the bar. Without the feature
    /// `tracing`, the host cannot detect a subscriber: use this writer too, or hide the bar.
    #[cfg(feature = "bar")]
    pub fn progress_bar(mut self, is_shown: bool) -> Self {
        self.progress_bar = Some(is_shown);
        self
    }

    /// Runs the program and then drains the registries, in the steps that the documentation of [`Host`] lists.
    ///
    /// Return the exit code from `main`. If the host fails to start, because the system refuses a thread or the resources for signal
    /// handlers, it logs the error, drops the program's future, drains the registries without a deadline, and returns exit code 2.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the program's future. A host whose drain has not started then neither shuts down nor drains the registries. If
    /// the drain has started, the registries that the host has shut down stay shut down: their tasks continue, and the host no longer waits for
    /// them, aborts them or shuts down later registries. From then on, signals have their default actions, unless other hosts or callers of
    /// `shutdown_signal` use them: the next SIGTERM or SIGINT ends the process. To continue without the host, call
    /// [`shutdown_signal`](crate::shutdown_signal) before you drop the future.
    ///
    /// # Deadlocks
    ///
    /// The program must not await [`shutdown`](Registry::shutdown). This call starts the shutdown, and the host then counts the program as in
    /// flight, so the program would wait for itself. The same applies to [`wait_idle`](Registry::wait_idle) once shutdown has started. To end,
    /// the program returns, or calls [`start_shutdown`](Registry::start_shutdown). The host drains the registries.
    pub async fn run<F>(mut self, program: F) -> ExitCode
    where
        F: Future<Output: TaskOutput>,
    {
        let state = Arc::new(HostState::new(self.location));
        self.second_signal_hook = deadline::exit_on_second_signal(&self.phases, self.repeat_window);
        let hook = self.second_signal_hook.key();
        // This process may be a forked child of the process that created the host.
        let stop_requested = self.stop_requested.and_then(|stop| signals::install().map(|_| stop));
        let settings = drain::Settings {
            limits: self.limits,
            delay: self.delay,
            liveness: self.liveness,
            status: self.status,
            progress_bar: self.progress_bar,
            fail_if: self.fail_if,
        };
        let started = stop_requested.and_then(|stop| {
            if self.webjobs_file {
                webjobs::watch(&state)?;
            }
            drain::start(self.phases.clone(), settings, stop, hook, state.clone())
        });
        if let Err(error) = started {
            log(Level::Error, format_args!("failed to start the host: {error}"));
            drop(program);
            for registry in self.phases.registries() {
                registry.shutdown().await;
            }
            windows_service::report_stopped(FAILED);
            return FAILED.into();
        }
        windows_service::report_started();
        let notify_on_drop = NotifyOnDrop(&state);
        let ended = async {
            state.run_program(program).await;
            state.finished().await;
        };
        let stop = async {
            if AssertUnwindSafe(self.stop_on).catch_unwind().await.is_err() {
                state.set_exit_code(PANICKED);
            }
            signals::request_stop();
            pending::<()>().await;
        };
        ended.or(systemd::keep_watchdog_alive()).or(stop).await;
        // `notify_on_drop` and the drop of the hook only serve a `run` that is dropped before this point.
        std::mem::forget(notify_on_drop);
        self.second_signal_hook.keep();
        windows_service::report_stopped(state.exit_code());
        state.exit_code().into()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("registries", &self.phases.registries())
            .field("grace", &self.limits.grace)
            .finish_non_exhaustive()
    }
}
