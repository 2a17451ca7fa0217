//! Implements the methods that a handler calls on its running job.

use crate::enqueue::Connection;
use crate::error::Error;
use crate::job::Job;
use crate::runtime::Runtime;
use crate::store::Store;
use crate::sync::lock;
use event_listener::Event;
use futures_util::future::select;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicI32};
use std::sync::{Arc, Mutex, Weak};
use ulid::Ulid;

/// A job that a worker of this process runs.
pub(crate) struct RunningJob {
    pub(crate) id: Ulid,
    /// The store gives each run of a job a number. If the worker loses the job, and fetches it again while the handler still runs, this
    /// number changes.
    pub(crate) run: AtomicI32,
    /// `true` if the handler has called `complete_in`, even if the transaction of that call was not committed.
    pub(crate) is_completed: AtomicBool,
    is_cancelled: AtomicBool,
    cancel_event: Event,
    /// Notified when the last clone of the handler's [`Job`] is dropped.
    released: Event,
    checkpoint: Mutex<Option<String>>,
    store: Arc<dyn Store>,
    runtime: Runtime,
}

/// The values that `complete_in` writes to the store.
#[derive(Debug)]
pub struct Completion {
    pub(crate) id: Ulid,
    pub(crate) run: i32,
    pub(crate) result: String,
}

impl RunningJob {
    pub(crate) fn new(store: Arc<dyn Store>, runtime: Runtime, id: Ulid, run: i32, checkpoint: Option<String>) -> Arc<Self> {
        let checkpoint = Mutex::new(checkpoint);
        let (is_completed, is_cancelled) = (AtomicBool::new(false), AtomicBool::new(false));
        let (cancel_event, released) = (Event::new(), Event::new());
        Arc::new(Self { id, run: run.into(), is_completed, is_cancelled, cancel_event, released, checkpoint, store, runtime })
    }

    pub(crate) fn cancel(&self) {
        self.is_cancelled.store(true, SeqCst);
        self.cancel_event.notify(usize::MAX);
    }

    /// Resolves when the job is cancelled.
    pub(crate) async fn cancelled(&self) {
        while !self.is_cancelled.load(SeqCst) {
            let event = self.cancel_event.listen();
            if !self.is_cancelled.load(SeqCst) {
                event.await;
            }
        }
    }
}

impl fmt::Debug for RunningJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningJob").field("id", &self.id).field("run", &self.run).finish_non_exhaustive()
    }
}

/// The state that the clones of a [`Job`] share. This value is dropped when the last clone is dropped.
pub(crate) struct JobHandle(pub(crate) Arc<RunningJob>);

impl JobHandle {
    /// Resolves when the last clone of the [`Job`] is dropped, or when the job is cancelled.
    pub(crate) async fn released(clones: &Weak<Self>, running: &RunningJob) {
        let dropped = async {
            while clones.strong_count() > 0 {
                let released = running.released.listen();
                if clones.strong_count() > 0 {
                    released.await;
                }
            }
        };
        select(pin!(dropped), pin!(running.cancelled())).await;
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        // The strong count is already zero here, so a woken call to `released` sees that no clone exists.
        self.0.released.notify(usize::MAX);
    }
}

impl fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> Job<T> {
    /// Marks the job as done in the handler's own transaction. The transaction must be on the database that stores the job. The job is done
    /// if and only if the transaction commits. The other writes of the transaction therefore take effect exactly once.
    ///
    /// Commit the transaction, and then return `Ok` from the handler. `result` becomes the result of the job, and the worker ignores the
    /// value in `Ok`. If the handler returns without committing the transaction, the attempt has failed.
    ///
    /// ```
    /// use background_tasks_durable::{Failure, Job, sqlx};
    /// # struct Payment { account: i64, amount: i64 }
    ///
    /// async fn pay(job: Job<Payment>, pool: sqlx::SqlitePool) -> Result<(), Failure> {
    ///     let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?; // on Postgres: begin()
    ///     let pay = sqlx::query("UPDATE accounts SET balance = balance - ? WHERE id = ?").bind(job.amount).bind(job.account);
    ///     pay.execute(&mut *tx).await?;
    ///     job.complete_in(&mut *tx, &()).await?;
    ///     tx.commit().await?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::LeaseLost`] if the worker has lost the job, or if the job was cancelled. In this case, do not commit the transaction.
    /// - [`Error::Encode`] and errors of the store.
    pub async fn complete_in<C: Connection, R: Serialize>(&self, connection: &mut C, result: &R) -> Result<(), Error> {
        let running = &self.handle.0;
        let result = serde_json::to_string(result).map_err(Error::Encode)?;
        let completion = Completion { id: running.id, run: running.run.load(SeqCst), result };
        if !connection.complete(running.store.prefix(), &completion).await? {
            return Err(lost(running.id));
        }
        running.is_completed.store(true, SeqCst);
        Ok(())
    }

    /// Returns the last checkpoint that this attempt or an earlier attempt has saved. Returns `None` if the job has no checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the checkpoint cannot be deserialized as a `C`.
    pub fn checkpoint<C: DeserializeOwned>(&self) -> Result<Option<C>, Error> {
        let checkpoint = lock(&self.handle.0.checkpoint);
        checkpoint.as_ref().map(|text| serde_json::from_str(text)).transpose().map_err(Error::Decode)
    }

    /// Stores a checkpoint, which replaces the previous checkpoint of the job. The next attempt can read it with
    /// [`checkpoint`](Self::checkpoint) and continue from there.
    ///
    /// # Errors
    ///
    /// - [`Error::LeaseLost`] if the worker has lost the job, or if the job was cancelled. In this case, return from the handler.
    /// - [`Error::Encode`] and errors of the store.
    pub async fn save_checkpoint<C: Serialize>(&self, checkpoint: &C) -> Result<(), Error> {
        let running = &self.handle.0;
        let text = serde_json::to_string(checkpoint).map_err(Error::Encode)?;
        if !running.runtime.enter(running.store.save_checkpoint(running.id, running.run.load(SeqCst), &text)).await? {
            return Err(lost(running.id));
        }
        *lock(&running.checkpoint) = Some(text);
        Ok(())
    }
}

fn lost(id: Ulid) -> Error {
    Error::LeaseLost(format!("this worker no longer holds job {id}: another worker has taken it, or it was cancelled"))
}
