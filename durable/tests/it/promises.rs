//! Tests what the README promises about workers, on both stores.

use crate::common::{self, on_each_store, sql, until};
use background_tasks::{Registry, TokioSpawner};
use background_tasks_durable::{Durable, Failure, Job, JobId, JobStatus, Queue, WorkerOptions, sqlx};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// The time limit of each step. Each step of these tests takes less time, even on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

fn quick() -> WorkerOptions {
    WorkerOptions::default()
        .poll_interval(Duration::from_millis(20))
        .lease(Duration::from_secs(3))
        .backoff(Duration::ZERO, Duration::ZERO)
}

fn registry() -> Registry<TokioSpawner> {
    Registry::new(TokioSpawner)
}

async fn in_time<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("the step times out")
}

/// Counts how often each job has started. Started jobs wait until the semaphore `gate` is closed.
#[derive(Clone)]
struct Runs {
    started: Arc<Mutex<HashMap<u32, usize>>>,
    gate: Arc<Semaphore>,
}

impl Runs {
    fn new() -> Self {
        Self { started: Arc::default(), gate: Arc::new(Semaphore::new(0)) }
    }

    async fn serve(&self, queue: &Queue<u32>, registry: &Registry<TokioSpawner>, options: WorkerOptions) {
        let runs = self.clone();
        let handler = move |job: Job<u32>| {
            let runs = runs.clone();
            async move {
                *runs.started.lock().unwrap().entry(*job).or_default() += 1;
                let _ = runs.gate.acquire().await; // returns an error when the semaphore is closed
                Ok::<_, Infallible>(())
            }
        };
        queue.serve(registry, options, handler).await.unwrap();
    }

    async fn wait_for(&self, number: u32) {
        until("the job has started", async || self.started.lock().unwrap().contains_key(&number).then_some(())).await;
    }

    fn each_once(&self, numbers: usize) {
        let started = self.started.lock().unwrap();
        assert_eq!(started.len(), numbers, "{started:?}");
        assert!(started.values().all(|runs| *runs == 1), "{started:?}");
    }
}

/// Returns the time at which the lease of each worker of the queue expires, in seconds since 1970.
async fn lease_ends(jobs: &Durable, queue: &str) -> Vec<i64> {
    if let Some(pool) = jobs.sqlite_pool() {
        let query = sqlx::query_scalar("SELECT expires_at / 1000 FROM background_tasks_workers WHERE queue = ?1").bind(queue);
        return query.fetch_all(pool).await.unwrap();
    }
    let query = "SELECT extract(epoch FROM expires_at)::bigint FROM background_tasks.workers WHERE queue = $1";
    sqlx::query_scalar(query).bind(queue).fetch_all(jobs.postgres_pool().unwrap()).await.unwrap()
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// Waits until a live worker has checked for dead workers. This check starts more than one lease after this call.
async fn wait_for_a_check_for_dead_workers(jobs: &Durable, queue: &str, lease: i64) {
    let late = now() + 2 * lease + 2;
    until("a worker has checked", async || lease_ends(jobs, queue).await.into_iter().find(|end| *end > late)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_longer_than_the_lease_runs_no_job_twice() {
    on_each_store(async |jobs: Durable| {
        let (queue, runs) = (jobs.queue::<u32>("drain"), Runs::new());
        let (leaving, staying) = (registry(), registry());
        runs.serve(&queue, &leaving, quick()).await;
        let long = queue.enqueue(1).await.unwrap();
        runs.wait_for(1).await;
        runs.serve(&queue, &staying, quick()).await;
        let drained = leaving.shutdown();
        wait_for_a_check_for_dead_workers(&jobs, "drain", 3).await;
        // Another writer does not wait for the drain.
        let other =
            timeout(Duration::from_secs(5), queue.enqueue(2).into_future()).await.expect("the drain blocks the store").unwrap();
        assert!(!leaving.is_drained());
        runs.gate.close();
        let summary = in_time(drained).await;
        assert_eq!((summary.completed, summary.is_clean()), (2, true), "{summary}"); // the summary counts the job and the worker task
        assert_eq!(queue.info(long).await.unwrap().unwrap().status(), JobStatus::Done);
        in_time(queue.wait(other)).await.unwrap();
        runs.each_once(2);
        in_time(staying.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_waiting_in_a_batch_run_once() {
    on_each_store(async |jobs: Durable| {
        let (queue, runs) = (jobs.queue::<u32>("batch"), Runs::new());
        let (first, second) = (registry(), registry());
        queue.enqueue_all(0..5).await.unwrap();
        runs.serve(&queue, &first, quick().batch_size(10).concurrency(1)).await;
        runs.wait_for(0).await;
        runs.serve(&queue, &second, quick()).await;
        wait_for_a_check_for_dead_workers(&jobs, "batch", 3).await;
        runs.each_once(1);
        runs.gate.close();
        until("all jobs are done", async || (queue.counts().await.unwrap().done >= 5).then_some(())).await;
        runs.each_once(5);
        in_time(first.shutdown()).await;
        in_time(second.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_other_processes_start_before_the_next_heartbeat() {
    on_each_store(async |jobs: Durable| {
        let (queue, registry, runs) = (jobs.queue::<u32>("poll"), registry(), Runs::new());
        runs.gate.close();
        // The worker sends its next heartbeat in an hour, so a heartbeat cannot start the job.
        let patient = WorkerOptions::default().poll_interval(Duration::from_millis(20)).lease(Duration::from_hours(5));
        runs.serve(&queue, &registry, patient).await;
        for number in 0..3 {
            // Enqueues in a transaction, because this does not notify the worker of this process. The worker must find the job by a poll.
            let id = enqueue_silently(&queue, &jobs, number).await;
            assert_eq!(in_time(queue.wait(id)).await.unwrap().unwrap().status(), JobStatus::Done);
        }
        in_time(registry.shutdown()).await;
    })
    .await;
}

async fn enqueue_silently(queue: &Queue<u32>, jobs: &Durable, number: u32) -> JobId {
    match jobs.sqlite_pool() {
        Some(pool) => queue.enqueue(number).in_transaction(&mut *pool.acquire().await.unwrap()).await.unwrap(),
        None => queue.enqueue(number).in_transaction(&mut *jobs.postgres_pool().unwrap().acquire().await.unwrap()).await.unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_synchronous() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = Durable::sqlite(folder.path().join("jobs.db")).await.unwrap();
    let pool = jobs.sqlite_pool().unwrap();
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(pool).await.unwrap();
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(pool).await.unwrap();
    let busy: i64 = sqlx::query_scalar("PRAGMA busy_timeout").fetch_one(pool).await.unwrap();
    assert_eq!((journal.as_str(), synchronous, busy), ("wal", 2, 10_000)); // 2 is FULL
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_is_a_failed_attempt_and_is_retried() {
    on_each_store(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("panic"), registry());
        let ids = [queue.enqueue(2).await.unwrap(), queue.enqueue(3).await.unwrap()];
        let handler = |job: Job<u32>| async move {
            assert!(job.attempt() >= *job, "attempt {}", job.attempt());
            Ok::<_, Infallible>(job.attempt())
        };
        queue.serve(&registry, quick().max_attempts(2), handler).await.unwrap();
        let [second, never] = ids.map(|id| queue.wait(id));
        let (second, never) = (in_time(second).await.unwrap().unwrap(), in_time(never).await.unwrap().unwrap());
        assert_eq!((second.status(), second.attempts(), second.result().unwrap()), (JobStatus::Done, 2, Some(2)));
        assert_eq!((never.status(), never.error()), (JobStatus::Dead, Some("panicked: attempt 2")));
        let summary = in_time(registry.shutdown()).await;
        assert_eq!((summary.panicked, summary.failed), (3, 0), "{summary}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_reschedules_the_job() {
    on_each_store(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("again"), registry());
        let id = queue.enqueue(7).await.unwrap();
        let handler = |job: Job<u32>| async move {
            if job.attempt() == 1 { Err(Failure::retry_after("busy", Duration::from_secs(1))) } else { Ok(()) }
        };
        queue.serve(&registry, quick(), handler).await.unwrap();
        let info = in_time(queue.wait(id)).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts()), (JobStatus::Done, 2));
        in_time(registry.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shortest_poll_interval_applies_to_all_workers_of_a_process() {
    on_each_store(async |jobs: Durable| {
        let (registry, done) = (registry(), async |_: Job<u32>| Ok::<_, Infallible>(()));
        jobs.queue("slow").serve(&registry, quick().poll_interval(PATIENCE * 10), done).await.unwrap();
        let queue = jobs.queue::<u32>("numbers");
        queue.serve(&registry, WorkerOptions::default(), done).await.unwrap();
        let id = queue.enqueue(1).delay(PATIENCE * 10).await.unwrap();
        sleep(Duration::from_secs(1)).await; // the process handles the notification of this call
        // This statement sends no notification, so the worker must find the job by a poll.
        sql(&jobs, "UPDATE {jobs} SET state = 'available'").await;
        assert_eq!(in_time(queue.wait(id)).await.unwrap().unwrap().status(), JobStatus::Done);
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outcome_is_committed_before_the_task_ends() {
    on_each_store(async |jobs: Durable| {
        let (queue, registry, runs) = (jobs.queue::<u32>("ack"), registry(), Runs::new());
        runs.gate.close();
        let ids = queue.enqueue_all(0..20).await.unwrap();
        runs.serve(&queue, &registry, quick()).await;
        runs.wait_for(19).await;
        let summary = in_time(registry.shutdown()).await;
        // Each job that the drain has counted as completed must be done in the store.
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.done, counts.running), (summary.completed - 1, 0), "{counts:?} {summary}");
        for id in ids {
            let info = queue.info(id).await.unwrap().unwrap();
            assert!(matches!(info.status(), JobStatus::Done | JobStatus::Waiting), "{info:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_job_waits_for_its_backoff() {
    on_each_store(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("backoff"), registry());
        let hour = Duration::from_hours(1);
        let id = queue.enqueue(7).await.unwrap();
        let before = SystemTime::now();
        let handler = |_| async { Err::<(), _>("no such luck") };
        queue.serve(&registry, quick().backoff(hour, hour), handler).await.unwrap();
        let info = until("the job is retried", async || {
            let info = queue.info(id).await.unwrap().unwrap();
            (info.status() == JobStatus::Retrying).then_some(info)
        })
        .await;
        let due = info.due().duration_since(before).unwrap();
        assert!((hour / 2..=hour + PATIENCE).contains(&(due + Duration::from_secs(1))), "{due:?}");
        assert_eq!((info.attempts(), info.error()), (1, Some("no such luck")));
        let summary = in_time(registry.shutdown()).await;
        assert_eq!(summary.failed, 1, "{summary}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_kills_its_process_is_given_up() {
    on_each_store(async |jobs: Durable| {
        let (queue, registry, runs) = (jobs.queue::<u32>("poison"), registry(), Runs::new());
        runs.gate.close();
        let poison = queue.enqueue(7).await.unwrap();
        let charged = queue.enqueue(8).await.unwrap();
        for (id, attempts) in [(poison, 5), (charged, 4)] {
            sql(&jobs, &format!("UPDATE {{jobs}} SET crashes = {attempts} WHERE id = '{id}'")).await;
        }
        runs.serve(&queue, &registry, quick().max_attempts(1).crashes(4)).await;
        let given_up = in_time(queue.wait(poison)).await.unwrap().unwrap();
        assert_eq!((given_up.status(), given_up.error()), (JobStatus::Dead, Some("gave up after the process died 5 times")));
        assert_eq!(in_time(queue.wait(charged)).await.unwrap().unwrap().status(), JobStatus::Done);
        assert!(!runs.started.lock().unwrap().contains_key(&7));
        let dead: Vec<_> = queue.dead().await.unwrap().iter().map(background_tasks_durable::JobInfo::id).collect();
        assert_eq!(dead, [poison]);
        in_time(registry.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrency_is_limited() {
    on_each_store(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("bound"), registry());
        let (running, maximum) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        queue.enqueue_all(0..40).await.unwrap();
        let highest = maximum.clone();
        let handler = move |_| {
            let (running, maximum) = (running.clone(), maximum.clone());
            async move {
                maximum.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                sleep(Duration::from_millis(30)).await;
                running.fetch_sub(1, SeqCst);
                Ok::<_, Infallible>(())
            }
        };
        queue.serve(&registry, quick().concurrency(3).batch_size(10), handler).await.unwrap();
        until("all jobs are done", async || (queue.counts().await.unwrap().done >= 40).then_some(())).await;
        assert_eq!(highest.load(SeqCst), 3);
        in_time(registry.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outage_is_reported_and_fetching_continues() {
    on_each_store(async |jobs: Durable| {
        let (queue, runs, (registry, losses)) = (jobs.queue::<u32>("engine"), Runs::new(), common::registry());
        runs.serve(&queue, &registry, quick()).await;
        let before = queue.enqueue(0).await.unwrap();
        runs.wait_for(0).await;
        rename_workers(&jobs, true).await;
        until("the outage is reported", async || {
            let mut losses = losses.all().into_iter();
            let outage = ", and retries: incompatible database: ";
            losses.find(|(_, name, text)| *name == "engine worker" && text.contains(outage))
        })
        .await;
        rename_workers(&jobs, false).await;
        runs.gate.close();
        let after = queue.enqueue(1).await.unwrap();
        for id in [before, after] {
            assert_eq!(in_time(queue.wait(id)).await.unwrap().unwrap().status(), JobStatus::Done);
        }
        runs.each_once(2);
        in_time(registry.shutdown()).await;
    })
    .await;
}

/// Renames the table of workers, or gives it its old name again. Without this table, no worker can fetch jobs.
async fn rename_workers(jobs: &Durable, hide: bool) {
    let (prefix, to_prefix) =
        if jobs.sqlite_pool().is_some() { ("background_tasks_", "background_tasks_") } else { ("background_tasks.", "") };
    let (from, to) = if hide { ("workers", "hidden") } else { ("hidden", "workers") };
    sql(jobs, &format!("ALTER TABLE {prefix}{from} RENAME TO {to_prefix}{to}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finished_jobs_are_deleted_and_dead_jobs_stay() {
    on_each_store(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("prune"), registry());
        let ids = queue.enqueue_all(0..700).await.unwrap();
        let handler = |job: Job<u32>| async move { if *job == 0 { Err(Failure::dead("never")) } else { Ok(()) } };
        let options = quick().concurrency(16).batch_size(50).retention(Duration::ZERO).maintenance_interval(Duration::ZERO);
        queue.serve(&registry, options, handler).await.unwrap();
        until("all finished jobs are deleted", async || {
            let counts = queue.counts().await.unwrap();
            ((counts.done, counts.waiting, counts.running) == (0, 0, 0)).then_some(())
        })
        .await;
        assert_eq!(queue.info(ids[0]).await.unwrap().unwrap().status(), JobStatus::Dead);
        assert!(queue.info(ids[699]).await.unwrap().is_none());
        in_time(registry.shutdown()).await;
    })
    .await;
}
