//! Checks whether tasks report progress in time.

use crate::drain::MIN_CHECK_INTERVAL;
use crate::output_thread::OutputThread;
use crate::phases::Phases;
use crate::terminal::Level;
use background_tasks::TaskInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// The time between two checks is never shorter than `MIN_INTERVAL`, and never longer than `MAX_INTERVAL`.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// A handle through which a task or service reports its progress to the [`Host`](crate::Host).
///
/// A task can wait forever, for example if a server no longer answers. Such a task does not end, so it does not count as lost, and
/// observers do not report it. A `Liveness` handle detects such a task. If a task with a handle reports no progress for longer than its
/// timeout, the host logs a warning. If the handle has the name of a service, or of a task in an
/// [inspected](background_tasks::RegistryBuilder::inspect) registry, the warning also contains the call site. When the task reports
/// progress again, the host logs a second line. If a task with a [critical](Self::critical) handle exceeds its timeout, the host starts the
/// shutdown, and the process exits with code 2 after the drain.
///
/// Pass a reference to the handle to [`Host::liveness`](crate::Host::liveness), and move the handle into the task. All clones of a handle
/// report the progress of the same task.
///
/// The timeout starts when the host's [`run`](crate::Host::run) starts, even if the task starts later. Each report restarts the timeout
/// from zero. The host checks a handle until its last clone is dropped, usually because the task ends.
///
/// If the handle has the name of a [service](background_tasks::Registry::service), the timeout cannot expire while the service waits for
/// its next run. The timeout restarts from zero with this run. The host finds a service by its name, and checks only the first service with
/// this name, so give each watched service its own name.
///
/// If the whole process was suspended, for example by SIGSTOP or `docker pause`, its tasks cannot report progress. So if the time between
/// two checks is longer than half of the timeout and longer than 200 milliseconds, the timeout restarts from zero, unless the task is
/// already late.
///
/// After the request to stop, tasks end. In a registry that is not inspected, the host cannot distinguish a late task from a task that has
/// ended. Therefore, from the request to stop until the end of the drain, the host reports only late services and late tasks of inspected
/// registries. During this time, critical handles only cause warnings, because the process already stops.
///
/// The host checks handles on a separate thread, so it also reports a task that blocks the executor. The time between two checks is a
/// quarter of the shortest timeout of all handles. It is at most one second and at least 10 milliseconds. During the drain, it is at least
/// about 100 milliseconds.
///
/// # Examples
///
/// ```no_run
/// # use background_tasks::{Registry, SmolSpawner};
/// # use background_tasks_host::{Host, Liveness};
/// # use std::{process::ExitCode, time::Duration};
/// # async fn import_next() {}
/// fn main() -> ExitCode {
///     let registry = Registry::builder(SmolSpawner).inspect().build();
///     let liveness = Liveness::new("importer", Duration::from_secs(60)).critical();
///     let host = Host::new(&registry).liveness(&liveness);
///     let signal = registry.signal();
///     registry.named("importer").run(async move {
///         while signal.run_until_shutdown(import_next()).await.is_some() {
///             liveness.report_progress();
///         }
///     });
///     smol::block_on(host.run(registry.signal()))
/// }
/// ```
///
/// Each run of a service needs its own clone of the handle:
///
/// ```no_run
/// # use background_tasks::{Registry, Restart, SmolSpawner};
/// # use background_tasks_host::Liveness;
/// # async fn import_next() {}
/// # fn start(registry: Registry<SmolSpawner>, liveness: Liveness) {
/// registry.named("importer").service(Restart::on_failure(), move || {
///     let liveness = liveness.clone();
///     async move {
///         loop {
///             import_next().await;
///             liveness.report_progress();
///         }
///     }
/// });
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Liveness(Arc<Progress>);

#[derive(Debug)]
struct Progress {
    name: &'static str,
    timeout: Duration,
    is_critical: bool,
    created: Instant,
    /// The time of the last report, in microseconds since the handle was created.
    reported: AtomicU64,
    /// Whether the last check found that the task is late.
    is_late: AtomicBool,
}

impl Liveness {
    /// Creates a handle for the task or service with this [name](background_tasks::Registry::named). `timeout` is the longest allowed time
    /// between two reports of progress. The checks take place at intervals, so a task with a timeout of zero is late at the first check.
    pub fn new(name: &'static str, timeout: Duration) -> Self {
        Self::with(name, timeout, false, Instant::now())
    }

    /// Makes the host start the shutdown if the task reports no progress in time.
    ///
    /// This method returns a new handle, which does not share its reports with clones of the old handle. So call this method before you
    /// clone the handle and before you pass it to [`Host::liveness`](crate::Host::liveness).
    #[must_use = "this returns the critical handle"]
    pub fn critical(self) -> Self {
        let Progress { name, timeout, created, .. } = *self.0;
        Self::with(name, timeout, true, created)
    }

    fn with(name: &'static str, timeout: Duration, is_critical: bool, created: Instant) -> Self {
        let (reported, is_late) = (AtomicU64::new(0), AtomicBool::new(false));
        Self(Arc::new(Progress { name, timeout, is_critical, created, reported, is_late }))
    }

    pub(crate) fn downgrade(&self) -> WeakLiveness {
        WeakLiveness(Arc::downgrade(&self.0))
    }

    /// Reports progress. This method only reads the clock and stores the time, so it is cheap enough to call for each item of work.
    pub fn report_progress(&self) {
        let elapsed = self.0.created.elapsed().as_micros();
        self.0.reported.store(u64::try_from(elapsed).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

#[cfg(feature = "dashboard")]
impl Liveness {
    pub(crate) fn name(&self) -> &'static str {
        self.0.name
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.0.timeout
    }

    pub(crate) fn is_late(&self) -> bool {
        self.0.is_late.load(Ordering::Relaxed)
    }
}

/// The weak reference with which dashboards read a handle. The reference does not keep the handle alive.
#[cfg_attr(not(feature = "dashboard"), expect(dead_code, reason = "only dashboards show late tasks"))]
pub(crate) struct WeakLiveness(Weak<Progress>);

impl WeakLiveness {
    #[cfg(feature = "dashboard")]
    pub(crate) fn upgrade(&self) -> Option<Liveness> {
        self.0.upgrade().map(Liveness)
    }
}

/// Checks whether tasks have reported progress in time.
pub(crate) struct LivenessChecks {
    tasks: Vec<WatchedTask>,
    /// The thread that writes the lines of the host. `None` if there are no tasks to check. The drain then starts the thread.
    output: Option<OutputThread>,
    /// The time of the last check.
    checked: Instant,
}

/// The data that the host stores for a handle. The handle itself belongs to the task.
pub(crate) struct WatchedTask {
    progress: Weak<Progress>,
    /// The timeout counts from this time or from the last report, whichever is later. This is the time at which the host started, at which
    /// the process last continued after a stop, or, for a service, at which it last started to run.
    not_before: Instant,
    restarts: u64,
    is_late: bool,
    /// Whether a check during the drain has found no task with this name.
    has_ended: bool,
}

impl WatchedTask {
    pub(crate) fn new(liveness: &Liveness) -> Self {
        Self { progress: Arc::downgrade(&liveness.0), not_before: Instant::now(), restarts: 0, is_late: false, has_ended: false }
    }
}

impl LivenessChecks {
    pub(crate) fn new(tasks: Vec<WatchedTask>) -> Self {
        let checked = Instant::now();
        let mut checks = Self { output: (!tasks.is_empty()).then(OutputThread::start), tasks, checked };
        checks.tasks.iter_mut().for_each(|task| task.not_before = checked);
        checks
    }

    /// Returns the output for the lines of the drain. The lines about late tasks have the same output, so no line overtakes them.
    pub(crate) fn output(&self) -> OutputThread {
        self.output.clone().unwrap_or_else(OutputThread::start)
    }

    /// Waits until the lines about late tasks have been written, or until the timeout has expired.
    pub(crate) fn flush(&self, timeout: Duration) {
        self.output.iter().for_each(|output| output.flush(timeout));
    }

    /// Returns the time of the next check. Returns `None` if there is nothing to check.
    pub(crate) fn next(&self) -> Option<Instant> {
        Instant::now().checked_add(self.interval()?)
    }

    /// Returns the time between two checks. Returns `None` if there is nothing to check.
    pub(crate) fn interval(&self) -> Option<Duration> {
        let watched = self.tasks.iter().filter(|task| !task.has_ended);
        let shortest = watched.filter_map(|task| Some(task.progress.upgrade()?.timeout)).min()?;
        Some((shortest / 4).clamp(MIN_INTERVAL, MAX_INTERVAL))
    }

    /// Logs each task that has become late or is no longer late. Returns whether a critical task has become late.
    pub(crate) fn check(&mut self, phases: &Phases) -> bool {
        self.check_at(Instant::now(), phases, false)
    }

    /// Checks the tasks as [`check`](Self::check) does, but during the delay and the drain. A late critical task then has no further
    /// effect.
    pub(crate) fn check_in_drain(&mut self, phases: &Phases) {
        self.check_at(Instant::now(), phases, true);
    }

    fn check_at(&mut self, now: Instant, phases: &Phases, in_drain: bool) -> bool {
        let Some(output) = &self.output else { return false };
        let unchecked = now.saturating_duration_since(std::mem::replace(&mut self.checked, now));
        let mut starts_shutdown = false;
        for task in &mut self.tasks {
            starts_shutdown |= task.check(now, unchecked, phases, output, in_drain);
        }
        starts_shutdown
    }
}

impl WatchedTask {
    /// Checks one task. `unchecked` is the time since the last check. Returns whether the host must start the shutdown because of this task.
    fn check(&mut self, now: Instant, unchecked: Duration, phases: &Phases, output: &OutputThread, in_drain: bool) -> bool {
        let Some(progress) = self.progress.upgrade().filter(|_| !self.has_ended) else { return false };
        // The next check comes after a quarter of the timeout. If it comes much later, the process was suspended, and the task too.
        let was_stopped = unchecked > (progress.timeout / 2).max(MIN_CHECK_INTERVAL * 2);
        if was_stopped && !self.is_late {
            self.not_before = now;
        }
        let service = phases.service(progress.name);
        if let Some(service) = &service {
            let has_run_again = std::mem::replace(&mut self.restarts, service.restarts) != service.restarts;
            if has_run_again || !service.is_running {
                self.not_before = now;
            }
        }
        let reported = progress.created + Duration::from_micros(progress.reported.load(Ordering::Relaxed));
        let since = now.saturating_duration_since(reported.max(self.not_before));
        let is_late = since > progress.timeout;
        if std::mem::replace(&mut self.is_late, is_late) == is_late {
            return false;
        }
        // A late service can have ended its run without a report of progress.
        let recovery =
            service.as_ref().filter(|_| now.saturating_duration_since(reported) > progress.timeout).map(ToString::to_string);
        let task = service.map(|service| service.task).or_else(|| phases.task(progress.name));
        // During the drain, tasks end, but a clone of a handle can outlive its task. If no task with this name is found, the task is
        // treated as ended.
        self.has_ended = in_drain && task.is_none();
        progress.is_late.store(is_late && !self.has_ended, Ordering::Relaxed);
        if self.has_ended {
            return false;
        }
        let starts_shutdown = is_late && progress.is_critical && !in_drain;
        let task = task.map_or_else(|| progress.name.to_owned(), |task: TaskInfo| task.to_string());
        match (is_late, starts_shutdown) {
            (true, true) => {
                output.log(Level::Error, format!("shutting down because {task} has reported no progress for {since:.1?}"));
            }
            (true, false) => output.log(Level::Warn, format!("{task} has reported no progress for {since:.1?}")),
            (false, _) => output.log(Level::Info, recovery.unwrap_or_else(|| format!("{task} reports progress again"))),
        }
        starts_shutdown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use background_tasks::{Registry, Restart, SmolSpawner};
    use std::thread::sleep;

    const TIMEOUT: Duration = Duration::from_secs(60);
    /// The time between two checks.
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Checks one critical task at times that the test chooses.
    struct Checks {
        inner: LivenessChecks,
        now: Instant,
        phases: Phases,
    }

    impl Checks {
        fn new(liveness: &Liveness, registry: &Registry<SmolSpawner>) -> Self {
            let inner = LivenessChecks::new(vec![WatchedTask::new(liveness)]);
            Self { now: inner.checked, inner, phases: Phases::new(registry.with_spawner(())) }
        }

        /// Checks the task after this time. Returns whether the shutdown must start.
        fn check_after(&mut self, time: Duration) -> bool {
            self.now += time;
            self.inner.check_at(self.now, &self.phases, false)
        }

        /// Checks the task every second. Returns whether the shutdown must start.
        fn check_for(&mut self, time: Duration) -> bool {
            (0..time.as_secs()).any(|_| self.check_after(INTERVAL))
        }

        fn is_late(&self) -> bool {
            self.inner.tasks[0].is_late
        }
    }

    #[test]
    fn stop_of_the_process_restarts_the_timeout() {
        let liveness = Liveness::new("importer", TIMEOUT).critical();
        let mut checks = Checks::new(&liveness, &Registry::new(SmolSpawner));
        assert!(!checks.check_for(TIMEOUT / 2));
        assert!(!checks.check_after(TIMEOUT * 2));
        assert!(!checks.check_for(TIMEOUT));
        assert!(checks.check_after(INTERVAL));
        // The task did not report progress, so it stays late.
        assert!(!checks.check_after(TIMEOUT * 2) && checks.is_late());
    }

    #[test]
    fn timeout_of_zero_expires_at_the_first_check() {
        let liveness = Liveness::new("importer", Duration::ZERO).critical();
        let mut checks = Checks::new(&liveness, &Registry::new(SmolSpawner));
        assert!(checks.check_after(MIN_INTERVAL));
    }

    #[test]
    fn next_run_of_a_service_restarts_the_timeout() {
        let registry = Registry::new(SmolSpawner);
        let (failures, failure) = smol::channel::unbounded();
        let restart = Restart::on_failure().backoff(Duration::ZERO, Duration::ZERO);
        registry.named("importer").service(restart, move || {
            let failure = failure.clone();
            async move { failure.recv().await.map_or(Ok(()), |()| Err("broken")) }
        });
        let liveness = Liveness::new("importer", TIMEOUT).critical();
        let mut checks = Checks::new(&liveness, &registry);
        let start_next_run = |restarts| {
            failures.try_send(()).unwrap();
            while registry.services().pop().is_none_or(|service| service.restarts < restarts || !service.is_running) {
                sleep(Duration::from_millis(1));
            }
        };
        assert!(!checks.check_for(TIMEOUT));
        start_next_run(1);
        assert!(!checks.check_for(TIMEOUT + INTERVAL));
        // A run that is too long is late, and the next run is not.
        assert!(checks.check_after(INTERVAL) && checks.is_late());
        start_next_run(2);
        assert!(!checks.check_for(TIMEOUT + INTERVAL) && !checks.is_late());
        assert!(checks.check_after(INTERVAL));
    }
}
