//! The program of a host: its state and its outcome.

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

/// The exit code of a failure. Not 1, which Rust gives to a `main` that returns an error, and which here reports a missed deadline.
pub(crate) const FAILED: u8 = 2;
/// The exit code of a panic, as in Rust.
pub(crate) const PANICKED: u8 = 101;

/// The state that [`Host::run`](crate::Host::run) shares with the threads of the drain.
pub(crate) struct HostState {
    program: Mutex<ProgramState>,
    /// The program's error, until it is reported.
    error: Mutex<Option<String>>,
    /// The output of the drain, once the drain has started.
    output: Mutex<Option<OutputThread>>,
    /// The reported call site of the program.
    location: &'static Location<'static>,
    /// The program has ended, or `run` was dropped.
    program_ended: Flag,
    /// The program must end, because the grace period has expired.
    program_aborted: Flag,
    /// The drain has ended.
    finished: Flag,
    /// The first code that is not 0 stays.
    exit_code: AtomicU8,
}

enum ProgramState {
    Running,
    /// Shutdown has started. The task keeps a registry open for as long as the program runs.
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

/// The program as a task of a registry. The task is in flight until [`end`](Self::end), and then counts with the program's outcome.
///
/// The program's future belongs to the caller of `run`, and not to a spawner. So the future of this task only returns the outcome.
struct ProgramTask {
    /// `None` if the task was aborted before its first poll.
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

impl ProgramTask {
    /// Counts the program as in flight, unless the registry rejects it. An abort of the task calls the waker.
    fn start(registry: &Registry<()>, location: &'static Location<'static>, on_abort: &Waker) -> Option<Self> {
        let outcome = Arc::new(Mutex::new(None));
        let program_outcome = outcome.clone();
        let ended = poll_fn(move |_| match lock(&program_outcome).take() {
            None | Some(Outcome::Aborted) => Poll::Pending,
            Some(Outcome::Completed) => Poll::Ready(Ok(())),
            Some(Outcome::Failed(error)) => Poll::Ready(Err(error)),
            // The panic hook has reported the panic, and `resume_unwind` does not call it again.
            Some(Outcome::Panicked(payload)) => resume_unwind(payload),
        });
        let keeper = TaskKeeper::default();
        registry.with_spawner(&keeper).named("program").location(location).without_permit().try_run(ended).ok()?;
        let mut task = lock(&keeper.0).take()?;
        // The first poll stores the waker, unless the registry has already aborted the task.
        let is_aborted = task.as_mut().poll(&mut Context::from_waker(on_abort)).is_ready();
        if is_aborted {
            on_abort.wake_by_ref();
        }
        Some(Self { task: (!is_aborted).then_some(task), outcome })
    }

    /// Releases the count. The task of an aborted program counts as aborted if the registry is inspected, and otherwise as abandoned.
    fn end(mut self, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        if let Some(task) = &mut self.task {
            let _ = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// A spawner that keeps its task for the caller to poll.
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
            finished: Flag::default(),
            exit_code: AtomicU8::new(0),
        }
    }

    /// Runs the program until it ends or is aborted, and records its outcome. The program has been dropped when this returns.
    pub(crate) async fn run_program<F: Future<Output: TaskOutput>>(&self, program: F) {
        let outcome = self.outcome_of(program).await;
        match &outcome {
            Outcome::Completed | Outcome::Aborted => {}
            Outcome::Failed(error) => {
                self.set_exit_code(FAILED);
                *lock(&self.error) = Some(error.clone());
                // Before `end`, because the program may be the last task in flight: no line follows the end of the drain.
                self.report_error();
            }
            Outcome::Panicked(_) => self.set_exit_code(PANICKED),
        }
        match (self.replace(ProgramState::Ended), outcome) {
            (ProgramState::Draining(task), outcome) => task.end(outcome),
            // The destructor of the payload may panic too.
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

    /// Counts a running program as in flight in this registry.
    ///
    /// The program takes no permit, so the registry may be full. If the registry has drained, the program counts as in flight in a new registry,
    /// which is returned.
    pub(crate) fn keep_in_flight(self: &Arc<Self>, registry: &Registry<()>) -> Option<Registry<()>> {
        let is_running = |program: &ProgramState| matches!(program, ProgramState::Running);
        if !is_running(&lock(&self.program)) {
            return None;
        }
        // Not under the lock: observers may be called.
        let on_abort = Waker::from(Arc::new(AbortProgram(Arc::downgrade(self))));
        let start = |registry: &Registry<()>| ProgramTask::start(registry, self.location, &on_abort);
        let held = if registry.is_drained() { None } else { start(registry) };
        let substitute = held.is_none().then(|| Registry::builder(()).inspect().build());
        if let Some(task) = held.or_else(|| start(substitute.as_ref()?)) {
            let mut program = lock(&self.program);
            if is_running(&program) {
                *program = ProgramState::Draining(task);
            } else {
                // The program has ended meanwhile. The lock is released first, because `end` may release the last task of a registry.
                drop(program);
                task.end(Outcome::Completed);
            }
        }
        substitute
    }

    /// Replaces the state and returns the previous state. Drop the previous state without a lock: it may release the last task of a registry.
    fn replace(&self, state: ProgramState) -> ProgramState {
        std::mem::replace(&mut *lock(&self.program), state)
    }

    /// Sets the output of the drain, which has started.
    pub(crate) fn set_output(&self, output: OutputThread) {
        *lock(&self.output) = Some(output);
    }

    /// Reports the program's error once, if there is one and the drain has started. Waits until it has been written, but not long.
    pub(crate) fn report_error(&self) {
        let Some(output) = lock(&self.output).clone() else { return };
        let Some(error) = lock(&self.error).take() else { return };
        output.log(Level::Error, format!("the program failed: {error}"));
        output.flush(LAST_LINES_TIMEOUT);
    }

    /// Returns the call site of the program if the program is in flight.
    pub(crate) fn program_in_flight(&self) -> Option<&'static Location<'static>> {
        matches!(*lock(&self.program), ProgramState::Draining(_)).then_some(self.location)
    }

    /// Waits until the program has ended or `run` was dropped.
    pub(crate) async fn program_ended(&self) {
        self.program_ended.wait().await;
    }

    /// Drops the program at its next await point.
    pub(crate) fn abort_program(&self) {
        self.program_aborted.set();
    }

    /// Returns whether `run` is still awaited, and was not dropped.
    pub(crate) fn is_awaited(&self) -> bool {
        !matches!(*lock(&self.program), ProgramState::Dropped)
    }

    /// Sets the exit code, unless it has been set to another code than 0.
    pub(crate) fn set_exit_code(&self, code: u8) {
        let _ = self.exit_code.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn exit_code(&self) -> u8 {
        self.exit_code.load(Ordering::Relaxed)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.is_set()
    }

    /// Makes `run` return, and returns the exit code.
    pub(crate) fn finish(&self) -> u8 {
        self.finished.set();
        self.exit_code()
    }

    /// Waits until the drain has ended.
    pub(crate) async fn finished(&self) {
        self.finished.wait().await;
    }
}

/// Aborts the program when its task is aborted.
struct AbortProgram(Weak<HostState>);

impl Wake for AbortProgram {
    fn wake(self: Arc<Self>) {
        if let Some(state) = self.0.upgrade() {
            state.abort_program();
        }
    }
}

/// Notifies the drain if `run` is dropped.
pub(crate) struct NotifyOnDrop<'a>(pub(crate) &'a HostState);

impl Drop for NotifyOnDrop<'_> {
    fn drop(&mut self) {
        drop(self.0.replace(ProgramState::Dropped));
        self.0.program_ended.set();
    }
}
