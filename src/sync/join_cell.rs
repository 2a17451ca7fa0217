//! A join cell connects one task with the task's handle. Through the cell, the handle receives the output of the task, and the task
//! learns that the handle has aborted it.
//!
//! When the task ends, the cell stores the output, and the task is subtracted from the in-flight count. Both steps happen under the
//! same lock. Therefore, when a caller has the output, the task is no longer in flight. And when a caller has seen the end of the
//! drain, the output is available (invariant S11). No user code runs while the lock is held (invariant S7).

use crate::platform::{AtomicBool, Mutex, Ordering, UnmodelledAtomicUsize, drop_quietly, wake};
use core::mem::replace;
use core::task::Waker;

pub(crate) struct JoinCell<T> {
    is_aborted: AtomicBool,
    /// Whether the output was stored. The function `end` sets this flag under the lock, after the task was subtracted from the
    /// in-flight count.
    has_ended: AtomicBool,
    /// Whether the task has stored a waker. Only the task reads and writes this word, so the accesses need no ordering.
    has_waker: UnmodelledAtomicUsize,
    /// Says what happens when the handle is dropped: one of the values [`DETACH`], [`ABORT`] and [`NOTHING`]. Only the handle reads
    /// and writes this word.
    on_drop: UnmodelledAtomicUsize,
    shared: Mutex<Shared<T>>,
}

const DETACH: usize = 0;
const ABORT: usize = 1;
/// The handle has taken the output, so the drop of the handle does nothing.
const NOTHING: usize = 2;

struct Shared<T> {
    stage: Stage<T>,
    /// The waker of the task. An abort calls this waker.
    task: Option<Waker>,
}

enum Stage<T> {
    /// The task is in flight. Contains the waker of the future that awaits the handle.
    Running(Option<Waker>),
    Ended(T),
    /// The handle has taken the output, or was dropped.
    Closed,
}

impl<T> JoinCell<T> {
    #[inline]
    pub(crate) fn new() -> Self {
        Self {
            is_aborted: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            has_waker: UnmodelledAtomicUsize::new(0),
            on_drop: UnmodelledAtomicUsize::new(DETACH),
            shared: Mutex::new(Shared { stage: Stage::Running(None), task: None }),
        }
    }

    /// Aborts the task at its next await point, or before its first poll.
    ///
    /// Relaxed is enough because this function sets the flag before it takes the lock. If [`store_waker`](Self::store_waker) takes
    /// the lock after this function, the next call to `is_aborted` sees the flag. If `store_waker` takes the lock first, this
    /// function finds the stored waker and calls it (invariant L3).
    pub(crate) fn abort(&self) {
        self.is_aborted.store(true, Ordering::Relaxed);
        wake(self.shared.with(|shared| shared.task.take()));
    }

    #[inline]
    pub(crate) fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::Relaxed)
    }

    /// Stores the waker that an abort calls. The caller must call [`is_aborted`](Self::is_aborted) after this call.
    pub(crate) fn store_waker(&self, waker: &Waker) {
        if !self.shared.with(|shared| shared.task.as_ref().is_some_and(|stored| stored.will_wake(waker))) {
            self.has_waker.store(1, Ordering::Relaxed);
            let waker = waker.clone();
            let replaced = self.shared.with(|shared| shared.task.replace(waker));
            drop(replaced);
        }
    }

    /// Drops the task's waker. The task has stored it so that an abort through the handle can wake the task. The caller must call
    /// this function after the task has ended.
    #[inline]
    pub(crate) fn drop_waker(&self) {
        if self.has_waker.load(Ordering::Relaxed) != 0 {
            drop_quietly(self.shared.with(|shared| shared.task.take()));
        }
    }

    /// Stores the output of the task. Then calls the closure `release`, which subtracts the task from the in-flight count. This
    /// function holds the lock during both steps. Returns the value that the closure has returned, and the waker of the future that
    /// awaits the handle.
    ///
    /// If the handle was dropped, returns the output and does not call the closure. In this case, the caller must first drop the
    /// output, and then subtract the task from the in-flight count (invariant S2).
    #[expect(clippy::inline_always, reason = "measured: the results are then not copied through memory")]
    #[inline(always)]
    pub(crate) fn end<R>(&self, output: T, release: impl FnOnce() -> R) -> Result<(R, Option<Waker>), T> {
        self.shared.with(|shared| {
            let Stage::Running(joiner) = &mut shared.stage else { return Err(output) };
            let joiner = joiner.take();
            shared.stage = Stage::Ended(output);
            let released = release();
            self.has_ended.store(true, Ordering::Relaxed);
            Ok((released, joiner))
        })
    }

    /// Registers the waker of the future that awaits the handle. Returns false if the task has ended.
    pub(crate) fn register(&self, waker: &Waker) -> bool {
        let own = waker.clone();
        // The replaced or unused waker is dropped after the lock is released.
        let (is_running, _dropped) = self.shared.with(|shared| match &mut shared.stage {
            Stage::Running(joiner) => (true, joiner.replace(own)),
            Stage::Ended(_) | Stage::Closed => (false, Some(own)),
        });
        is_running
    }

    /// Returns whether the task has ended. This function does not take the lock, so it can return `false` although the task has
    /// just ended. [`is_finished`](Self::is_finished) takes the lock and returns the current state.
    ///
    /// Relaxed is enough because a caller that sees the flag takes the output under the lock (invariant S2).
    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Returns whether the task has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.shared.with(|shared| !matches!(shared.stage, Stage::Running(_)))
    }

    /// Takes the output of a task that has ended. Returns `None` if the output was already taken.
    pub(crate) fn take(&self) -> Option<T> {
        self.on_drop.store(NOTHING, Ordering::Relaxed);
        match self.close() {
            Stage::Ended(output) => Some(output),
            Stage::Running(_) | Stage::Closed => None,
        }
    }

    /// Makes [`drop_handle`](Self::drop_handle) abort the task.
    pub(crate) fn abort_on_drop(&self) {
        self.on_drop.store(ABORT, Ordering::Relaxed);
    }

    /// Detaches the handle from the task when the handle is dropped. If [`abort_on_drop`](Self::abort_on_drop) was called and the
    /// handle has not taken the output, first calls the closure `abort`. If the task has ended, drops the output. If the task is
    /// still in flight, the task's thread drops the output when the task ends.
    pub(crate) fn drop_handle(&self, abort: impl FnOnce()) {
        let on_drop = self.on_drop.load(Ordering::Relaxed);
        if on_drop == ABORT {
            abort();
        }
        if on_drop != NOTHING {
            drop(self.close());
        }
    }

    fn close(&self) -> Stage<T> {
        self.shared.with(|shared| replace(&mut shared.stage, Stage::Closed))
    }
}
