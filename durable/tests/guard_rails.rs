//! The twelve traps of the engine, and that who uses this crate does not fall into them: `README.md` has them as a list. Each test fails when
//! its guard-rail is taken out.

mod common;

use background_tasks::{Registry, TokioSpawner};
use background_tasks_durable::{Durable, Failure, Job, JobId, Options, Queue, Status, sqlx};
use common::{each, sql};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

fn quick() -> Options {
    Options::default().poll(Duration::from_millis(20)).lease(Duration::from_secs(3)).backoff(Duration::ZERO, Duration::ZERO)
}

fn registry() -> Registry<TokioSpawner> {
    Registry::new(TokioSpawner)
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it should not take so long")
}

/// How often each number was started, and a door behind which those that were started wait.
#[derive(Clone)]
struct Runs {
    started: Arc<Mutex<HashMap<u32, usize>>>,
    door: Arc<Semaphore>,
}

impl Runs {
    fn new() -> Self {
        Self { started: Arc::default(), door: Arc::new(Semaphore::new(0)) }
    }

    async fn serve(&self, queue: &Queue<u32>, registry: &Registry<TokioSpawner>, options: Options) {
        let runs = self.clone();
        let handler = move |job: Job<u32>| {
            let runs = runs.clone();
            async move {
                *runs.started.lock().unwrap().entry(*job).or_default() += 1;
                let _ = runs.door.acquire().await; // until it is closed
                Ok::<_, Infallible>(())
            }
        };
        queue.serve(registry, options, handler).await.unwrap();
    }

    async fn wait_for(&self, number: u32) {
        within(async {
            while !self.started.lock().unwrap().contains_key(&number) {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    fn each_once(&self, numbers: usize) {
        let started = self.started.lock().unwrap();
        assert_eq!(started.len(), numbers, "{started:?}");
        assert!(started.values().all(|runs| *runs == 1), "{started:?}");
    }
}

/// When each worker of the queue was last seen, in seconds, by its own account.
async fn seen(jobs: &Durable, queue: &str) -> Vec<i64> {
    if let Some(pool) = jobs.sqlite_pool() {
        let asked = sqlx::query_scalar("SELECT last_seen FROM Workers WHERE worker_type = ?1").bind(queue);
        return asked.fetch_all(pool).await.unwrap();
    }
    let asked = sqlx::query_scalar("SELECT extract(epoch FROM last_seen)::bigint FROM apalis.workers WHERE worker_type = $1");
    asked.bind(queue).fetch_all(jobs.postgres_pool().unwrap()).await.unwrap()
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// Until a worker that lives has looked for dead ones, so long after this was called that who is not seen is dead to it.
async fn somebody_looks_for_the_dead(jobs: &Durable, queue: &str, lease: i64) {
    let late = now() + lease + 2;
    within(async {
        while seen(jobs, queue).await.into_iter().max() <= Some(late) {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_1_a_drain_that_is_longer_than_the_lease_runs_nothing_twice() {
    each(async |jobs: Durable| {
        let (queue, runs) = (jobs.queue::<u32>("drain"), Runs::new());
        let (leaving, staying) = (registry(), registry());
        runs.serve(&queue, &leaving, quick()).await;
        let long = queue.enqueue(1).await.unwrap();
        runs.wait_for(1).await;
        runs.serve(&queue, &staying, quick()).await;
        let drained = leaving.shutdown();
        somebody_looks_for_the_dead(&jobs, "drain", 3).await;
        // And whoever wants to write is not kept waiting.
        let other =
            timeout(Duration::from_secs(5), queue.enqueue(2).into_future()).await.expect("the drain holds the store").unwrap();
        assert!(!leaving.is_drained());
        runs.door.close();
        let summary = within(drained).await;
        assert_eq!((summary.completed, summary.is_clean()), (3, true), "{summary}"); // the job, its worker and its upkeep
        assert_eq!(queue.info(long).await.unwrap().unwrap().status(), Status::Done);
        within(queue.wait(other)).await.unwrap();
        runs.each_once(2);
        within(staying.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_2_what_waits_behind_a_long_job_of_its_batch_is_not_run_twice() {
    each(async |jobs: Durable| {
        let (queue, runs) = (jobs.queue::<u32>("batch"), Runs::new());
        let (first, second) = (registry(), registry());
        queue.enqueue_all(0..5).await.unwrap();
        runs.serve(&queue, &first, quick().batch(10).concurrency(1)).await;
        runs.wait_for(0).await;
        runs.serve(&queue, &second, quick()).await;
        somebody_looks_for_the_dead(&jobs, "batch", 3).await;
        runs.each_once(1);
        runs.door.close();
        within(async {
            while queue.counts().await.unwrap().done < 5 {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        runs.each_once(5);
        within(first.shutdown()).await;
        within(second.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_3_what_another_process_enqueues_is_not_left_to_the_next_heartbeat() {
    each(async |jobs: Durable| {
        let (queue, registry, runs) = (jobs.queue::<u32>("poll"), registry(), Runs::new());
        runs.door.close();
        // The next heartbeat comes in an hour.
        let patient = Options::default().poll(Duration::from_millis(20)).lease(Duration::from_hours(5));
        runs.serve(&queue, &registry, patient).await;
        for number in 0..3 {
            // In a transaction of the caller's own: this process' worker is not told, as if it were another's.
            let id = enqueue_silently(&queue, &jobs, number).await;
            assert_eq!(within(queue.wait(id)).await.unwrap().unwrap().status(), Status::Done);
        }
        within(registry.shutdown()).await;
    })
    .await;
}

async fn enqueue_silently(queue: &Queue<u32>, jobs: &Durable, number: u32) -> JobId {
    match jobs.sqlite_pool() {
        Some(pool) => queue.enqueue(number).within(&mut *pool.acquire().await.unwrap()).await.unwrap(),
        None => queue.enqueue(number).within(&mut *jobs.postgres_pool().unwrap().acquire().await.unwrap()).await.unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_4_a_commit_is_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = Durable::sqlite(folder.path().join("jobs.db")).await.unwrap();
    let pool = jobs.sqlite_pool().unwrap();
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(pool).await.unwrap();
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(pool).await.unwrap();
    let busy: i64 = sqlx::query_scalar("PRAGMA busy_timeout").fetch_one(pool).await.unwrap();
    assert_eq!((journal.as_str(), synchronous, busy), ("wal", 2, 10_000)); // 2 is FULL
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_5_a_panic_is_an_attempt_that_failed_and_the_next_one_comes() {
    each(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("panic"), registry());
        let ids = [queue.enqueue(2).await.unwrap(), queue.enqueue(3).await.unwrap()];
        let handler = |job: Job<u32>| async move {
            assert!(job.attempt() >= *job, "attempt {}", job.attempt());
            Ok::<_, Infallible>(job.attempt())
        };
        queue.serve(&registry, quick().attempts(2), handler).await.unwrap();
        let [second, never] = ids.map(|id| queue.wait(id));
        let (second, never) = (within(second).await.unwrap().unwrap(), within(never).await.unwrap().unwrap());
        assert_eq!((second.status(), second.attempts(), second.result().unwrap()), (Status::Done, 2, Some(2)));
        assert_eq!((never.status(), never.error()), (Status::Dead, Some("it panicked: attempt 2")));
        let summary = within(registry.shutdown()).await;
        assert_eq!((summary.panicked, summary.failed), (3, 0), "{summary}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_6_a_job_that_asks_for_another_time_gets_it() {
    each(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("again"), registry());
        let id = queue.enqueue(7).await.unwrap();
        let handler = |job: Job<u32>| async move {
            if job.attempt() == 1 { Err(Failure::retry_after("busy", Duration::from_secs(1))) } else { Ok(()) }
        };
        queue.serve(&registry, quick(), handler).await.unwrap();
        let info = within(queue.wait(id)).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts()), (Status::Done, 2));
        within(registry.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_7_what_is_done_is_acknowledged_before_its_task_is_over() {
    each(async |jobs: Durable| {
        let (queue, registry, runs) = (jobs.queue::<u32>("ack"), registry(), Runs::new());
        runs.door.close();
        let ids = queue.enqueue_all(0..20).await.unwrap();
        runs.serve(&queue, &registry, quick()).await;
        runs.wait_for(19).await;
        let summary = within(registry.shutdown()).await;
        // Whatever the drain has counted stands in the store.
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.done, counts.running), (summary.completed - 2, 0), "{counts:?} {summary}");
        for id in ids {
            let info = queue.info(id).await.unwrap().unwrap();
            assert!(matches!(info.status(), Status::Done | Status::Waiting), "{info:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_8_a_failed_job_waits_for_its_backoff() {
    each(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("backoff"), registry());
        let hour = Duration::from_hours(1);
        let id = queue.enqueue(7).await.unwrap();
        let before = SystemTime::now();
        let handler = |_| async { Err::<(), _>("no such luck") };
        queue.serve(&registry, quick().backoff(hour, hour), handler).await.unwrap();
        let info = within(async {
            loop {
                let info = queue.info(id).await.unwrap().unwrap();
                if info.status() == Status::Retrying {
                    break info;
                }
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let due = info.due().duration_since(before).unwrap();
        assert!((hour / 2..=hour + PATIENCE).contains(&(due + Duration::from_secs(1))), "{due:?}");
        assert_eq!((info.attempts(), info.error()), (1, Some("no such luck")));
        let summary = within(registry.shutdown()).await;
        assert_eq!(summary.failed, 1, "{summary}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_9_a_job_whose_process_dies_each_time_is_given_up() {
    each(async |jobs: Durable| {
        let (queue, registry, runs) = (jobs.queue::<u32>("poison"), registry(), Runs::new());
        runs.door.close();
        let poison = queue.enqueue(7).await.unwrap();
        let charged = queue.enqueue(8).await.unwrap();
        // As the engine charges it when it recovers what a dead worker held.
        for (id, attempts) in [(poison, 5), (charged, 4)] {
            sql(&jobs, &format!("UPDATE {{jobs}} SET attempts = {attempts} WHERE id = '{id}'")).await;
        }
        runs.serve(&queue, &registry, quick().attempts(2).crashes(3)).await;
        let given_up = within(queue.wait(poison)).await.unwrap().unwrap();
        assert_eq!((given_up.status(), given_up.error()), (Status::Dead, Some("given up: its process died 5 times")));
        assert_eq!(within(queue.wait(charged)).await.unwrap().unwrap().status(), Status::Done);
        assert!(!runs.started.lock().unwrap().contains_key(&7));
        let dead: Vec<_> = queue.dead().await.unwrap().iter().map(background_tasks_durable::Info::id).collect();
        assert_eq!(dead, [poison]);
        within(registry.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_10_no_worker_has_the_name_of_another_nor_of_itself_before() {
    each(async |jobs: Durable| {
        let queue = jobs.queue::<u32>("name");
        let registries = [registry(), registry(), registry()];
        for registry in &registries {
            queue.serve(registry, quick(), |_| async { Ok::<_, Infallible>(()) }).await.unwrap();
        }
        within(async {
            while seen(&jobs, "name").await.len() < 3 {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        for registry in registries {
            let summary = within(registry.shutdown()).await;
            assert_eq!(summary.failed, 0, "{summary}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_11_no_more_jobs_run_at_once_than_was_said() {
    each(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("bound"), registry());
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        queue.enqueue_all(0..40).await.unwrap();
        let most_seen = most.clone();
        let handler = move |_| {
            let (running, most) = (running.clone(), most.clone());
            async move {
                most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                sleep(Duration::from_millis(30)).await;
                running.fetch_sub(1, SeqCst);
                Ok::<_, Infallible>(())
            }
        };
        queue.serve(&registry, quick().concurrency(3).batch(10), handler).await.unwrap();
        within(async {
            while queue.counts().await.unwrap().done < 40 {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(most_seen.load(SeqCst), 3);
        within(registry.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_11_an_engine_that_fails_is_told_and_another_one_starts() {
    each(async |jobs: Durable| {
        let (queue, runs, (registry, losses)) = (jobs.queue::<u32>("engine"), Runs::new(), common::registry());
        runs.serve(&queue, &registry, quick()).await;
        let before = queue.enqueue(0).await.unwrap();
        runs.wait_for(0).await;
        rename_workers(&jobs, true).await;
        within(async {
            while !losses.all().iter().any(|(_, name, text)| *name == "engine worker" && text.starts_with("the engine stopped")) {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        rename_workers(&jobs, false).await;
        runs.door.close();
        let after = queue.enqueue(1).await.unwrap();
        for id in [before, after] {
            assert_eq!(within(queue.wait(id)).await.unwrap().unwrap().status(), Status::Done);
        }
        runs.each_once(2);
        within(registry.shutdown()).await;
    })
    .await;
}

/// Without its table the engine fails.
async fn rename_workers(jobs: &Durable, away: bool) {
    let schema = if jobs.sqlite_pool().is_some() { "" } else { "apalis." };
    let (from, to) = if away { ("workers", "gone") } else { ("gone", "workers") };
    sql(jobs, &format!("ALTER TABLE {schema}{from} RENAME TO {to}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_12_what_is_done_is_dropped_after_a_while_and_what_is_dead_stays() {
    each(async |jobs: Durable| {
        let (queue, registry) = (jobs.queue::<u32>("prune"), registry());
        let ids = queue.enqueue_all(0..700).await.unwrap();
        let handler = |job: Job<u32>| async move { if *job == 0 { Err(Failure::dead("never")) } else { Ok(()) } };
        let tidy = quick().concurrency(16).batch(50).retain(Duration::ZERO).upkeep(Duration::ZERO);
        queue.serve(&registry, tidy, handler).await.unwrap();
        within(async {
            loop {
                let counts = queue.counts().await.unwrap();
                if (counts.done, counts.waiting, counts.running) == (0, 0, 0) {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(queue.info(ids[0]).await.unwrap().unwrap().status(), Status::Dead);
        assert!(queue.info(ids[699]).await.unwrap().is_none());
        within(registry.shutdown()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rail_12_sqlite_is_told_how_large_its_table_is() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = Durable::sqlite(folder.path().join("jobs.db")).await.unwrap();
    let (queue, registry) = (jobs.queue::<u32>("size"), registry());
    queue.enqueue_all(0..3000).later(Duration::from_hours(1)).await.unwrap();
    queue.serve(&registry, quick().upkeep(Duration::ZERO), |_| pending::<Result<(), Infallible>>()).await.unwrap();
    within(async {
        let told = "SELECT stat FROM sqlite_stat1 WHERE tbl = 'Jobs' AND stat LIKE '3000 %'";
        while sqlx::query(told).fetch_optional(jobs.sqlite_pool().unwrap()).await.ok().flatten().is_none() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    within(registry.shutdown()).await;
}
