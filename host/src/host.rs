use crate::signals::{self, AtSecond};
use crate::terminal::{Level, tell};
use crate::{drain, systemd};
use background_tasks::{Guard, Registry, ShutdownSignal, TaskOutput};
use futures_lite::FutureExt;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, Location};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What Rust gives an error that `main` returns, 1, is taken.
pub(crate) const FAILED: u8 = 2;
/// As Rust has it.
const PANICKED: u8 = 101;

/// Runs a program until it ends or the process is asked to stop, and then drains its registries.
///
/// [`run`](Self::run) does all of it:
///
/// 1. It polls the program's own future. At SIGTERM or SIGINT (see [`terminated`](crate::terminated) for Windows), when the program
///    has ended, or when somebody else shuts one of the registries down, the end begins.
/// 2. The registry is shut down, so its signal is on, and the program goes on until it ends by itself: a server that waits for the signal accepts nothing new
///    and finishes the requests that it is answering. Until it has ended it counts as in flight, under the name `program` (and then as
///    completed), so that what those requests start is accepted. It takes a place of a registry that has a
///    [limit](background_tasks::RegistryBuilder::max_in_flight); if there is none, that registry may have drained before the program has ended.
/// 3. The registry drains, then those of [`then`](Self::then), one after the other. The process is gone as soon as the last task is.
/// 4. If that takes longer than the [`grace`](Self::grace), those who hold it up are named, all registries are shut down, their tasks are
///    [aborted](Registry::abort) where they can be and the program's future is dropped. Half a second later it is over, and whoever is still there
///    is named again.
///
/// A process that was asked to stop, or missed the grace, is gone a second after the grace at the latest, whatever its executor and `main` do:
/// dropping a runtime waits for its blocking work, and a blocked executor for ever. A second signal ends it at once (but not SIGHUP). What the program has
/// printed is flushed before, if somebody reads it. All of this is the work of threads of the host's own.
///
/// | exit code | says |
/// | --- | --- |
/// | 0 | all registries drained within the grace |
/// | 1 | the grace was over first |
/// | 2 | the program returned an error, [critical](Registry::critical) work was lost and so began the end, or the host could not start |
/// | 101 | the program panicked |
/// | 130 | a second signal came |
///
/// The drain is told on stderr: on a terminal by a bar with the oldest tasks (feature `bar`), elsewhere in a line at the beginning, one
/// every two seconds, and one at the end. With the feature `tracing`, and a subscriber set for all threads, the lines are events. Of a
/// program that ends by itself with nothing in flight nothing is told. The tasks are known by name if their registry is
/// [inspected](background_tasks::RegistryBuilder::inspect), and each loss is told by its [`Observer`](background_tasks::Observer), for one
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
///         // Serve until `requests.signal()` is on. An error is told, and is the exit code after the drain.
///         Err("the port is in use")
///     }))
/// }
/// ```
#[must_use = "it does nothing until it runs"]
pub struct Host {
    registries: Vec<Registry<()>>,
    grace: Duration,
    signals: io::Result<ShutdownSignal>,
    at_second: AtSecond,
    site: &'static Location<'static>,
}

impl Host {
    /// Makes the host of a registry. The signals are waited for from here on, so begin `main` with it, before the runtime has threads: one that
    /// comes before [`run`](Self::run) is not lost. [`terminated`](crate::terminated) says more.
    #[track_caller]
    pub fn new<S>(registry: &Registry<S>) -> Self {
        let registries = vec![registry.with_spawner(())];
        // For a start-up that hangs.
        let at_second = drain::leave_at_second(&registries);
        Self { registries, grace: Duration::from_secs(10), signals: signals::install(false), at_second, site: Location::caller() }
    }

    /// Has another registry drained once those before have been: the workers after the requests, say, and the pool's own tasks after the workers.
    ///
    /// Until then it is open, and accepts what the others start.
    pub fn then<S>(mut self, registry: &Registry<S>) -> Self {
        self.registries.push(registry.with_spawner(()));
        self
    }

    /// Sets how long the end may take in all, from the signal on; 10 seconds unless it is set.
    ///
    /// Whoever stops the process must wait for a second longer than that before it kills: Kubernetes waits for
    /// `terminationGracePeriodSeconds`, 30, less what its `preStop` takes, and systemd for `TimeoutStopSec`, 90. With zero,
    /// what can be aborted is aborted at once.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Has SIGHUP, which comes when the terminal is closed, ask for the end too, rather than end the process there and then.
    pub fn hangup(mut self) -> Self {
        self.signals = self.signals.and_then(|_| signals::install(true));
        self
    }

    /// Runs the program, then ends it as the type's documentation says.
    ///
    /// The exit code is for `main` to return. When the host cannot start (the system refuses a thread, or what waiting for signals
    /// takes), that is told, the program's future is dropped, and the registries drain, for as long as that takes.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it drops the program's future and nothing is shut down or waited for.
    ///
    /// # Deadlocks
    ///
    /// The program must not wait for the registry to drain or to be idle (to await [`shutdown`](Registry::shutdown) or
    /// [`wait_idle`](Registry::wait_idle)) once the end has begun: it is in flight itself. That is the host's to do.
    pub async fn run<F>(mut self, program: F) -> ExitCode
    where
        F: Future<Output: TaskOutput>,
    {
        let stage = Arc::new(Stage::new(self.site));
        self.at_second = drain::leave_at_second(&self.registries);
        let started = self.signals.and_then(|asked| drain::start(self.registries.clone(), self.grace, asked, stage.clone()));
        if let Err(error) = started {
            tell(Level::Error, format_args!("the program cannot be hosted: {error}"));
            drop(program);
            for registry in self.registries {
                registry.shutdown().await;
            }
            return FAILED.into();
        }
        let running = Running(&stage);
        let ended = async {
            stage.end(perform(&stage, program).await);
            stage.over.signal().await;
        };
        ended.or(systemd::alive()).await;
        // They are for a `run` that is dropped earlier.
        std::mem::forget((running, self.at_second));
        stage.code.load(Ordering::Relaxed).into()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("registries", &self.registries).field("grace", &self.grace).finish_non_exhaustive()
    }
}

/// Polls the program until it ends or is aborted. It and its destructors are gone then.
async fn perform<F: Future<Output: TaskOutput>>(stage: &Stage, program: F) -> Outcome {
    let outcome = async {
        let output = stage.aborted.signal().run_until_shutdown(program).await;
        let error = output.as_ref().and_then(TaskOutput::error);
        error.map(|error| format!("{error:#}"))
    };
    match AssertUnwindSafe(outcome).catch_unwind().await {
        Ok(None) => Outcome { code: 0, error: None },
        Ok(error) => Outcome { code: FAILED, error },
        // The panic's hook has told it.
        Err(payload) => {
            // Its destructor may panic too.
            std::mem::forget(payload);
            Outcome { code: PANICKED, error: None }
        }
    }
}

struct Outcome {
    code: u8,
    error: Option<String>,
}

/// What the program's task and the drain's thread tell each other.
pub(crate) struct Stage {
    program: Mutex<Program>,
    /// The program's own, which the drain tells: telling may take its time.
    error: Mutex<Option<String>>,
    /// Where the program is told to have started.
    site: &'static Location<'static>,
    /// The program has ended.
    ended: Registry<()>,
    /// It has to, as the grace is over.
    aborted: Registry<()>,
    /// The drain has ended.
    over: Registry<()>,
    /// The first that is not 0 stays.
    code: AtomicU8,
}

enum Program {
    Runs,
    /// The end has begun; the registry accepts work for as long as the program runs.
    Ends {
        _in_flight: Guard,
    },
    Ended,
    /// Nobody waits for its end any more.
    Dropped,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    fn new(site: &'static Location<'static>) -> Self {
        let flag = || Registry::new(());
        let (program, error) = (Mutex::new(Program::Runs), Mutex::new(None));
        Self { program, error, site, ended: flag(), aborted: flag(), over: flag(), code: AtomicU8::new(0) }
    }

    /// Has the program count as in flight in this registry, if it runs; returns one of its own in which it does if this one has drained, or is full.
    pub(crate) fn hold(&self, registry: &Registry<()>) -> Option<Registry<()>> {
        let runs = |program: &Program| matches!(program, Program::Runs);
        if !runs(&lock(&self.program)) {
            return None;
        }
        let count = |registry: &Registry<()>| registry.named("program").location(self.site).guard().ok();
        // Not under the lock: observers may be told.
        let held = if registry.is_drained() { None } else { count(registry) };
        let own = held.is_none().then(|| Registry::builder(()).inspect().build());
        let mut ends = held.or_else(|| count(own.as_ref()?)).map(|guard| Program::Ends { _in_flight: guard });
        let mut program = lock(&self.program);
        if let (true, Some(ends)) = (runs(&program), &mut ends) {
            std::mem::swap(&mut *program, ends);
        }
        own
    }

    fn end(&self, Outcome { code, error }: Outcome) {
        self.exit_with(code);
        *lock(&self.error) = error;
        let was = std::mem::replace(&mut *lock(&self.program), Program::Ended);
        drop(was);
        self.ended.shutdown();
    }

    /// Takes the program's error.
    pub(crate) fn error(&self) -> Option<String> {
        lock(&self.error).take()
    }

    pub(crate) fn ended(&self) -> ShutdownSignal {
        self.ended.signal()
    }

    /// Ends the program where it waits.
    pub(crate) fn abort(&self) {
        self.aborted.shutdown();
    }

    /// Returns whether somebody waits for the end.
    pub(crate) fn is_awaited(&self) -> bool {
        !matches!(*lock(&self.program), Program::Dropped)
    }

    pub(crate) fn exit_with(&self, code: u8) {
        let _ = self.code.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_shutting_down()
    }

    pub(crate) fn finish(&self) -> u8 {
        self.over.shutdown();
        self.code.load(Ordering::Relaxed)
    }
}

/// Tells the drain when `run` is dropped.
struct Running<'a>(&'a Stage);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let was = std::mem::replace(&mut *lock(&self.0.program), Program::Dropped);
        drop(was);
        self.0.ended.shutdown();
    }
}
