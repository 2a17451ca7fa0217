//! A join cell connects one task and the task's handle. It passes the output of the task to the handle, and an abort to the task.
//!
//! The end of the task stores the output and releases the task's count under one lock. A caller that has the output therefore
//! finds the count released. A caller that has seen the end of the drain finds the output (S11). While the lock is held, no user
//! code runs (S7).

use crate::platform::{Arc, AtomicBool, Mutex, Ordering, drop_quietly, wake, wake_with};
use core::mem::replace;
use core::task::Waker;

pub(crate) struct JoinCell<T> {
    is_aborted: AtomicBool,
    /// Whether the output was stored. The end of the task sets this flag under the lock, after it has released the task's count.
    has_ended: AtomicBool,
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
    pub(crate) fn new() -> Self {
        let shared = Mutex::new(Shared { stage: Stage::Running(None), task: None });
        Self { is_aborted: AtomicBool::new(false), has_ended: AtomicBool::new(false), shared }
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
    ///
    /// The parameter `is_first` says whether the task stores its first waker.
    pub(crate) fn store_waker(&self, waker: &Waker, is_first: bool) {
        if is_first || !self.shared.with(|shared| shared.task.as_ref().is_some_and(|stored| stored.will_wake(waker))) {
            let waker = waker.clone();
            let replaced = self.shared.with(|shared| shared.task.replace(waker));
            drop(replaced);
        }
    }

    /// Drops the waker that an abort calls. The task has ended.
    pub(crate) fn drop_waker(&self) {
        drop_quietly(self.shared.with(|shared| shared.task.take()));
    }

    /// Stores the output of the task, and then calls the closure `release`, which releases the task's count. Both happen under the
    /// lock. Returns the value of the closure, and the waker of the future that awaits the handle.
    ///
    /// Returns the output if the handle was dropped. In this case, this function does not call the closure, because the caller must
    /// drop the output before it releases the count (S2).
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
    ///
    /// The parameter `is_first` says whether the handle registers its first waker.
    pub(crate) fn register(&self, waker: &Waker, is_first: bool) -> bool {
        let mut own = is_first.then(|| waker.clone());
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

    /// Takes the output of a task that has ended. Takes no lock if the task has released its reference, as is usual.
    pub(crate) fn into_output(this: Arc<Self>) -> T {
        let stage = match Arc::try_unwrap(this) {
            Ok(cell) => cell.shared.into_inner().stage,
            Err(this) => this.close(),
        };
        let Stage::Ended(output) = stage else { unreachable!("the only handle takes the output once") };
        output
    }

    /// Drops the handle's interest in the output. Drops the output if the task has ended. Otherwise the end of the task drops the
    /// output.
    pub(crate) fn detach(&self) {
        drop(self.close());
    }

    fn close(&self) -> Stage<T> {
        self.shared.with(|shared| replace(&mut shared.stage, Stage::Closed))
    }

    #[expect(clippy::needless_pass_by_value, reason = "the signature of `Wake::wake`")]
    fn wake_to_abort(this: Arc<Self>) {
        this.abort();
    }
}

// An abort handle stores a `Waker` that aborts the task. A waker hides the type of the output and needs no second allocation.
wake_with!([T: Send + 'static] JoinCell<T>, JoinCell::wake_to_abort);
