use crate::deadline::{self, Limits};
use crate::liveness::{Liveness, WatchedTask};
use crate::program::{FAILED, HostState, NotifyOnDrop, PANICKED};
use crate::readiness::Readiness;
use crate::signals::{self, SecondSignalHook};
use crate::status::HostStatus;
use crate::terminal::{Level, log};
use crate::windows_service::HostService;
use crate::{drain, phases::Phases, systemd, webjobs};
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

/// Runs a program, handles requests to stop the process, and drains the program's registries at the end.
///
/// [`run`](Self::run) takes these steps:
///
/// 1. The host polls the program's future. Shutdown starts when one of these events happens:
///    - SIGTERM or SIGINT arrives. For the signals of Windows, see [`shutdown_signal`](crate::shutdown_signal).
///    - A request to stop arrives without a signal; see [`stop_on`](Self::stop_on) and [`request_stop`](crate::request_stop).
///    - The program ends.
///    - A task with a [critical](Liveness::critical) handle reports no progress in time.
///    - A lost task starts the shutdown of its registry, for example because the task is critical.
///    - Other code shuts down one of the registries.
/// 2. The host shuts down the first registry, which triggers the registry's signal. The program continues until its future ends. For
///    example, a server that waits for the signal accepts no new connections and finishes its current requests. From now on, the registry
///    counts the program as a task in flight with the name `program`. Until the program ends, the registry therefore accepts the tasks that
///    the last requests start. The program takes [no permit](Registry::without_permit), so a registry that has reached its
///    [limit](background_tasks::RegistryBuilder::max_in_flight) counts the program too. During the drain, only
///    [follow-ups](Registry::follow_up) can wait for a permit. If the program must start a task even if the registry is full, it can mark
///    the task as a follow-up.
/// 3. The host drains the first registry. Then the host drains the registries that you added with [`then`](Self::then), one after the
///    other. When the last task has ended, `run` returns the exit code. If writes to stderr block, `run` returns up to two seconds later.
///    If the process was asked to stop, `main` must return within the [`main_timeout`](Self::main_timeout) after the drain. If `main` takes
///    longer, for example because a runtime's destructor waits for a blocking read of stdin, the host ends the process.
/// 4. If the drain takes longer than the [grace period](Self::grace), the host shuts down all registries. The host reports the stragglers,
///    which are the tasks that are still in flight. Then the host [aborts](Registry::abort) these tasks and all tasks that start later, and
///    drops the program's future. The host waits at most half a second for the aborted tasks. Then it reports the tasks that are still in
///    flight.
///
///    The host can name and abort only tasks of [inspected](background_tasks::RegistryBuilder::inspect) registries. If tasks are in flight
///    and no registry is inspected, the host logs a warning at the start of the drain.
///
///    If the program is still in flight at the deadline, the report says so. A common reason is that the server waits for an open
///    connection, for example because a client has sent only half a request. If the first registry is inspected, the summary counts the
///    dropped program as aborted, and otherwise as abandoned.
///
/// If a process was asked to stop or misses the deadline, it exits at most one second after the deadline. Separate threads of the host
/// enforce the deadline. So the process exits even if a runtime's destructor waits for blocking work, or if a task blocks the executor
/// forever. Before the exit, the host flushes stdout. If the reader of stdout has stopped reading, the host does not wait for it.
///
/// If the program ends without a request to stop, `main` can then take as long as it needs, for example to write a report. To limit this
/// time, set [`main_timeout`](Self::main_timeout). If the process is asked to stop while `main` still runs, a new grace period starts.
/// `main` must return before it expires.
///
/// # Signals
///
/// A second signal ends the process immediately, with three exceptions:
///
/// - A signal within the [repeat window](Self::repeat_window) after the first signal counts as the same request.
/// - The first signal after a [request without a signal](crate::request_stop) counts as the same request.
/// - SIGHUP does not end the process during the delay and the drain, with or without [`handle_sighup`](Self::handle_sighup). If the
///   terminal was closed, the tasks must still be able to finish. After the drain, SIGHUP limits how long `main` may take, as SIGTERM does.
///
/// The documentation of [`shutdown_signal`](crate::shutdown_signal) lists the signals. It also explains what happens to signals that the
/// parent process has ignored or blocked.
///
/// # Fork
///
/// A program can create the host and then fork, for example to become a daemon. In the child process, [`run`](Self::run) receives the
/// signals of the child, including signals that arrived between the fork and `run`. Fork before you call `run`, and before the program
/// starts threads. If a signal arrives in the microsecond of the fork itself, the child can hang. At this moment, a thread of the parent
/// may hold a lock, and no thread of the child releases it. To prevent this, block the signals during the fork, or fork before you create
/// the host.
///
/// # Several hosts
///
/// A request to stop applies to the whole process. If a host is created after the request, the host stops immediately, and has only the
/// rest of the grace period that started at the request. To prevent this, call [`forget_stop_request`](Self::forget_stop_request). A host
/// ends when its drain ends. While several hosts exist, only the newest host that has not ended reacts to a second signal. This is the host
/// whose `new` or `run` was called last. A host limits how long `main` may take only after all hosts have ended, and only if it ended last.
///
/// # Exit codes
///
/// | exit code | meaning |
/// | --- | --- |
/// | 0 | all registries drained within the grace period, and `main` returned in time; a lost task changes this code only if its loss starts the shutdown, or if the function of [`fail_if`](Self::fail_if) returns true |
/// | 1 | the grace period expired before the drain ended, `main` did not return in time, or the function of [`fail_if`](Self::fail_if) returned true or panicked |
/// | 2 | the host, the program or a task failed: see the list below |
/// | 101 | the program or a future of [`stop_on`](Self::stop_on) panicked |
/// | 130 | a second signal arrived after the [repeat window](Self::repeat_window) |
/// | 137 | SIGKILL ended the process, for example because the supervisor did not wait long enough; the host does not set this code |
///
/// The process exits with code 2 in these cases:
///
/// - The host failed to start.
/// - The program returned an error.
/// - A lost task started the shutdown of its registry. Such a task is [critical](Registry::critical), or its registry has
///   [`shutdown_on_panic`](background_tasks::RegistryBuilder::shutdown_on_panic) or
///   [`shutdown_on_failure`](background_tasks::RegistryBuilder::shutdown_on_failure). If a task is lost after the shutdown of its registry
///   has started, this loss does not change the exit code.
/// - A task with a [critical](Liveness::critical) handle reported no progress in time, and this started the shutdown.
///
/// If the code is 2 or 101, the process still drains before it exits. If several of the codes 1, 2 and 101 apply, the earliest failure
/// determines the code. For example, if the program returns an error and then the grace period expires, the code is 2.
///
/// If a service answers before its work is done, call [`fail_if`](Self::fail_if). Without `fail_if`, the process exits with code 0 even if
/// tasks were dropped before their end or were rejected.
///
/// # Output
///
/// The host reports the drain on stderr. After a request to stop, the first line names the signal or the function that asked. On a
/// terminal, the host shows a progress bar with the oldest tasks (feature `bar`). If stderr is not a terminal, the host writes a line at
/// the start, and a line with the oldest tasks every two seconds. The bar and the lines show no ages of services. At the end, a line shows
/// how many tasks ended with each outcome. If the program succeeds without a request to stop, no task is in flight, and no task was lost,
/// the host reports nothing.
///
/// With the feature `tracing` and a global subscriber, the host emits tracing events instead of lines. The events have no parent span. The
/// host emits one event for each of the 100 oldest stragglers of a registry. This event has the task fields of
/// [`TracingObserver`](https://docs.rs/background-tasks/latest/background_tasks/struct.TracingObserver.html) and the field
/// `task.is_abortable`. If the host has aborted the task but the task is still in flight, the event also has the field
/// `task.abort_requested`. A host that emits events shows the progress bar only after a call to `progress_bar(true)`.
///
/// A `TracingObserver` already logs the start and the end of the drain. If every registry has this observer, or another observer that [logs
/// the shutdown](background_tasks::Observer::logs_shutdown), the host does not log them again.
///
/// The reports name only tasks of [inspected](background_tasks::RegistryBuilder::inspect) registries. The host does not report each lost
/// task. To report each of them, give the registry an [`Observer`](background_tasks::Observer), for example
/// [`StderrObserver`](crate::StderrObserver).
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
    service: HostService,
    stop_requested: io::Result<ShutdownSignal>,
    second_signal_hook: SecondSignalHook,
    location: &'static Location<'static>,
}

impl Host {
    /// Creates the host of a registry, and installs the signal handlers. If the system refuses the handlers, [`run`](Self::run) reports the
    /// error.
    ///
    /// A signal that arrives between this call and [`run`](Self::run) is not lost: `run` handles it. In an async `main`, such as one with
    /// `#[tokio::main]`, the runtime has already started threads. In this case, a signal that arrives during this call, which takes a few
    /// microseconds, can be lost. To prevent this, create the host in a synchronous `main`, before the runtime.
    ///
    /// When the host is dropped, the signals have their default actions again, unless another host exists or the program has called
    /// [`shutdown_signal`](crate::shutdown_signal).
    #[track_caller]
    pub fn new<S>(registry: &Registry<S>) -> Self {
        let phases = Phases::new(registry.with_spawner(()));
        // This hook handles the second signal. It is set here and not only in `run`, so that a second signal ends a program that hangs
        // before `run`.
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
            service: HostService::default(),
            stop_requested: signals::install(),
            second_signal_hook,
            location: Location::caller(),
        }
    }

    /// Adds a registry. The host shuts this registry down after the earlier registries have drained.
    ///
    /// While the earlier registries drain, this registry stays open and accepts tasks from them. A typical order is: requests, then
    /// workers, then the tasks of the connection pool.
    ///
    /// The registries of a host can be [children](Registry::child) of one parent registry. Do not add the parent too. The summary of the
    /// parent includes the tasks of its drained children, so the host would count these tasks twice.
    ///
    /// If the earlier registries use up the whole grace period, the host shuts this registry down only when the grace period expires. Then
    /// the host immediately aborts the tasks of this registry. To prevent this, reserve time with
    /// [`then_with_reserve`](Self::then_with_reserve).
    pub fn then<S>(self, registry: &Registry<S>) -> Self {
        self.then_with_reserve(registry, Duration::ZERO)
    }

    /// Adds a registry as [`then`](Self::then) does, and reserves the last part of the [grace period](Self::grace) for this registry.
    ///
    /// The host shuts this registry down when the earlier registries have drained. If they take too long, the host shuts this registry down
    /// when only the reserve is left of the grace period. So a task of an earlier registry that does not end cannot use up the reserved
    /// time. When only the reserve is left, the host reports the stragglers of the earlier registries, but it aborts them only when the
    /// grace period expires.
    ///
    /// The reserves of several registries add up. For example, the grace period is 25 seconds, and two registries are added with reserves
    /// of 5 and 2 seconds. The host then shuts the first of the two down after at most 18 seconds, and the second after at most 23 seconds.
    /// If this sum is at least the grace period, the host shuts the first of the two down at the start of the drain.
    ///
    /// # Examples
    ///
    /// Workers have five seconds to put their jobs back into the queue, even if a request hangs:
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

    /// Sets the grace period: the longest time from the request to stop until all registries have drained. Default: 10 seconds.
    ///
    /// The request to stop can arrive before [`run`](Self::run). If the grace period has already expired when `run` starts, the host
    /// immediately aborts all tasks that can be aborted. If shutdown starts without a request to stop, the grace period starts with the
    /// shutdown. A time that the clock cannot represent, such as `Duration::MAX`, means that there is no limit.
    ///
    /// If the process is asked to stop only after the drain, a new grace period starts. `main` must return before it expires.
    ///
    /// The supervisor must wait at least two seconds longer than the grace period before it kills the process. The page
    /// [deployment](crate::deployment) explains the settings of supervisors. With a grace period of zero, the host immediately aborts all
    /// tasks that can be aborted.
    ///
    /// The default is too long for two signals of [Windows](crate::deployment#windows): the closing of the console and the shutdown of the
    /// system. For these signals, choose a grace period of at most 3 seconds.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.limits.grace = grace;
        self
    }

    /// Sets how long the program continues after a request to stop, before the drain starts. Default: zero.
    ///
    /// Use a delay if a load balancer must see that the service is not ready before the service stops accepting connections. At the start
    /// of the delay, the host reports the stop to systemd or Windows, and [`readiness`](Self::readiness) becomes false. During the delay,
    /// the registry's signal is not triggered, and new tasks can start. The delay is part of the [grace period](Self::grace), so choose a
    /// grace period that is longer than the delay. During the delay, the host does not request more time from systemd or Windows. So the
    /// delay must be shorter than `TimeoutStopSec` of the systemd unit, and on Windows shorter than 30 seconds.
    ///
    /// The drain starts earlier if the program ends, or if other code shuts a registry down, for example because a critical task was lost.
    /// If shutdown starts without a request to stop, there is no delay. A second signal ends the process during the delay too.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Returns a value that says whether the service is ready, for a readiness probe. The service is ready until the process is asked to
    /// stop or the first registry is shut down.
    #[must_use = "this returns a value for a readiness probe"]
    pub fn readiness(&self) -> Readiness {
        Readiness::new(self.phases.first().clone())
    }

    #[cfg(feature = "dashboard")]
    pub(crate) fn status(&self) -> Arc<HostStatus> {
        self.status.clone()
    }

    /// Makes the host watch a task or service. If the task or service reports no progress for too long, the host logs a warning or starts
    /// the shutdown; see [`Liveness`].
    ///
    /// Call this method once for each task. The host does not keep the handle alive, so it stops watching when the task drops the handle.
    pub fn liveness(mut self, liveness: &Liveness) -> Self {
        self.liveness.push(WatchedTask::new(liveness));
        self.status.add_liveness(liveness);
        self
    }

    /// Sets how long `main` may take to return after the drain. Default: 5 seconds if the process was asked to stop; otherwise no limit. A
    /// shutdown that the program or a task starts is not a request to stop.
    ///
    /// `main` needs this time for its clean-up and for the destructors of its variables. For example, the destructor of a tokio runtime
    /// waits for all blocking work, even if no registry counts the work. Such work is a read of stdin, or a blocking closure of a library.
    /// If `main` has not returned when this time or the grace period has expired, the host reports an error and ends the process. The exit
    /// code is 1, unless an earlier failure has set another exit code. If you call this method, the limit applies even if the process was
    /// not asked to stop.
    ///
    /// If the timeout is zero and the drain ends in time, [`run`](Self::run) does not return. Instead, the process exits when the last task
    /// has ended, with the exit code that `run` would have returned. If the drain misses the deadline, or if another host has not ended
    /// yet, `run` returns. Use zero if `main` does no more work after `run`, and the program reads stdin on a runtime. The destructor of the
    /// runtime would wait for this read.
    pub fn main_timeout(mut self, timeout: Duration) -> Self {
        self.limits.main_timeout = Some(timeout);
        self
    }

    /// Sets for how long after the first signal further signals count as the same request to stop. Default: 1 second.
    ///
    /// One request can arrive several times within milliseconds. For example, after Ctrl-C, the terminal sends SIGINT to the whole process
    /// group. A launcher in this group, such as `npm`, then sends SIGINT to the program a second time. Some supervisors signal a process
    /// and then its process group. A signal after the repeat window ends the process immediately. If the window is zero, the second signal
    /// always ends the process.
    pub fn repeat_window(mut self, window: Duration) -> Self {
        self.repeat_window = window;
        self.second_signal_hook = deadline::exit_on_second_signal(&self.phases, window);
        self
    }

    /// Asks the process to stop when the future `stop` resolves. The effect is the same as after a signal, with the same grace period, exit
    /// codes, and time for `main` after the drain. Use this method if something other than a signal must stop the program, such as a
    /// message of an orchestrator.
    ///
    /// [`run`](Self::run) polls the future together with the program, so the future can use the program's runtime. If a task blocks the
    /// executor, `run` cannot poll the future. The function [`request_stop`](crate::request_stop) stops the process even then. The
    /// documentation of `request_stop` describes the effect of further requests and signals.
    ///
    /// If the future panics, the process also stops, and its exit code is 101. If you call this method several times, the process stops
    /// when the first of the futures resolves.
    ///
    /// When the program has ended, the host drops the future. So the future has no effect if the end of the program makes it resolve or
    /// panic, for example because the program drops the sender of a channel.
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

    /// Registers the process as the Win32 service with this name. Call this method in the main function of the service. On other systems,
    /// this method does nothing.
    ///
    /// | state of the service | when |
    /// | --- | --- |
    /// | start pending | from this call on, with a wait hint of 30 seconds |
    /// | running | when [`run`](Self::run) starts the program, or later: see [`running_when_ready`](Self::running_when_ready) |
    /// | stop pending | when the process is asked to stop or shutdown starts. Whenever tasks have ended, the host increases the checkpoint. The wait hint is the rest of the grace period, at most about 30 seconds |
    /// | stopped | when `run` returns or is dropped, or before the host ends the process. The host reports an exit code other than 0 as the service-specific error |
    ///
    /// The controls stop, shutdown and preshutdown of Windows ask the process to stop, as a signal does. When the system shuts down, all
    /// services together have about 5 seconds to stop. This service accepts preshutdown, so by default it has 10 additional seconds, before
    /// these 5 seconds start. So choose a grace period of at most 8 seconds, or install the service with a longer preshutdown timeout. As
    /// soon as the host has reported that the service is stopped, Windows can end the process. Therefore clean up in the program, not after
    /// `run`.
    ///
    /// If Windows has not started the process as a service, `run` logs an error and returns exit code 2.
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
        self.stop_requested = self.stop_requested.and_then(|stop| self.service.register(name).map(|()| stop));
        self
    }

    /// Keeps the [Win32 service](Self::windows_service) in the state "start pending" until the program calls
    /// [`notify_ready`](crate::notify_ready). Default: the service has the state "running" as soon as [`run`](Self::run) starts the
    /// program.
    ///
    /// Services that depend on this service start only after the program is ready. The commands `net start` and `Start-Service` also wait
    /// until the program is ready, or report that the start has failed. Until the program is ready, Windows does not ask the service to
    /// stop. The host announces to Windows that the start takes at most 30 seconds. If the program needs more time, Windows can report that
    /// the service does not respond. If the program ends or shutdown starts before the program is ready, the service becomes "stop pending"
    /// and then "stopped".
    ///
    /// This method has no effect on other systems, and in a process that is not a service.
    #[cfg(feature = "windows-service")]
    pub fn running_when_ready(mut self) -> Self {
        self.service.wait_for_ready();
        self
    }

    /// Sets whether the process stops when Azure WebJobs creates its shutdown file. Default: true.
    ///
    /// WebJobs sends no signal. WebJobs sets the environment variable `WEBJOBS_SHUTDOWN_FILE` to the path of a file, and creates this file
    /// to stop the job. From [`run`](Self::run) until the file exists, a thread checks every tenth of a second. After the drain, the thread
    /// continues, so that the file also limits how long `main` may take. It ends when a newer host is created. If the variable is not set
    /// or empty, the host checks nothing. The default grace period is too long for WebJobs: see
    /// [deployment](crate::deployment#azure-webjobs).
    ///
    /// The file stays until it is removed. Until then, each host that checks the file stops, even after
    /// [`forget_stop_request`](Self::forget_stop_request).
    pub fn webjobs_file(mut self, is_handled: bool) -> Self {
        self.webjobs_file = is_handled;
        self
    }

    /// Makes the host treat SIGHUP as a request to stop, as it treats SIGTERM. The system sends SIGHUP to a process when its terminal is
    /// closed. Without this call, SIGHUP ends the process immediately, unless the delay or the drain has already started.
    ///
    /// A program that `nohup` has started ignores SIGHUP. To handle SIGHUP in this case on Linux, also call
    /// [`handle_ignored`](Self::handle_ignored). Windows has no SIGHUP, so this method has no effect on Windows.
    pub fn handle_sighup(mut self) -> Self {
        self.stop_requested = self.stop_requested.and_then(|_| signals::handle_sighup());
        self
    }

    /// Makes the host handle its signals even if the process ignored them when the program started. Without this call, such signals stay
    /// ignored on Linux, except SIGTERM, which the host always handles.
    ///
    /// `nohup` makes a program ignore SIGHUP, and a shell script makes its background jobs ignore SIGINT. On systems without
    /// `/proc/self/status`, the host always handles ignored signals; see [`shutdown_signal`](crate::shutdown_signal).
    pub fn handle_ignored(mut self) -> Self {
        self.stop_requested = self.stop_requested.and_then(|_| signals::handle_ignored());
        self
    }

    /// Forgets an earlier request to stop the process, so that this host runs until the next request arrives.
    ///
    /// Use this method in a process that runs several hosts one after the other, such as a test or a supervisor. After this call, earlier
    /// hosts that drained in time no longer limit how long `main` may take. This call does not reset a future of
    /// [`shutdown_signal`](crate::shutdown_signal) that has already resolved.
    pub fn forget_stop_request(mut self) -> Self {
        signals::forget_stop_request();
        self.stop_requested = self.stop_requested.and_then(|_| signals::install());
        self
    }

    /// Makes the process exit with code 1 if `is_failure` returns true. Default: lost tasks do not change the exit code. If the loss of a
    /// task starts the shutdown, the exit code is 2 even without this function.
    ///
    /// If all registries drain within the grace period, the host calls `is_failure` one time, on a thread of the host. If a registry does
    /// not drain in time, the host does not call `is_failure`. `is_failure` receives a summary of the tasks of all registries. If
    /// `is_failure` returns true, the last line that the host logs is an error. If an earlier failure has already set an exit code, that
    /// code stays. If `is_failure` panics, the process also exits with code 1.
    ///
    /// A second call replaces the function of the first call.
    ///
    /// The summary counts all tasks since the creation of the registries, and not only the tasks after the request to stop. In a service
    /// that runs for weeks, `!summary.is_clean()` is true after a single loss, such as one failed mail. Observers report each loss when it
    /// happens.
    ///
    /// # Examples
    ///
    /// This service responds before its work is done. The process exits with code 1 if a task did not run to its end. Observers report
    /// failed tasks when they fail, so failed tasks do not change the code:
    ///
    /// ```
    /// # use background_tasks::Registry;
    /// # use background_tasks_host::Host;
    /// # let registry = Registry::new(());
    /// let host = Host::new(&registry).fail_if(|summary| summary.unfinished() > 0);
    /// ```
    ///
    /// | program | condition |
    /// | --- | --- |
    /// | a service that starts its work with `run` | `summary.unfinished() > 0` |
    /// | a service with a limit, whose handlers answer with status 503 after a rejection | `summary.unfinished() > summary.rejected` |
    /// | the same, if a task that returned an error is a loss too | `summary.unfinished() + summary.failed > summary.rejected` |
    /// | a service with a `RequestLayer`, where a request is abandoned if its client disconnects | one of the above, but for a separate registry of the work: `move \|_\| work.summary().unfinished() > 0` |
    /// | a queue with a worker, and a batch program, where a failed item is a loss too | `!summary.is_clean()`, for the registry of the work |
    ///
    /// If operators or the program abort tasks, an abort is not a loss. In this case, compare `summary.unfinished()` with
    /// `summary.aborted`, or with `summary.aborted + summary.rejected`.
    pub fn fail_if(mut self, is_failure: impl FnOnce(&Summary) -> bool + Send + 'static) -> Self {
        self.fail_if = Box::new(is_failure);
        self
    }

    /// Shows or hides the progress bar of the drain. Default: the bar is shown, unless the host reports the drain as tracing events. If
    /// stderr is not a terminal, the bar is never shown.
    ///
    /// A tracing subscriber that writes to the terminal of the bar overwrites the bar. For example, `tracing_subscriber::fmt::init()`
    /// writes to stdout. Before you show the bar in a program with a subscriber, make the subscriber write to [`stderr`](crate::stderr()):
    /// `tracing_subscriber::fmt().with_writer(background_tasks_host::stderr).init()`. The lines of the subscriber then appear above the
    /// bar. Without the feature `tracing`, the host cannot detect a subscriber. Therefore, without this feature, use this writer for every
    /// subscriber, or hide the bar.
    #[cfg(feature = "bar")]
    pub fn progress_bar(mut self, is_shown: bool) -> Self {
        self.progress_bar = Some(is_shown);
        self
    }

    /// Runs the program and then drains the registries, in the steps that the documentation of [`Host`] lists.
    ///
    /// Return the exit code from `main`. If the system refuses a thread or the resources for signal handlers, the host cannot start. In
    /// this case, it logs the error, drops the program's future, drains the registries without a deadline, and returns exit code 2.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the program's future. If the drain has not started, the host leaves the registries open. If the drain has
    /// started, the registries that the host has shut down stay shut down, and their tasks continue. The host no longer waits for these
    /// tasks, does not abort them, and does not shut down later registries. After the drop, the signals have their default actions again,
    /// unless another host exists or the program has called [`shutdown_signal`](crate::shutdown_signal). With the default actions, the next
    /// SIGTERM or SIGINT ends the process. To continue without the host, call `shutdown_signal` before you drop the future.
    ///
    /// # Deadlocks
    ///
    /// The program must not await [`shutdown`](Registry::shutdown). During a shutdown, the registry counts the program as in flight, and
    /// `shutdown` waits until no task is in flight. So the program would wait for itself. For the same reason, the program must not await
    /// [`wait_idle`](Registry::wait_idle) after shutdown has started. To stop, the program can return or call
    /// [`start_shutdown`](Registry::start_shutdown). The host then drains the registries.
    pub async fn run<F>(mut self, program: F) -> ExitCode
    where
        F: Future<Output: TaskOutput>,
    {
        let state = Arc::new(HostState::new(self.location));
        self.second_signal_hook = deadline::exit_on_second_signal(&self.phases, self.repeat_window);
        let hook = self.second_signal_hook.key();
        systemd::start_host();
        // This process may be a forked child of the process that created the host. The child needs its own thread for signals.
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
                webjobs::watch(&state, hook)?;
            }
            drain::start(self.phases.clone(), settings, stop, hook, state.clone())
        });
        if let Err(error) = started {
            log(Level::Error, format_args!("failed to start the host: {error}"));
            drop(program);
            for registry in self.phases.registries() {
                registry.shutdown().await;
            }
            return FAILED.into();
        }
        self.service.report_started();
        let notify_on_drop = NotifyOnDrop(&state);
        let ended = async {
            state.run_program(program).await;
            state.finished().await;
        };
        let stop = async {
            let program_ended = async {
                state.program_ended().await;
                false
            };
            let asked = async {
                self.stop_on.await;
                true
            };
            // The end of the program is checked first, because it can make the future resolve or panic. The `async` block drops the
            // future, so that a panic of its destructor is caught too.
            let is_asked = AssertUnwindSafe(async { program_ended.or(asked).await }).catch_unwind().await;
            if is_asked.is_err() {
                state.set_exit_code(PANICKED);
            }
            if is_asked.unwrap_or(true) {
                signals::request_stop_by("`stop_on`");
            }
            pending::<()>().await;
        };
        ended.or(systemd::keep_watchdog_alive()).or(stop).await;
        // The destructors of `notify_on_drop` and of the hook must run only if the future of `run` is dropped before this point.
        std::mem::forget(notify_on_drop);
        self.second_signal_hook.keep();
        self.service.report_stopped(state.exit_code());
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
