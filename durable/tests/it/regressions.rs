//! Tests for bugs that reviews have found. These bugs must not come back. The tests run on both stores.

use crate::common::{HANG, Mail, TestDatabase, mail, numbers, on_each_database, on_each_store, registry, sql, until};
use background_tasks_durable::{Durable, Job, JobStatus, QueueLimits, WorkerOptions, sqlx};
use futures_util::future::{join_all, poll_immediate};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::timeout;

/// If a worker is deregistered while its fetch commits, no worker starts the fetched job. Another worker must find this job, and the lost
/// fetch must not count as an attempt.
#[tokio::test(flavor = "multi_thread")]
async fn job_of_an_unknown_worker_returns_uncharged() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let left = queue.enqueue(mail("left")).await.unwrap();
        assert_eq!(sql(&jobs, "UPDATE {jobs} SET state = 'running', run = 1, worker = 'unknown'").await, 1);
        let (registry, _) = registry();
        let options = WorkerOptions::default().lease(Duration::from_secs(3));
        queue.serve(&registry, options, async |job: Job<Mail>| Ok::<_, Infallible>(job.attempt())).await.unwrap();
        let info = queue.wait(left).await.unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), info.result().unwrap()), (JobStatus::Done, 1, Some(1)));
        registry.shutdown().await;
    })
    .await;
}

/// If the job were deleted, its unique key would be free too early. The next process that starts would then enqueue the same tick of a
/// schedule again.
#[tokio::test(flavor = "multi_thread")]
async fn key_with_a_period_is_kept_beyond_the_retention() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let tick = queue.enqueue(mail("tick")).unique_key("tick").unique_for(Duration::from_hours(1)).await.unwrap().id;
        let other = queue.enqueue(mail("other")).unique_key("other").await.unwrap().id;
        let (registry, _) = registry();
        let options = WorkerOptions::default().retention(Duration::ZERO).maintenance_interval(Duration::from_secs(1));
        queue.serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        queue.wait(tick).await.unwrap();
        until("the other job is deleted", async || queue.info(other).await.unwrap().is_none().then_some(())).await;
        assert_eq!(queue.info(tick).await.unwrap().unwrap().status(), JobStatus::Done);
        sql(&jobs, "UPDATE {jobs} SET unique_until = run_at").await;
        until("the tick is deleted", async || queue.info(tick).await.unwrap().is_none().then_some(())).await;
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_connects_find_one_store() {
    on_each_database(async |database: &TestDatabase| {
        let all = (0..8).map(|_| {
            let address = database.address.clone();
            tokio::spawn(async move {
                Durable::connect(&address).await.unwrap().queue::<Mail>("mail").enqueue(mail("ann")).await.unwrap()
            })
        });
        join_all(all).await.into_iter().for_each(|id| assert!(id.is_ok()));
        assert_eq!(database.open().await.queue::<Mail>("mail").counts().await.unwrap().waiting, 8);
    })
    .await;
}

/// Two roles or two programs may have different search paths in Postgres.
#[tokio::test(flavor = "multi_thread")]
async fn another_search_path_finds_the_same_store() {
    let Some(database) = TestDatabase::postgres() else { return };
    let jobs = database.open().await;
    sqlx::query("CREATE SCHEMA other").execute(jobs.postgres_pool().unwrap()).await.unwrap();
    let separator = if database.address.contains('?') { '&' } else { '?' };
    let other = Durable::connect(&format!("{}{separator}options=-c%20search_path%3Dother,public", database.address)).await.unwrap();
    let id = other.queue::<Mail>("mail").enqueue(mail("ann")).await.unwrap();
    assert!(jobs.queue::<Mail>("mail").info(id).await.unwrap().is_some());
}

/// When an HTTP client disconnects, a web server drops the handler. The database connection of the handler must not keep an open
/// transaction. If it did, jobs that are enqueued later on this connection would be lost.
#[tokio::test(flavor = "multi_thread")]
async fn dropped_enqueue_does_not_roll_back_other_jobs() {
    on_each_database(async |database| {
        let (jobs, others) = (database.open().await, database.open().await);
        let queue = jobs.queue::<Mail>("mail");
        for round in 0..20 {
            for polls in 0..20 {
                let mut keyed = Box::pin(queue.enqueue(mail("dropped")).unique_key(format!("{round} {polls}")).into_future());
                for _ in 0..polls {
                    if poll_immediate(&mut keyed).await.is_some() {
                        break;
                    }
                    yield_now().await;
                }
            }
            // Enqueues as many jobs as the pool has connections, so that each connection is used.
            for kept in join_all((0..10).map(|_| queue.enqueue(mail("kept")).into_future())).await {
                let info = others.queue::<Mail>("mail").info(kept.unwrap()).await.unwrap();
                assert!(info.is_some(), "in round {round}");
            }
        }
    })
    .await;
}

/// If a call to `begin` is dropped while the server executes it, the driver does not record the transaction. The transaction must end when
/// the connection returns to the pool.
#[tokio::test(flavor = "multi_thread")]
async fn unrecorded_transaction_ends_when_its_connection_is_released() {
    let Some(database) = TestDatabase::postgres() else { return };
    let (jobs, other) = (database.open().await, database.open().await);
    let pool = jobs.postgres_pool().unwrap();
    let mut connection = pool.acquire().await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await.unwrap();
    drop(connection);
    until("the connections are idle", async || (pool.num_idle() == pool.size() as usize).then_some(())).await;
    // One of these jobs uses that connection.
    for id in join_all((0..pool.size()).map(|_| jobs.queue::<Mail>("mail").enqueue(mail("ann")).into_future())).await {
        assert!(other.queue::<Mail>("mail").info(id.unwrap()).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_the_dead_jobs_with_the_same_key_is_retried() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<u32>("keys");
        for number in 0..3 {
            assert!(queue.enqueue(number).unique_key("one").await.unwrap().is_new);
            queue.enqueue(number).await.unwrap();
            sql(&jobs, "UPDATE {jobs} SET state = 'dead', ended_at = run_at").await;
        }
        assert_eq!(queue.retry_all().await.unwrap(), 4);
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.waiting, counts.dead), (4, 2));
        assert_eq!(queue.retry_all().await.unwrap(), 0);
    })
    .await;
}

/// In the first batch, only one job can be retried. The call must continue with the next batch.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_after_a_batch_with_the_same_key_are_retried() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<u32>("keys");
        queue.enqueue_all(0..1010).await.unwrap();
        let first = if jobs.sqlite_pool().is_some() { "run_at - 1000" } else { "run_at - interval '1 second'" };
        sql(&jobs, "UPDATE {jobs} SET state = 'dead', ended_at = run_at").await;
        let same = format!("UPDATE {{jobs}} SET unique_key = 'one', ended_at = {first} WHERE length(payload) < 4");
        assert_eq!(sql(&jobs, &same).await, 1000);
        assert_eq!(queue.retry_all().await.unwrap(), 11);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_job_is_not_retried_if_an_open_transaction_takes_its_key() {
    let Some(database) = TestDatabase::postgres() else { return };
    let jobs = database.open().await;
    let queue = jobs.queue::<u32>("keys");
    let dead = queue.enqueue(1).unique_key("one").await.unwrap().id;
    sql(&jobs, "UPDATE {jobs} SET state = 'dead', ended_at = run_at").await;
    let mut tx = jobs.postgres_pool().unwrap().begin().await.unwrap();
    assert!(queue.enqueue(2).unique_key("one").in_transaction(&mut *tx).await.unwrap().is_new);
    let retry = tokio::spawn({
        let queue = queue.clone();
        async move { (queue.retry(dead).await, queue.retry_all().await) }
    });
    until_a_lock_is_awaited(&jobs).await;
    tx.commit().await.unwrap();
    let (one, all) = retry.await.unwrap();
    assert_eq!((one.unwrap(), all.unwrap()), (false, 0));
}

async fn until_a_lock_is_awaited(jobs: &Durable) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("a statement waits for a lock", async || (numbers(jobs, waiting).await[0] > 0).then_some(())).await;
}

/// Serves the queue "mail" with a handler that waits for a permit of the second semaphore. Each start of a job adds a permit to the first
/// one. The next maintenance is after the test, because it would free limit keys.
async fn serve_until_permitted(jobs: &Durable) -> (Arc<Semaphore>, Arc<Semaphore>) {
    let (started, end) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (start, permits) = (started.clone(), end.clone());
    let handler = move |_: Job<Mail>| {
        start.add_permits(1);
        let permits = permits.clone();
        async move {
            permits.acquire().await.unwrap().forget();
            Ok::<_, Infallible>(())
        }
    };
    let options = WorkerOptions::default().concurrency(8).maintenance_interval(HANG * 10);
    jobs.queue::<Mail>("mail").serve(&registry().0, options, handler).await.unwrap();
    (started, end)
}

async fn starts(started: &Semaphore, count: u32) {
    timeout(HANG, started.acquire_many(count)).await.expect("the jobs start").unwrap().forget();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_limit_of_a_key_applies_to_blocked_jobs() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        queue.set_limits(QueueLimits::default().running_per_key(1)).await.unwrap();
        queue.enqueue_all(vec![mail("ann"); 6]).limit_key("ann").await.unwrap();
        let (started, _end) = serve_until_permitted(&jobs).await;
        starts(&started, 1).await;
        let blocked = "SELECT count(*) FROM {jobs} WHERE state = 'blocked'";
        until("the other jobs are blocked", async || (numbers(&jobs, blocked).await == [5]).then_some(())).await;
        queue.set_limits(QueueLimits::default().running_per_key(3)).await.unwrap();
        starts(&started, 2).await;
        until("the other jobs are blocked", async || (numbers(&jobs, blocked).await == [3]).then_some(())).await;
        queue.set_limits(QueueLimits::default()).await.unwrap();
        starts(&started, 3).await;
    })
    .await;
}

/// For example, several jobs with the same key have ended in the same commit.
#[tokio::test(flavor = "multi_thread")]
async fn end_of_a_job_unblocks_as_many_jobs_as_the_limit_allows() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        queue.set_limits(QueueLimits::default().running_per_key(3)).await.unwrap();
        let (started, end) = serve_until_permitted(&jobs).await;
        queue.enqueue(mail("first")).limit_key("ann").await.unwrap();
        starts(&started, 1).await;
        queue.enqueue_all(vec![mail("ann"); 3]).limit_key("ann").delay(HANG).await.unwrap();
        sql(&jobs, "UPDATE {jobs} SET state = 'blocked' WHERE state = 'scheduled'").await;
        // The first maintenance may already have started some of the jobs.
        end.add_permits(1);
        starts(&started, 3).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_or_discarded_job_unblocks_the_next_job_of_its_key() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        queue.set_limits(QueueLimits::default().running_per_key(1)).await.unwrap();
        let ids = queue.enqueue_all(["ann", "bob", "cy", "di"].map(mail)).limit_key("key").await.unwrap();
        sql(&jobs, &format!("UPDATE {{jobs}} SET state = 'blocked' WHERE id <> '{}'", ids[0])).await;
        let available = async |id| {
            let query = format!("SELECT count(*) FROM {{jobs}} WHERE state = 'available' AND id = '{id}'");
            assert_eq!(numbers(&jobs, &query).await, [1]);
        };
        assert!(queue.cancel(ids[0]).await.unwrap());
        available(ids[1]).await;
        assert!(queue.discard(ids[1]).await.unwrap());
        available(ids[2]).await;
    })
    .await;
}

/// A worker has seen that the only allowed job of a key runs, and has not committed yet that the next job is blocked. If the running job
/// ends now, the next job must still become available.
#[tokio::test(flavor = "multi_thread")]
async fn job_that_becomes_blocked_while_the_previous_job_ends_starts() {
    let Some(database) = TestDatabase::postgres() else { return };
    let (jobs, other) = (database.open().await, database.open().await);
    let queue = jobs.queue::<Mail>("mail");
    queue.set_limits(QueueLimits::default().running_per_key(1)).await.unwrap();
    let first = queue.enqueue(mail("first")).limit_key("other").await.unwrap();
    sql(&jobs, "UPDATE {jobs} SET state = 'blocked'").await;
    let next = queue.enqueue(mail("next")).limit_key("key").delay(HANG * 10).await.unwrap();
    let (started, end) = serve_until_permitted(&jobs).await;
    // This job starts at the first maintenance.
    starts(&started, 1).await;
    end.add_permits(1);
    timeout(HANG, queue.wait(first)).await.unwrap().unwrap();
    let running = queue.enqueue(mail("running")).limit_key("key").await.unwrap();
    starts(&started, 1).await;
    let mut tx = other.postgres_pool().unwrap().begin().await.unwrap();
    sqlx::query("SELECT FROM background_tasks.queues FOR UPDATE").execute(&mut *tx).await.unwrap();
    let block = "UPDATE background_tasks.jobs SET state = 'blocked', run_at = now() WHERE id = $1";
    sqlx::query(block).bind(next.to_string()).execute(&mut *tx).await.unwrap();
    end.add_permits(2);
    until("the job is done", async || (queue.info(running).await.unwrap().unwrap().status() == JobStatus::Done).then_some(()))
        .await;
    // Either the end of the job or the next fetch waits for the transaction.
    until_a_lock_is_awaited(&other).await;
    tx.commit().await.unwrap();
    let info = timeout(HANG, queue.wait(next)).await.expect("the job starts").unwrap().unwrap();
    assert_eq!(info.status(), JobStatus::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_continues_while_the_program_uses_all_connections_to_the_file() {
    let database = TestDatabase::sqlite();
    let (jobs, other) = (database.open().await, database.open().await);
    let (registry, losses) = registry();
    jobs.queue::<Mail>("mail")
        .serve(&registry, WorkerOptions::default(), async |_: Job<Mail>| Ok::<_, Infallible>(()))
        .await
        .unwrap();
    let pool = jobs.sqlite_pool().unwrap();
    let connections = join_all((0..8).map(|_| pool.acquire())).await;
    assert!(connections.iter().all(Result::is_ok) && pool.try_acquire().is_none());
    let queue = other.queue::<Mail>("mail");
    let id = queue.enqueue(mail("ann")).await.unwrap();
    let info = timeout(HANG, queue.wait(id)).await.expect("the job runs").unwrap().unwrap();
    assert_eq!(info.status(), JobStatus::Done);
    drop(connections);
    registry.shutdown().await;
    assert_eq!(losses.all(), []);
}
