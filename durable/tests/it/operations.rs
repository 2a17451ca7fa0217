//! Tests cancellation, pauses, limits, bulk calls, hooks, checkpoints, and the completion of a job in a transaction. The tests run on
//! both stores.

use crate::common::{HANG, Mail, TestDatabase, mail, numbers, on_each_database, on_each_store, registry, sql, until};
use background_tasks_durable::{Durable, Error, Failure, Job, JobInfo, JobStatus, QueueLimits, WorkerOptions, sqlx};
use std::convert::Infallible;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

fn options() -> WorkerOptions {
    WorkerOptions::default().backoff(Duration::ZERO, Duration::ZERO)
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_job_never_runs_and_a_running_one_stops() {
    on_each_database(async |database| {
        let (here, there) = (database.open().await, database.open().await);
        let (queue, remote) = (here.queue::<Mail>("mail"), there.queue::<Mail>("mail"));
        let (waiting, delayed) =
            (queue.enqueue(mail("waits")).await.unwrap(), queue.enqueue(mail("delayed")).delay(HANG).await.unwrap());
        for id in [waiting, delayed] {
            assert!(remote.cancel(id).await.unwrap());
            assert!(!remote.cancel(id).await.unwrap(), "it is cancelled already");
            assert_eq!(remote.info(id).await.unwrap().unwrap().status(), JobStatus::Cancelled);
        }
        let (registry, losses) = registry();
        let (started, dropped) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (start, end) = (started.clone(), dropped.clone());
        let handler = move |job: Job<Mail>| {
            let end = DropCounter(end.clone());
            start.add_permits(1);
            async move {
                let _end = end;
                if job.to == "runs" { pending().await } else { Ok::<_, Infallible>(()) }
            }
        };
        queue.serve(&registry, options().concurrency(1), handler).await.unwrap();
        // Cancels one job through another handle, as another process would, and one job through the same handle.
        for canceller in [&remote, &queue] {
            let running = queue.enqueue(mail("runs")).await.unwrap();
            timeout(HANG, started.acquire()).await.unwrap().unwrap().forget();
            assert!(canceller.cancel(running).await.unwrap());
            timeout(HANG, dropped.acquire()).await.expect("the handler is dropped").unwrap().forget();
            assert_eq!(queue.wait(running).await.unwrap().unwrap().status(), JobStatus::Cancelled);
        }
        // The worker must have released the permit, so it can run the next job.
        let next = queue.enqueue(mail("next")).await.unwrap();
        assert_eq!(timeout(HANG, queue.wait(next)).await.unwrap().unwrap().unwrap().status(), JobStatus::Done);
        assert!(!queue.cancel(next).await.unwrap(), "it is done");
        assert_eq!(queue.counts().await.unwrap().cancelled, 4);
        assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
        assert_eq!(numbers(&here, "SELECT count(*) FROM {jobs} WHERE worker IS NOT NULL").await, [0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_of_another_queue_changes_nothing() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (started, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (start, permits) = (started.clone(), go.clone());
        let handler = move |_: Job<Mail>| {
            let go = permits.clone();
            start.add_permits(1);
            async move {
                go.acquire().await.unwrap().forget();
                Ok::<_, Infallible>(())
            }
        };
        queue.serve(&registry, options(), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        timeout(HANG, started.acquire()).await.unwrap().unwrap().forget();
        assert!(!jobs.queue::<Mail>("other").cancel(id).await.unwrap());
        go.add_permits(1);
        let info = timeout(HANG, queue.wait(id)).await.expect("the handler continues").unwrap().unwrap();
        assert_eq!((info.status(), info.attempts()), (JobStatus::Done, 1));
        assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
        assert_eq!(started.available_permits(), 0, "there is no second attempt");
    })
    .await;
}

/// This happens, for example, if the response to the fetch was lost.
#[tokio::test(flavor = "multi_thread")]
async fn job_that_its_worker_does_not_know_returns_to_the_queue() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        queue.serve(&registry, options(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        let id = queue.enqueue(mail("ann")).delay(HANG).await.unwrap();
        sql(&jobs, "UPDATE {jobs} SET state = 'running', run = run + 1, worker = (SELECT id FROM {workers})").await;
        let info = timeout(HANG / 2, queue.wait(id)).await.expect("the job runs").unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.crashes()), (JobStatus::Done, 1, 0));
        assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
    })
    .await;
}

struct DropCounter(Arc<Semaphore>);

impl Drop for DropCounter {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_queue_starts_nothing_until_it_is_resumed() {
    on_each_database(async |database| {
        let (here, there) = (database.open().await, database.open().await);
        let (registry, _) = registry();
        let starts = Arc::new(AtomicUsize::new(0));
        let count = starts.clone();
        let handler = move |_: Job<Mail>| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, Infallible>(()) }
        };
        let (queue, remote) = (here.queue::<Mail>("mail"), there.queue::<Mail>("mail"));
        queue.serve(&registry, options(), handler).await.unwrap();
        let other = here.queue::<Mail>("other");
        other.serve(&registry, options(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        remote.pause().await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        // The other queue still runs its jobs. During this time, the worker polls the paused queue too.
        for _ in 0..5 {
            let id = other.enqueue(mail("bob")).await.unwrap();
            assert_eq!(timeout(HANG, other.wait(id)).await.unwrap().unwrap().unwrap().status(), JobStatus::Done);
        }
        sleep(Duration::from_millis(1200)).await;
        assert_eq!(starts.load(Ordering::SeqCst), 0);
        remote.resume().await.unwrap();
        assert_eq!(timeout(HANG, queue.wait(id)).await.unwrap().unwrap().unwrap().status(), JobStatus::Done);
        registry.shutdown().await;
    })
    .await;
}

/// Serves the queue through two handles, as two processes would. Returns the highest number of jobs with the same key that ran
/// simultaneously.
async fn highest(database: &TestDatabase, limits: QueueLimits, jobs: impl IntoIterator<Item = &'static str>) -> usize {
    let processes = [database.open().await, database.open().await];
    let queue = processes[0].queue::<Mail>("mail");
    queue.set_limits(limits).await.unwrap();
    let mut ids = Vec::new();
    for key in jobs {
        ids.push(queue.enqueue(mail(key)).limit_key(key).await.unwrap());
    }
    let (running, highest) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let mut registries = Vec::new();
    for process in &processes {
        let (registry, _) = registry();
        let (running, highest) = (running.clone(), highest.clone());
        let handler = move |job: Job<Mail>| {
            let (running, highest) = (running.clone(), highest.clone());
            async move {
                let key = job.into_inner().to;
                let same = {
                    let mut running = running.lock().unwrap();
                    running.push(key.clone());
                    running.iter().filter(|other| **other == key).count()
                };
                highest.fetch_max(same, Ordering::SeqCst);
                sleep(Duration::from_millis(20)).await;
                let mut running = running.lock().unwrap();
                let index = running.iter().position(|other| *other == key).unwrap();
                running.swap_remove(index);
                Ok::<_, Infallible>(())
            }
        };
        process.queue::<Mail>("mail").serve(&registry, options().concurrency(4), handler).await.unwrap();
        registries.push(registry);
    }
    for id in ids {
        assert_eq!(timeout(HANG, queue.wait(id)).await.unwrap().unwrap().unwrap().status(), JobStatus::Done);
    }
    for registry in registries {
        registry.shutdown().await;
    }
    highest.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn running_jobs_of_a_queue_are_limited_across_processes() {
    on_each_database(async |database| {
        assert_eq!(highest(database, QueueLimits::default().running(2), ["a"; 12]).await, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_jobs_of_a_key_are_limited_and_do_not_block_other_keys() {
    on_each_database(async |database| {
        let jobs = [["a"; 8], ["b"; 8]].concat();
        let limits = QueueLimits::default().running_per_key(1);
        assert_eq!(highest(database, limits, jobs).await, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_its_handler_completes_frees_its_limit_key() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        queue.set_limits(QueueLimits::default().running_per_key(1)).await.unwrap();
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(queue.enqueue(mail("ann")).limit_key("ann").await.unwrap());
        }
        let (registry, losses) = registry();
        let durable = jobs.clone();
        let handler = move |job: Job<Mail>| {
            let jobs = durable.clone();
            async move {
                if let Some(pool) = jobs.sqlite_pool() {
                    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
                    job.complete_in(&mut *tx, &()).await?;
                    tx.commit().await?;
                } else {
                    let mut tx = jobs.postgres_pool().unwrap().begin().await?;
                    job.complete_in(&mut *tx, &()).await?;
                    tx.commit().await?;
                }
                Ok::<_, Failure>(())
            }
        };
        // The maintenance interval is long, because maintenance would free the key too.
        let options = options().concurrency(4).maintenance_interval(HANG * 10);
        queue.serve(&registry, options, handler).await.unwrap();
        for id in ids {
            let info = timeout(HANG, queue.wait(id)).await.expect("the key is free").unwrap().unwrap();
            assert_eq!(info.status(), JobStatus::Done);
        }
        registry.shutdown().await;
        assert_eq!(losses.all(), []);
    })
    .await;
}

/// The rate limit allows one job per day. The limit is removed while the worker waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn new_limits_replace_a_rate_that_a_worker_waits_for() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        queue.set_limits(QueueLimits::default().rate(1, Duration::MAX)).await.unwrap();
        let ids = queue.enqueue_all(vec![mail("ann"); 2]).await.unwrap();
        let (registry, _) = registry();
        queue.serve(&registry, options(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        timeout(HANG, queue.wait(ids[0])).await.unwrap().unwrap();
        // The worker now tries to fetch the second job, and waits. If this takes longer, the test passes even if the worker would wait for
        // the period.
        sleep(Duration::from_millis(500)).await;
        assert_eq!(queue.counts().await.unwrap().waiting, 1);
        queue.set_limits(QueueLimits::default()).await.unwrap();
        timeout(HANG, queue.wait(ids[1])).await.expect("the second job runs").unwrap();
        registry.shutdown().await;
    })
    .await;
}

/// A worker has fetched a job, and the job waits for the end of another one. The job is cancelled meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn job_that_is_cancelled_before_its_start_never_starts() {
    on_each_store(async |jobs| {
        let queue = jobs.queue::<Mail>("mail");
        let started = Arc::new(Mutex::new(Vec::new()));
        let (all, release) = (started.clone(), Arc::new(Semaphore::new(0)));
        let released = release.clone();
        let handler = move |job: Job<Mail>| {
            all.lock().unwrap().push(job.id());
            let released = released.clone();
            async move {
                released.acquire().await.unwrap().forget();
                Ok::<_, Infallible>(())
            }
        };
        let (registry, losses) = registry();
        let ids = queue.enqueue_all(vec![mail("ann"); 3]).await.unwrap();
        queue.serve(&registry, options().concurrency(1).batch_size(10), handler).await.unwrap();
        let is_held = async || {
            let info = queue.info(ids[1]).await.unwrap().unwrap();
            (info.status() == JobStatus::Running && !started.lock().unwrap().is_empty()).then_some(())
        };
        until("the worker holds the second job", is_held).await;
        assert!(queue.cancel(ids[1]).await.unwrap());
        release.add_permits(2);
        timeout(HANG, queue.wait(ids[2])).await.unwrap().unwrap();
        registry.shutdown().await;
        assert_eq!((&*started.lock().unwrap(), losses.all()), (&vec![ids[0], ids[2]], vec![]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_the_starts_of_a_period() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        queue.set_limits(QueueLimits::default().rate(5, Duration::from_secs(2))).await.unwrap();
        let ids = queue.enqueue_all(vec![mail("ann"); 9]).await.unwrap();
        let (registry, _) = registry();
        let starts = Arc::new(Mutex::new(Vec::new()));
        let all = starts.clone();
        let handler = move |_: Job<Mail>| {
            all.lock().unwrap().push(Instant::now());
            async { Ok::<_, Infallible>(()) }
        };
        let served = Instant::now();
        queue.serve(&registry, options().concurrency(20), handler).await.unwrap();
        for id in ids {
            timeout(HANG, queue.wait(id)).await.unwrap().unwrap();
        }
        let starts = starts.lock().unwrap().clone();
        // Five jobs start immediately. After that, one job starts every 0.4 seconds.
        assert!(starts[8] - served > Duration::from_millis(1400), "{served:?} {starts:?}");
        // Without limits, all jobs start immediately. With the limit, 20 jobs would always take 6 seconds or more.
        queue.set_limits(QueueLimits::default()).await.unwrap();
        until("20 jobs take less than 5 seconds", async || {
            let start = Instant::now();
            for id in queue.enqueue_all(vec![mail("ann"); 20]).await.unwrap() {
                timeout(HANG, queue.wait(id)).await.unwrap().unwrap();
            }
            (start.elapsed() < Duration::from_secs(5)).then_some(())
        })
        .await;
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_jobs_are_paged_retried_and_discarded_in_bulk() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<u32>("many");
        let ids = queue.enqueue_all(0..1250).await.unwrap();
        let now = if jobs.sqlite_pool().is_some() { "1000 + seq / 3" } else { "to_timestamp(1000)" };
        sql(&jobs, &format!("UPDATE {{jobs}} SET state = 'dead', ended_at = {now}, attempts = 3, error = 'no'")).await;
        let (mut page, mut all) = (queue.dead().await.unwrap(), Vec::new());
        while let Some(last) = page.last() {
            assert!(page.len() <= 100);
            let next = queue.dead_after(last).await.unwrap();
            all.extend(page.iter().map(JobInfo::id));
            page = next;
        }
        assert_eq!(all, ids, "each job once, oldest first");
        assert_eq!(queue.retry_all().await.unwrap(), 1250);
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.waiting, counts.dead), (1250, 0));
        assert_eq!(queue.info(ids[7]).await.unwrap().unwrap().attempts(), 0);
        sql(&jobs, "UPDATE {jobs} SET state = 'dead', ended_at = run_at").await;
        assert_eq!(queue.discard_all().await.unwrap(), 1250);
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM {jobs}").await, [0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_job_stays_dead_while_another_job_uses_its_key() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<u32>("keys");
        let dead = queue.enqueue(1).unique_key("one").await.unwrap().id;
        sql(&jobs, "UPDATE {jobs} SET state = 'dead', ended_at = run_at").await;
        let other = queue.enqueue(2).unique_key("one").await.unwrap();
        assert!(other.is_new);
        assert!(!queue.retry(dead).await.unwrap());
        assert_eq!(queue.retry_all().await.unwrap(), 0);
        assert!(queue.discard(other.id).await.unwrap());
        assert!(queue.retry(dead).await.unwrap());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_hook_is_called_and_dead_jobs_are_deleted_after_their_retention() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hook = seen.clone();
        let options =
            options().max_attempts(2).dead_retention(Duration::from_secs(1)).maintenance_interval(Duration::from_secs(1)).on_dead(
                move |job| hook.lock().unwrap().push((job.id(), job.attempts(), job.error().unwrap().to_owned(), job.status())),
            );
        queue.serve(&registry, options, async |_: Job<Mail>| Err::<(), _>("no such address")).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        until("the hook is called", async || {
            let seen = seen.lock().unwrap();
            (*seen == [(id, 2, "no such address".to_owned(), JobStatus::Dead)]).then_some(())
        })
        .await;
        until("the dead job is deleted", async || queue.info(id).await.unwrap().is_none().then_some(())).await;
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoint_survives_a_failed_attempt() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let handler = async |job: Job<Mail>| {
            let from: u32 = job.checkpoint()?.unwrap_or(0);
            job.save_checkpoint(&(from + 10)).await?;
            if job.attempt() < 3 { Err(Failure::retry("not yet")) } else { Ok(job.checkpoint::<u32>()?.unwrap()) }
        };
        queue.serve(&registry, options(), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let info = timeout(HANG, queue.wait(id)).await.unwrap().unwrap().unwrap();
        assert_eq!((info.attempts(), info.result().unwrap()), (3, Some(30)));
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_completes_in_the_transaction_of_its_handler() {
    on_each_store(async |jobs: Durable| {
        sql(&jobs, "CREATE TABLE paid (id BIGINT)").await;
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let pools = jobs.clone();
        // The first attempt rolls its transaction back. The second attempt commits its transaction.
        let handler = move |job: Job<Mail>| {
            let jobs = pools.clone();
            async move {
                macro_rules! pay {
                    ($tx:expr) => {{
                        let mut tx = $tx;
                        sqlx::query("INSERT INTO paid VALUES (1)").execute(&mut *tx).await?;
                        job.complete_in(&mut *tx, &"paid").await?;
                        if job.attempt() == 1 {
                            tx.rollback().await?;
                        } else {
                            tx.commit().await?;
                        }
                    }};
                }
                match (jobs.sqlite_pool(), jobs.postgres_pool()) {
                    (Some(pool), _) => pay!(pool.begin_with("BEGIN IMMEDIATE").await?),
                    (_, Some(pool)) => pay!(pool.begin().await?),
                    _ => unreachable!(),
                }
                Ok::<_, Failure>("ignored")
            }
        };
        queue.serve(&registry, options(), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let info = timeout(HANG, queue.wait(id)).await.unwrap().unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.result().unwrap()), (JobStatus::Done, 2, Some("paid".to_owned())));
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM paid").await, [1]);
        registry.shutdown().await;
        let rolled_back = "the transaction that completes the job was not committed; retried immediately";
        let rolled_back = format!("job {id}, attempt 1 of 20: {rolled_back}");
        assert_eq!(losses.all(), [("failed", "mail", rolled_back)]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_job_is_reported_and_its_late_outcome_discarded() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, losses) = registry();
        let (go, started) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (permits, start) = (go.clone(), started.clone());
        let lost = Arc::new(Mutex::new(None));
        let seen = lost.clone();
        let handler = move |job: Job<Mail>| {
            let (go, seen) = (permits.clone(), seen.clone());
            start.add_permits(1);
            async move {
                go.acquire().await.unwrap().forget();
                *seen.lock().unwrap() = Some(job.save_checkpoint(&1).await);
                Ok::<_, Infallible>("late")
            }
        };
        queue.serve(&registry, options().lease(Duration::from_secs(3)), handler).await.unwrap();
        let id = queue.enqueue(mail("ann")).await.unwrap();
        timeout(HANG, started.acquire()).await.unwrap().unwrap().forget();
        // Changes the row as if this process had hung for longer than its lease, and another worker had fetched the job.
        let year = if jobs.sqlite_pool().is_some() { "run_at + 31536000000" } else { "run_at + interval '1 year'" };
        sql(&jobs, &format!("INSERT INTO {{workers}} SELECT 'another', 'mail', {year} FROM {{jobs}}")).await;
        sql(&jobs, "UPDATE {jobs} SET run = run + 1, worker = 'another'").await;
        sql(&jobs, "DELETE FROM {workers} WHERE id <> 'another'").await;
        until("the lost lease is reported", async || {
            let text = format!(
                "lease lost: the worker could not renew its lease of 3s in time, and these jobs may run a second time: {id}"
            );
            losses.all().contains(&("failed", "mail worker", text)).then_some(())
        })
        .await;
        go.add_permits(1);
        until("the lost outcome is reported", async || {
            losses.all().iter().any(|(_, name, text)| *name == "mail" && text.contains("discarded")).then_some(())
        })
        .await;
        assert!(matches!(*lost.lock().unwrap(), Some(Err(Error::LeaseLost(_)))));
        let info = queue.info(id).await.unwrap().unwrap();
        assert_eq!((info.status(), info.result::<String>().unwrap()), (JobStatus::Running, None));
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn u128_payloads_survive_an_upgrade() {
    on_each_store(async |jobs: Durable| {
        jobs.queue::<u128>("big").enqueue(u128::MAX).await.unwrap();
        let queue = jobs.queue::<(u128, bool)>("big").version(2).upgrade(1, |old: u128| (old, true));
        let (registry, _) = registry();
        let (ran, mut runs) = tokio::sync::mpsc::unbounded_channel();
        let handler = move |job: Job<(u128, bool)>| {
            ran.send(job.0).unwrap();
            async { Ok::<_, Infallible>(()) }
        };
        queue.serve(&registry, options(), handler).await.unwrap();
        assert_eq!(timeout(HANG, runs.recv()).await.unwrap(), Some(u128::MAX));
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_are_separate() {
    let Some(database) = TestDatabase::postgres() else { return };
    let default = database.open().await;
    let other = Durable::postgres_in(&database.address, "Odd \"schema\"").await.unwrap();
    let id = other.queue("mail").enqueue(mail("ann")).await.unwrap();
    assert!(default.queue::<Mail>("mail").info(id).await.unwrap().is_none());
    let queue = other.queue::<Mail>("mail");
    let (registry, losses) = registry();
    queue.serve(&registry, options(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    assert_eq!(timeout(HANG, queue.wait(id)).await.unwrap().unwrap().unwrap().status(), JobStatus::Done);
    assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
    let error = Durable::postgres_in(&database.address, "").await.unwrap_err();
    assert!(matches!(error, Error::Address(_)), "{error}");
}
