use crate::program::{FAILED, HostState, NotifyOnDrop};
use crate::signals::{self, SecondSignalHook};
use crate::terminal::{Level, log};
use crate::{deadline, drain, phases::Phases, systemd};
use background_tasks::{Registry, ShutdownSignal, TaskOutput};
use futures_lite::FutureExt;
use std::fmt;
use std::io;
use std::panic::Location;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Runs a program until it ends or the process is asked to stop, and then drains its registries.
///
/// [`run`](Self::run) takes these steps:
///
/// 1. It polls the program's future. Shutdown starts when SIGTERM or SIGINT arrives (see [`shutdown_signal`](crate::shutdown_signal) for
///    Windows), when the program has ended, or when one of the registries is shut down by other code.
/// 2. It shuts the first registry down, which triggers the registry's signal. The program continues until it ends: a server that waits for the
///    signal accepts no new connections and finishes its current requests. Meanwhile the program counts as in flight, under the name `program`,
///    so tasks that these requests start are accepted. The program takes a permit of a registry that has a
///    [limit](background_tasks::RegistryBuilder::max_in_flight). If no permit is free, this registry may drain before the program has ended.
/// 3. It drains the first registry, then each registry of [`then`](Self::then) in order. The process exits as soon as the last task has ended.
/// 4. If the drain takes longer than the [grace period](Self::grace), it reports the stragglers by name, shuts all registries down,
///    [aborts](Registry::abort) the tasks that can be aborted, and drops the program's future. Half a second later it stops waiting, and reports the
///    remaining stragglers.
///
/// A process that was asked to stop, or that missed the deadline, exits at most one second after the deadline. Nothing in `main` or in the
/// executor delays this exit: neither a runtime's destructor that waits for blocking work, nor an executor that is blocked forever. A second
/// signal, other than SIGHUP, ends the process immediately. Before the exit, the host flushes stdout, unless nobody reads it. The host uses
/// separate threads for all of this.
///
/// | exit code | meaning |
/// | --- | --- |
/// | 0 | all registries drained within the grace period |
/// | 1 | the grace period expired first |
/// | 2 | the program returned an error, the loss of a [critical](Registry::critical) task started the shutdown, or the host failed to start |
/// | 101 | the program panicked |
/// | 130 | a second signal arrived |
///
/// The host reports the drain on stderr. On a terminal it shows a progress bar with the oldest tasks (feature `bar`). Elsewhere it writes a line
/// at the start, a line every two seconds, and a line at the end. With the feature `tracing` and a global subscriber, the lines are events. If a
/// program ends with nothing in flight and without a signal, the host reports nothing.
///
/// Tasks appear by name if their registry is [inspected](background_tasks::RegistryBuilder::inspect). The registry's
/// [`Observer`](background_tasks::Observer) reports each loss, for example [`StderrObserver`](crate::StderrObserver).
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
    grace: Duration,
    stop_requested: io::Result<ShutdownSignal>,
    second_signal_hook: SecondSignalHook,
    location: &'static Location<'static>,
}

impl Host {
    /// Returns the host of a registry, and installs the signal handlers.
    ///
    /// Create the host at the beginning of `main`, before the runtime starts threads: then no signal that arrives before [`run`](Self::run) is
    /// lost. See [`shutdown_signal`](crate::shutdown_signal).
    #[track_caller]
    pub fn new<S>(registry: &Registry<S>) -> Self {
        let phases = Phases::new(registry.with_spawner(()));
        // A second signal also ends a start-up that hangs.
        let second_signal_hook = deadline::exit_on_second_signal(&phases);
        Self {
            phases,
            grace: Duration::from_secs(10),
            stop_requested: signals::install(false),
            second_signal_hook,
            location: Location::caller(),
        }
    }

    /// Adds a registry that is shut down after the registries before it have drained.
    ///
    /// Until then it stays open, and accepts the tasks that the earlier registries' tasks start. A typical order: requests, then workers, then
    /// the tasks of the connection pool.
    pub fn then<S>(mut self, registry: &Registry<S>) -> Self {
        self.phases.push(registry.with_spawner(()));
        self
    }

    /// Sets the grace period: the longest time from the shutdown signal until the last registry has drained. Default: 10 seconds.
    ///
    /// The supervisor must wait at least one second longer before it kills the process. Kubernetes waits `terminationGracePeriodSeconds` (default:
    /// 30) less the time of the `preStop` hook; systemd waits `TimeoutStopSec` (default: 90). With a grace period of zero, tasks that can be
    /// aborted are aborted immediately.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Makes SIGHUP, which a closed terminal sends, start the shutdown too. Without this call SIGHUP ends the process.
    pub fn handle_sighup(mut self) -> Self {
        self.stop_requested = self.stop_requested.and_then(|_| signals::install(true));
        self
    }

    /// Runs the program and then drains the registries, in the steps that the documentation of [`Host`] lists.
    ///
    /// Return the exit code from `main`. If the host fails to start, because the system refuses a thread or the resources for signal handlers, it
    /// logs the error, drops the program's future, and drains the registries without a deadline.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future drops the program's future. Nothing is shut down or drained.
    ///
    /// # Deadlocks
    ///
    /// The program must not await [`shutdown`](Registry::shutdown) or [`wait_idle`](Registry::wait_idle) once shutdown has started: the program
    /// itself is in flight, so both wait for the program. The host drains the registries.
    pub async fn run<F>(mut self, program: F) -> ExitCode
    where
        F: Future<Output: TaskOutput>,
    {
        let state = Arc::new(HostState::new(self.location));
        self.second_signal_hook = deadline::exit_on_second_signal(&self.phases);
        let started = self.stop_requested.and_then(|stop| drain::start(self.phases.clone(), self.grace, stop, state.clone()));
        if let Err(error) = started {
            log(Level::Error, format_args!("failed to start the host: {error}"));
            drop(program);
            for registry in self.phases.registries() {
                registry.shutdown().await;
            }
            return FAILED.into();
        }
        let notify_on_drop = NotifyOnDrop(&state);
        let ended = async {
            state.run_program(program).await;
            state.finished().await;
        };
        ended.or(systemd::keep_watchdog_alive()).await;
        // Both are for a `run` that is dropped before this point. The hook stays installed until the process exits.
        std::mem::forget((notify_on_drop, self.second_signal_hook));
        state.exit_code().into()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("registries", &self.phases.registries()).field("grace", &self.grace).finish_non_exhaustive()
    }
}
