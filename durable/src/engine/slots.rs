//! Decides which jobs of the process can start. A suspect is a job whose worker has died at least twice. A suspect runs only while no other
//! job of the process runs. If the suspect crashes the process, the crash is then not counted for other jobs.

use crate::engine::{Engine, WorkerHandle};
use crate::sync::lock;
use event_listener::Event;
use std::fmt;
use std::sync::{Arc, Mutex};

#[derive(Default)]
pub(crate) struct Slots {
    state: Mutex<SlotState>,
    /// This event is notified when a waiting job may be able to start.
    changed: Event,
}

#[derive(Default)]
struct SlotState {
    running: usize,
    is_alone: bool,
    suspects: usize,
}

impl Slots {
    /// Returns the event that is notified when a waiting job may be able to start.
    pub(crate) fn changed(&self) -> &Event {
        &self.changed
    }

    /// Returns whether a suspect waits or runs. While this is the case, the engine fetches no jobs.
    pub(super) fn is_reserved(&self) -> bool {
        let state = lock(&self.state);
        state.is_alone || state.suspects > 0
    }
}

impl Engine {
    /// Returns a permit if a job of this worker can start now.
    pub(crate) fn try_start(self: &Arc<Self>, worker: &Arc<WorkerHandle>, is_suspect: bool) -> Option<Permit> {
        let mut state = lock(&self.slots.state);
        let is_free = !state.is_alone && (!is_suspect || state.running == 0);
        if !is_free || !worker.acquire() {
            return None;
        }
        state.running += 1;
        state.is_alone = is_suspect;
        Some(Permit { engine: self.clone(), worker: worker.clone(), is_alone: is_suspect })
    }

    /// Records that a suspect waits until it can start.
    pub(crate) fn suspect(self: &Arc<Self>) -> Suspect {
        lock(&self.slots.state).suspects += 1;
        Suspect(self.clone())
    }
}

/// The right to run one job. When the permit is dropped, the job counts as ended.
pub(crate) struct Permit {
    engine: Arc<Engine>,
    pub(crate) worker: Arc<WorkerHandle>,
    is_alone: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.engine.slots.state);
        self.worker.release();
        state.running -= 1;
        state.is_alone &= !self.is_alone;
        drop(state);
        self.engine.slots.changed.notify(usize::MAX);
    }
}

/// While this value exists, a suspect waits until it can start, and the engine fetches no jobs.
pub(crate) struct Suspect(Arc<Engine>);

impl Drop for Suspect {
    fn drop(&mut self) {
        lock(&self.0.slots.state).suspects -= 1;
        self.0.slots.changed.notify(usize::MAX);
        self.0.wake();
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("is_alone", &self.is_alone).finish_non_exhaustive()
    }
}
