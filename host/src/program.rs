//! Runs the program of a host, and stores the state and the outcome of the program.

use crate::output_thread::{LAST_LINES_TIMEOUT, OutputThread};
use crate::sync::{Flag, lock};
use crate::terminal::Level;
use background_tasks::{Registry, Spawner, TaskOutput};
use futures_lite::FutureExt;
use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, Location, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};

/// The exit code if the host, the program or a task failed. The code 1 has other meanings: Rust uses it if `main` returns an error, and the
/// host uses it for a missed deadline.
pub(crate) const FAILED: u8 = 2;
/// The exit code of a panic. Rust uses the same code.
pub(crate) const PANICKED: u8 = 101;

/// The state that [`Host::run`](crate::Host::run) shares with the threads of the drain.
pub(crate) struct HostState {
    program: Mutex<ProgramState>,
    /// The program's error. `None` if there is no error, or after the host has reported it.
    error: Mutex<Option<String>>,
    /// The output of the drain. `None` until the drain starts.
    output: Mutex<Option<OutputThread>>,
    /// The call site of the program in reports.
    location: &'static Location<'static>,
    /// Set when the program has ended, or when the future of `run` was dropped.
    program_ended: Flag,
    /// Set when the program must be dropped, because the grace period has expired or the program's task was aborted.
    program_aborted: Flag,
    /// Set when the drain starts to report the stragglers.
    deadline_reported: Flag,
    /// Set when the drain has ended.
    finished: Flag,
    /// The exit code. The first code other than 0 stays.
    exit_code: AtomicU8,
}

enum ProgramState {
    Running,
    /// Shutdown has started. Until the program ends, its task prevents a registry from draining.
    Draining(ProgramTask),
    Ended,
    /// `run` was dropped.
    Dropped,
}

/// How the program ended.
enum Outcome {
    Completed,
    Failed(String),
    Panicked(Box<dyn Any + Send>),
    Aborted,
}

/// Represents the program as a task of a registry. The task is in flight until [`end`](Self::end) is called. The registry then counts the
/// program's outcome.
///
/// The task does not contain the program's future, because `run` polls that future itself. The future of this task only returns the
/// outcome.
struct ProgramTask {
    /// `None` if the task was aborted before its first poll.
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl ProgramTask {
    /// Starts a task that counts the program as in flight. Returns `None` if the registry rejects the task. If the task is aborted, the
    /// registry calls the waker `on_abort`.
    fn start(registry: &Registry<()>, location: &'static Location<'static>, on_abort: &Waker) -> Option<Self> {
        let outcome = Arc::new(Mutex::new(None));
        let program_outcome = outcome.clone();
        let ended = poll_fn(move |_| match lock(&program_outcome).take() {
            None | Some(Outcome::Aborted) => Poll::Pending,
            Some(Outcome::Completed) => Poll::Ready(Ok(())),
            Some(Outcome::Failed(error)) => Poll::Ready(Err(error)),
            // The panic hook has already reported this panic. `resume_unwind` does not call the hook a second time.
            Some(Outcome::Panicked(payload)) => resume_unwind(payload),
        });
        let keeper = TaskKeeper::default();
        registry.with_spawner(&keeper).named("program").location(location).without_permit().try_run(ended).ok()?;
        let mut task = lock(&keeper.0).take()?;
        // The first poll stores the waker `on_abort`. If the registry has already aborted the task, the poll returns `Ready` and stores no
        // waker.
        let is_aborted = task.as_mut().poll(&mut Context::from_waker(on_abort)).is_ready();
        if is_aborted {
            on_abort.wake_by_ref();
        }
        Some(Self { task: (!is_aborted).then_some(task), outcome })
    }

    /// Ends the task, so that the program is no longer in flight. If the program was aborted, an inspected registry counts it as aborted,
    /// and any other registry counts it as abandoned.
    fn end(mut self, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        if let Some(task) = &mut self.task {
            let _ = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// A spawner that does not run a task, but stores it. `ProgramTask::start` takes the stored task.
#[derive(Default)]
struct TaskKeeper(Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>);

impl Spawner for TaskKeeper {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        *lock(&self.0) = Some(Box::pin(task));
    }
}

impl HostState {
    pub(crate) fn new(location: &'static Location<'static>) -> Self {
        Self {
            program: Mutex::new(ProgramState::Running),
            error: Mutex::new(None),
            output: Mutex::new(None),
            location,
            program_ended: Flag::default(),
            program_aborted: Flag::default(),
            deadline_reported: Flag::default(),
            finished: Flag::default(),
            exit_code: AtomicU8::new(0),
        }
    }

    /// Runs the program until it ends or is aborted, and stores its outcome. When this method returns, the program's future has been
    /// dropped.
    pub(crate) async fn run_program<F: Future<Output: TaskOutput>>(&self, program: F) {
        let outcome = self.outcome_of(program).await;
        match &outcome {
            Outcome::Completed | Outcome::Aborted => {}
            Outcome::Failed(error) => {
                self.set_exit_code(FAILED);
                *lock(&self.error) = Some(error.clone());
                // The error is reported before `end`. The call to `end` can end the drain, and no line must follow the line about the end
                // of the drain.
                self.report_error();
            }
            Outcome::Panicked(_) => self.set_exit_code(PANICKED),
        }
        match (self.replace(ProgramState::Ended), outcome) {
            (ProgramState::Draining(task), outcome) => task.end(outcome),
            // The payload is leaked, because its destructor could panic too.
            (_, Outcome::Panicked(payload)) => std::mem::forget(payload),
            _ => {}
        }
        self.program_ended.set();
    }

    async fn outcome_of<F: Future<Output: TaskOutput>>(&self, program: F) -> Outcome {
        let outcome = async {
            let completed = async { Some(program.await) };
            let aborted = async {
                self.program_aborted.wait().await;
                None
            };
            let Some(output) = completed.or(aborted).await else { return Outcome::Aborted };
            output.error().map_or(Outcome::Completed, |error| Outcome::Failed(format!("{error:#}")))
        };
        AssertUnwindSafe(outcome).catch_unwind().await.unwrap_or_else(Outcome::Panicked)
    }

    /// If the program still runs, makes this registry count it as in flight.
    ///
    /// The program takes no permit, so a full registry counts it too. If the registry has already drained, this method creates a new
    /// registry that counts the program, and returns it.
    pub(crate) fn keep_in_flight(self: &Arc<Self>, registry: &Registry<()>) -> Option<Registry<()>> {
        let is_running = |program: &ProgramState| matches!(program, ProgramState::Running);
        if !is_running(&lock(&self.program)) {
            return None;
        }
        // The lock is not held here, because the start of a task can call observers.
        let on_abort = Waker::from(Arc::new(AbortProgram(Arc::downgrade(self))));
        let start = |registry: &Registry<()>| ProgramTask::start(registry, self.location, &on_abort);
        let held = if registry.is_drained() { None } else { start(registry) };
        let substitute = held.is_none().then(|| Registry::builder(()).inspect().build());
        if let Some(task) = held.or_else(|| start(substitute.as_ref()?)) {
            let mut program = lock(&self.program);
            if is_running(&program) {
                *program = ProgramState::Draining(task);
            } else {
                // The program has ended meanwhile. The lock is released before `end`, because the end of a registry's last task can call
                // other code, such as observers.
                drop(program);
                task.end(Outcome::Completed);
            }
        }
        substitute
    }

    /// Replaces the state of the program and returns the previous state. The caller must not hold a lock when it drops the previous state.
    /// The drop can end the last task of a registry, and call other code.
    fn replace(&self, state: ProgramState) -> ProgramState {
        std::mem::replace(&mut *lock(&self.program), state)
    }

    /// Sets the output of the drain. From then on, [`report_error`](Self::report_error) can report the program's error.
    pub(crate) fn set_output(&self, output: OutputThread) {
        *lock(&self.output) = Some(output);
    }

    /// Reports the program's error, if there is one and the drain has started. Later calls do not report it again. Waits a short time until
    /// the line has been written.
    pub(crate) fn report_error(&self) {
        let Some(output) = lock(&self.output).clone() else { return };
        let Some(error) = lock(&self.error).take() else { return };
        output.log(Level::Error, format!("the program failed: {error}"));
        output.flush(LAST_LINES_TIMEOUT);
    }

    /// Returns the program's call site if a registry counts the program as in flight.
    pub(crate) fn program_in_flight(&self) -> Option<&'static Location<'static>> {
        matches!(*lock(&self.program), ProgramState::Draining(_)).then_some(self.location)
    }

    /// Waits until the program has ended or `run` was dropped.
    pub(crate) async fn program_ended(&self) {
        self.program_ended.wait().await;
    }

    /// Returns whether the program has ended or `run` was dropped.
    pub(crate) fn has_program_ended(&self) -> bool {
        self.program_ended.is_set()
    }

    /// Makes [`run_program`](Self::run_program) drop the program at the program's next await point.
    pub(crate) fn abort_program(&self) {
        self.program_aborted.set();
    }

    /// Returns whether the future of `run` still exists. Returns false if the future was dropped.
    pub(crate) fn is_awaited(&self) -> bool {
        !matches!(*lock(&self.program), ProgramState::Dropped)
    }

    /// Sets the exit code, unless an earlier call has set a code other than 0.
    pub(crate) fn set_exit_code(&self, code: u8) {
        let _ = self.exit_code.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn exit_code(&self) -> u8 {
        self.exit_code.load(Ordering::Relaxed)
    }

    /// Records that the drain reports the stragglers, so that the thread that enforces the deadline does not report them.
    pub(crate) fn start_deadline_report(&self) {
        self.deadline_reported.set();
    }

    pub(crate) fn is_deadline_reported(&self) -> bool {
        self.deadline_reported.is_set()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.is_set()
    }

    /// Makes `Host::run` return.
    pub(crate) fn finish(&self) {
        self.finished.set();
    }

    /// Waits until the drain has ended.
    pub(crate) async fn finished(&self) {
        self.finished.wait().await;
    }
}

/// A waker that aborts the program when the registry aborts the program's task.
struct AbortProgram(Weak<HostState>);

impl Wake for AbortProgram {
    fn wake(self: Arc<Self>) {
        if let Some(state) = self.0.upgrade() {
            state.abort_program();
        }
    }
}

/// Wakes the thread of the drain if the future of `run` is dropped.
pub(crate) struct NotifyOnDrop<'a>(pub(crate) &'a HostState);

impl Drop for NotifyOnDrop<'_> {
    fn drop(&mut self) {
        drop(self.0.replace(ProgramState::Dropped));
        self.0.program_ended.set();
    }
}
