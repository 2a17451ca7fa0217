use crate::durable::Durable;
use crate::error::Error;
use crate::job::{JobId, JobInfo, JobStatus, QueueCounts};
use crate::limits::QueueLimits;
use crate::store::{MAX_ROWS, Order, STATES, Store};
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// The number of jobs in each page of a list.
pub(crate) const PAGE: usize = 100;

/// The stored state of a queue. [`Durable::queues`] returns one `QueueInfo` for each queue.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QueueInfo {
    /// The name of the queue.
    pub name: String,
    /// Whether the queue is [paused](crate::Queue::pause).
    pub is_paused: bool,
    /// The limits of the queue.
    pub limits: QueueLimits,
    /// The number of jobs in each status.
    pub counts: QueueCounts,
    /// The time for which the oldest due job has waited for a worker, or `None` if no job is due. A job that waits because of the limit of
    /// its [key](crate::Enqueue::limit_key) does not count.
    pub oldest: Option<Duration>,
    /// The number of workers whose lease has not expired.
    pub workers: u32,
}

impl Durable {
    /// Returns all queues that have jobs or workers, and all queues that were ever limited or paused. The list is sorted by name, and
    /// includes the queues of other programs.
    ///
    /// The call executes a single statement. The duration of this statement does not depend on the number of jobs, because the store stops
    /// counting above [`QueueCounts::LIMIT`].
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn queues(&self) -> Result<Vec<QueueInfo>, Error> {
        self.runtime.enter(self.engine.store.queues()).await
    }

    /// Finds a job by its ID, in any queue. Returns `None` if no job has this ID.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn job(&self, id: JobId) -> Result<Option<JobInfo>, Error> {
        self.runtime.enter(self.engine.store.info(None, id.0)).await
    }

    /// Returns the queue with this name, for a program that does not know the payload type of the queue. This call does not access the
    /// store.
    pub fn untyped_queue(&self, name: impl Into<Cow<'static, str>>) -> UntypedQueue {
        UntypedQueue { durable: self.clone(), name: name.into() }
    }
}

/// A queue whose payload type the program does not know. For example, a tool uses this type to operate the queues of other programs.
///
/// ```no_run
/// # use background_tasks_durable::{Durable, Error, JobStatus};
/// # async fn example() -> Result<(), Error> {
/// let durable = Durable::open_existing("jobs.db", None).await?;
/// for info in durable.queues().await? {
///     println!("{}: {} dead", info.name, info.counts.dead);
///     for job in durable.untyped_queue(info.name).jobs(JobStatus::Dead, None).await? {
///         println!("{} {} {}", job.id(), job.payload_json(), job.error().unwrap_or_default());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct UntypedQueue {
    durable: Durable,
    name: Cow<'static, str>,
}

impl fmt::Debug for UntypedQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UntypedQueue").field("name", &self.name).finish_non_exhaustive()
    }
}

impl UntypedQueue {
    /// Returns the name of the queue.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns up to 100 jobs with this status. If `after` is `None`, returns the first jobs of the list. If `after` is a job, returns the
    /// jobs that follow this job in the list.
    ///
    /// Waiting jobs are listed in the order in which they run. The list starts with jobs that are due, highest priority first. Due jobs
    /// that wait because of the limit of their key come next. Jobs that are due later are at the end. Jobs that are done, dead or cancelled
    /// are sorted by the time at which they ended, latest first. Running and retrying jobs are sorted by their due time, earliest first.
    /// `after` must be a job of the same list.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn jobs(&self, status: JobStatus, after: Option<&JobInfo>) -> Result<Vec<JobInfo>, Error> {
        // The states are collected, because the future would not be `Send` with an iterator that contains closures.
        let in_order: Vec<_> = STATES.into_iter().filter(|state| JobStatus::of(state) == status).collect();
        // The next page starts with the state of the job `after`.
        let first = after.and_then(|job| in_order.iter().position(|state| *state == job.position.state)).unwrap_or(0);
        let mut jobs = Vec::new();
        for state in in_order.into_iter().skip(first) {
            let after = after.filter(|job| job.position.state == state);
            let page = self.store().jobs(&self.name, state, Order::of(state), after, PAGE - jobs.len());
            jobs.extend(self.durable.runtime.enter(page).await?);
            if jobs.len() >= PAGE {
                break;
            }
        }
        Ok(jobs)
    }

    /// Counts the jobs in each status: see [`Queue::counts`](crate::Queue::counts).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn counts(&self) -> Result<QueueCounts, Error> {
        self.durable.runtime.enter(self.store().counts(&self.name)).await
    }

    /// Enqueues a dead job again: see [`Queue::retry`](crate::Queue::retry).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn retry(&self, id: JobId) -> Result<bool, Error> {
        let (retried, _) = self.durable.runtime.enter(self.store().retry(&self.name, Some(id.0))).await?;
        self.notify().await;
        Ok(retried > 0)
    }

    /// Enqueues all dead jobs again: see [`Queue::retry_all`](crate::Queue::retry_all).
    ///
    /// # Errors
    ///
    /// Errors of the store. Some of the jobs may have been enqueued before the error.
    pub async fn retry_all(&self) -> Result<u64, Error> {
        let mut all = 0;
        loop {
            let (retried, has_more) = self.durable.runtime.enter(self.store().retry(&self.name, None)).await?;
            self.notify().await;
            all += retried;
            if !has_more {
                return Ok(all);
            }
        }
    }

    /// Deletes a job that is not running or done: see [`Queue::discard`](crate::Queue::discard).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn discard(&self, id: JobId) -> Result<bool, Error> {
        Ok(self.durable.runtime.enter(self.store().discard(&self.name, Some(id.0))).await? > 0)
    }

    /// Deletes all dead jobs: see [`Queue::discard_all`](crate::Queue::discard_all).
    ///
    /// # Errors
    ///
    /// Errors of the store. Some of the jobs may have been deleted before the error.
    pub async fn discard_all(&self) -> Result<u64, Error> {
        let mut all = 0;
        loop {
            let discarded = self.durable.runtime.enter(self.store().discard(&self.name, None)).await?;
            all += discarded;
            if discarded < MAX_ROWS as u64 {
                return Ok(all);
            }
        }
    }

    /// Cancels a job: see [`Queue::cancel`](crate::Queue::cancel).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn cancel(&self, id: JobId) -> Result<bool, Error> {
        let is_cancelled = self.durable.runtime.enter(self.store().cancel(&self.name, id.0)).await?;
        if is_cancelled {
            self.durable.runtime.enter(self.durable.engine.cancelled(&self.name, id.0)).await;
        }
        Ok(is_cancelled)
    }

    /// Pauses the queue: see [`Queue::pause`](crate::Queue::pause).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn pause(&self) -> Result<(), Error> {
        self.durable.runtime.enter(self.store().pause(&self.name, true)).await
    }

    /// Ends a pause: see [`Queue::resume`](crate::Queue::resume).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn resume(&self) -> Result<(), Error> {
        self.durable.runtime.enter(self.store().pause(&self.name, false)).await?;
        self.notify().await;
        Ok(())
    }

    /// Sets the limits of the queue: see [`Queue::set_limits`](crate::Queue::set_limits).
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub async fn set_limits(&self, limits: QueueLimits) -> Result<(), Error> {
        self.durable.runtime.enter(self.store().set_limits(&self.name, limits)).await?;
        self.notify().await;
        Ok(())
    }

    async fn notify(&self) {
        self.durable.runtime.enter(self.durable.engine.notify_changed(&self.name)).await;
    }

    fn store(&self) -> &dyn Store {
        &*self.durable.engine.store
    }
}
