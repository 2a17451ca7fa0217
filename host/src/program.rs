//! The program of a host: its state and its outcome.

use crate::sync::{Flag, lock};
use background_tasks::{Guard, Registry, TaskOutput};
use futures_lite::FutureExt;
use std::panic::{AssertUnwindSafe, Location};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

/// The exit code of a failure. Not 1, which Rust gives to a `main` that returns an error, and which here reports a missed deadline.
pub(crate) const FAILED: u8 = 2;
/// The exit code of a panic, as in Rust.
const PANICKED: u8 = 101;

/// The state that [`Host::run`](crate::Host::run) shares with the threads of the drain.
pub(crate) struct HostState {
    program: Mutex<ProgramState>,
    /// The program's error, which the drain reports: that may block.
    error: Mutex<Option<String>>,
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
    /// Shutdown has started. The guard keeps a registry open for as long as the program runs.
    Draining {
        _in_flight: Guard,
    },
    Ended,
    /// `run` was dropped.
    Dropped,
}

/// How the program ended.
struct Outcome {
    exit_code: u8,
    error: Option<String>,
}

impl HostState {
    pub(crate) fn new(location: &'static Location<'static>) -> Self {
        Self {
            program: Mutex::new(ProgramState::Running),
            error: Mutex::new(None),
            location,
            program_ended: Flag::default(),
            program_aborted: Flag::default(),
            finished: Flag::default(),
            exit_code: AtomicU8::new(0),
        }
    }

    /// Runs the program until it ends or is aborted, and records its outcome. The program has been dropped when this returns.
    pub(crate) async fn run_program<F: Future<Output: TaskOutput>>(&self, program: F) {
        let Outcome { exit_code, error } = self.outcome_of(program).await;
        self.set_exit_code(exit_code);
        *lock(&self.error) = error;
        self.replace(ProgramState::Ended);
        self.program_ended.set();
    }

    async fn outcome_of<F: Future<Output: TaskOutput>>(&self, program: F) -> Outcome {
        let error = async {
            let completed = async { Some(program.await) };
            let aborted = async {
                self.program_aborted.wait().await;
                None
            };
            let output = completed.or(aborted).await;
            output.as_ref().and_then(TaskOutput::error).map(|error| format!("{error:#}"))
        };
        match AssertUnwindSafe(error).catch_unwind().await {
            Ok(None) => Outcome { exit_code: 0, error: None },
            Ok(error) => Outcome { exit_code: FAILED, error },
            // The panic hook has reported the panic.
            Err(payload) => {
                // The destructor of the payload may panic too.
                std::mem::forget(payload);
                Outcome { exit_code: PANICKED, error: None }
            }
        }
    }

    /// Counts a running program as in flight in this registry.
    ///
    /// The program takes no permit, so the registry may be full. If the registry has drained, the program counts as in flight in a new registry,
    /// which is returned.
    pub(crate) fn keep_in_flight(&self, registry: &Registry<()>) -> Option<Registry<()>> {
        let is_running = |program: &ProgramState| matches!(program, ProgramState::Running);
        if !is_running(&lock(&self.program)) {
            return None;
        }
        // Not under the lock: observers may be called.
        let guard = |registry: &Registry<()>| registry.named("program").location(self.location).without_permit().guard().ok();
        let held = if registry.is_drained() { None } else { guard(registry) };
        let substitute = held.is_none().then(|| Registry::builder(()).inspect().build());
        // Declared before the lock guard, so that it is dropped after it: it may hold the last guard of a registry.
        let mut draining = held.or_else(|| guard(substitute.as_ref()?)).map(|guard| ProgramState::Draining { _in_flight: guard });
        let mut program = lock(&self.program);
        if let (true, Some(draining)) = (is_running(&program), &mut draining) {
            std::mem::swap(&mut *program, draining);
        }
        substitute
    }

    fn replace(&self, state: ProgramState) {
        let previous = std::mem::replace(&mut *lock(&self.program), state);
        // Not under the lock: this may drop the last guard of a registry.
        drop(previous);
    }

    pub(crate) fn take_error(&self) -> Option<String> {
        lock(&self.error).take()
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

/// Notifies the drain if `run` is dropped.
pub(crate) struct NotifyOnDrop<'a>(pub(crate) &'a HostState);

impl Drop for NotifyOnDrop<'_> {
    fn drop(&mut self) {
        self.0.replace(ProgramState::Dropped);
        self.0.program_ended.set();
    }
}
