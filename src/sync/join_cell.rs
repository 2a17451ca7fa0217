//! A join cell connects one task and the task's handle. It passes the output of the task to the handle, and an abort to the task.
//!
//! The end of the task stores the output and releases the task's count under one lock. A caller that has the output therefore
//! finds the count released. A caller that has seen the end of the drain finds the output (S11). While the lock is held, no user
//! code runs (S7).

use crate::platform::{AtomicBool, Mutex, Ordering, UnmodelledAtomicUsize, drop_quietly, wake};
use core::mem::replace;
use core::task::Waker;

pub(crate) struct JoinCell<T> {
    is_aborted: AtomicBool,
    /// Whether the output was stored. The end of the task sets this flag under the lock, after it has released the task's count.
    has_ended: AtomicBool,
    /// The flags of the task. They are stored here because a task and a handle of one word move at less cost.
    task: OwnFlags,
    /// The flags of the handle.
    handle: OwnFlags,
    shared: Mutex<Shared<T>>,
}

struct Shared<T> {
    stage: Stage<T>,
    /// The waker of the task, which an abort calls.
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
    /// Returns the cell of a task in flight.
    #[inline]
    pub(crate) fn new() -> Self {
        Self::with_stage(Stage::Running(None))
    }

    /// Returns the cell of a task that has ended with `output`.
    pub(crate) fn ended(output: T) -> Self {
        Self::with_stage(Stage::Ended(output))
    }

    #[inline]
    fn with_stage(stage: Stage<T>) -> Self {
        Self {
            is_aborted: AtomicBool::new(false),
            has_ended: AtomicBool::new(matches!(stage, Stage::Ended(_))),
            task: OwnFlags(UnmodelledAtomicUsize::new(0)),
            handle: OwnFlags(UnmodelledAtomicUsize::new(0)),
            shared: Mutex::new(Shared { stage, task: None }),
        }
    }

    /// Aborts the task at its next await point, or before its first poll.
    ///
    /// Relaxed is enough because this function sets the flag before it takes the lock. Suppose that this function takes the lock
    /// before [`store_waker`](Self::store_waker) does. The lock then makes the flag visible to the call of `is_aborted` that
    /// follows `store_waker`. Otherwise this function finds the stored waker and calls it (L3).
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
        if self.task.set(HAS_WAKER) || !self.shared.with(|shared| shared.task.as_ref().is_some_and(|stored| stored.will_wake(waker))) {
            let waker = waker.clone();
            let replaced = self.shared.with(|shared| shared.task.replace(waker));
            drop(replaced);
        }
    }

    /// Drops the waker that an abort calls. The task has ended.
    #[inline]
    pub(crate) fn drop_waker(&self) {
        if self.task.has(HAS_WAKER) {
            drop_quietly(self.shared.with(|shared| shared.task.take()));
        }
    }

    /// Stores the output of the task, and then calls the closure `release`, which releases the task's count. Both happen under the
    /// lock. Returns the value of the closure, and the waker of the future that awaits the handle.
    ///
    /// Returns the output if the handle was dropped. In this case, this function does not call the closure, because the caller must
    /// drop the output before it releases the count (S2).
    #[inline(always)]
    pub(crate) fn end<R>(&self, output: T, release: impl FnOnce() -> R) -> Result<(R, Option<Waker>), T> {
        self.shared.with(|shared| {
            let Stage::Running(joiner) = &mut shared.stage else { return Err(output) };
            let joiner = joiner.take();
            shared.stage = Stage::Ended(output);
            let released = release();
            // Release pairs with the Acquire in `has_ended`.
            self.has_ended.store(true, Ordering::Release);
            Ok((released, joiner))
        })
    }

    /// Registers the waker of the future that awaits the handle. Returns false if the task has ended.
    pub(crate) fn register(&self, waker: &Waker) -> bool {
        let mut own = self.handle.set(HAS_WAKER).then(|| waker.clone());
        loop {
            let (is_running, replaced) = self.shared.with(|shared| match &mut shared.stage {
                Stage::Running(Some(joiner)) if joiner.will_wake(waker) => (Some(true), None),
                Stage::Running(joiner) => match own.take() {
                    Some(own) => (Some(true), joiner.replace(own)),
                    None => (None, None),
                },
                Stage::Ended(_) | Stage::Closed => (Some(false), None),
            });
            drop(replaced);
            match is_running {
                Some(is_running) => return is_running,
                None => own = Some(waker.clone()),
            }
        }
    }

    /// Returns whether the task has ended. A false result can be outdated: [`is_finished`](Self::is_finished) takes the lock.
    ///
    /// Acquire pairs with the Release in `end`: a caller that sees the flag sees everything that the task did (S2).
    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Returns whether the task has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.shared.with(|shared| !matches!(shared.stage, Stage::Running(_)))
    }

    /// Takes the output of a task that has ended. Returns `None` if the output was taken before.
    pub(crate) fn take(&self) -> Option<T> {
        self.handle.set(TAKEN);
        self.close().into_output()
    }

    /// Takes the output as [`take`](Self::take) does. Needs no lock, because no other owner of the cell exists.
    pub(crate) fn take_mut(&mut self) -> Option<T> {
        self.handle.set(TAKEN);
        replace(&mut self.shared.get_mut().stage, Stage::Closed).into_output()
    }

    /// Makes the drop of the handle abort the task.
    pub(crate) fn abort_on_drop(&self) {
        self.handle.set(ABORTS_ON_DROP);
    }

    pub(crate) fn aborts_on_drop(&self) -> bool {
        self.handle.has(ABORTS_ON_DROP)
    }

    /// Drops the handle's interest in the output. Drops the output if the task has ended. Otherwise the end of the task drops the
    /// output.
    pub(crate) fn detach(&self) {
        if !self.handle.has(TAKEN) {
            drop(self.close());
        }
    }

    fn close(&self) -> Stage<T> {
        self.shared.with(|shared| replace(&mut shared.stage, Stage::Closed))
    }
}

impl<T> Stage<T> {
    fn into_output(self) -> Option<T> {
        if let Self::Ended(output) = self { Some(output) } else { None }
    }
}

/// Flags that only one owner of the cell reads and writes. They order nothing.
struct OwnFlags(UnmodelledAtomicUsize);

/// The task has stored a waker, or the handle has registered one.
const HAS_WAKER: usize = 1;
/// The handle has taken the output.
const TAKEN: usize = 2;
const ABORTS_ON_DROP: usize = 4;

impl OwnFlags {
    fn has(&self, flag: usize) -> bool {
        self.0.load(Ordering::Relaxed) & flag != 0
    }

    /// Sets a flag. Returns whether the flag was not set before.
    fn set(&self, flag: usize) -> bool {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store(before | flag, Ordering::Relaxed);
        before & flag == 0
    }
}
