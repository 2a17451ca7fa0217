//! Regression tests for bugs that reviews found, on both stores.

use crate::common::{Mail, TestDatabase, mail, on_each_database, on_each_store, registry, sql, until};
use background_tasks_durable::{Durable, Error, Job, JobStatus, WorkerOptions, sqlx};
use futures_util::future::{join_all, poll_immediate};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// If the server is killed while a fetch commits, the engine has ended but holds a job. Another job that it fetched before still runs, so the
/// engine's name stays alive.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_left_by_a_dropped_engine_are_released_while_others_run() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let go = Arc::new(Semaphore::new(0));
        let permits = go.clone();
        let handler = move |job: Job<Mail>| {
            let permits = permits.clone();
            async move {
                if job.to == "long" {
                    permits.acquire().await.unwrap().forget();
                }
                Ok::<_, Infallible>(())
            }
        };
        let options = WorkerOptions::default().lease(Duration::from_secs(3));
        queue.serve(&registry, options, handler).await.unwrap();
        let long = queue.enqueue(mail("long")).await.unwrap();
        until("the job runs", async || {
            (sql(&jobs, "UPDATE {jobs} SET priority = 0 WHERE status = 'Running'").await == 1).then_some(())
        })
        .await;
        // Makes the engine fail, so that another one replaces it.
        sql(&jobs, "UPDATE {workers} SET worker_type = 'away'").await;
        until("another engine has started", async || {
            (sql(&jobs, "UPDATE {workers} SET last_seen = last_seen").await == 2).then_some(())
        })
        .await;
        sql(&jobs, "UPDATE {workers} SET worker_type = 'mail'").await;
        let left = queue.enqueue(mail("left")).delay(Duration::from_hours(1)).await.unwrap();
        let assign = format!(
            "UPDATE {{jobs}} SET status = 'Queued', run_at = (SELECT run_at FROM {{jobs}} WHERE id = '{long}'),
            lock_by = (SELECT lock_by FROM {{jobs}} WHERE id = '{long}') WHERE id = '{left}'"
        );
        assert_eq!(sql(&jobs, &assign).await, 1);
        let info = queue.wait(left).await.unwrap().unwrap();
        assert_eq!(info.status(), JobStatus::Done);
        assert_eq!(queue.info(long).await.unwrap().unwrap().status(), JobStatus::Running);
        go.add_permits(1);
        assert_eq!(queue.wait(long).await.unwrap().unwrap().status(), JobStatus::Done);
        registry.shutdown().await;
    })
    .await;
}

/// Without the key, the next process that starts would enqueue the tick again.
#[tokio::test(flavor = "multi_thread")]
async fn cron_key_is_kept_beyond_the_retention() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let tick = queue.enqueue(mail("tick")).unique_key("cron * * * * * * 0").await.unwrap();
        let other = queue.enqueue(mail("other")).unique_key("other").await.unwrap();
        let (registry, _) = registry();
        let options = WorkerOptions::default().retention(Duration::ZERO).maintenance_interval(Duration::from_secs(1));
        queue.serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        queue.wait(tick).await.unwrap();
        until("the other job is deleted", async || queue.info(other).await.unwrap().is_none().then_some(())).await;
        assert_eq!(queue.info(tick).await.unwrap().unwrap().status(), JobStatus::Done);
        let old = if jobs.sqlite_pool().is_some() { "done_at - 1000" } else { "done_at - interval '1000 s'" };
        sql(&jobs, &format!("UPDATE {{jobs}} SET done_at = {old}")).await;
        until("the tick is deleted", async || queue.info(tick).await.unwrap().is_none().then_some(())).await;
        registry.shutdown().await;
    })
    .await;
}

/// Most jobs in the table are done, and pruning runs every minute.
#[tokio::test(flavor = "multi_thread")]
async fn pruning_uses_an_index() {
    on_each_store(async |jobs: Durable| {
        let plan = match (jobs.sqlite_pool(), jobs.postgres_pool()) {
            (Some(pool), _) => {
                let many = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                    INSERT INTO Jobs (job, id, job_type, status, done_at) SELECT '1', printf('%026d', i), 'mail', 'Done', unixepoch() FROM n";
                sqlx::query(many).execute(pool).await.unwrap();
                sqlx::query("ANALYZE Jobs").execute(pool).await.unwrap();
                let plan = "EXPLAIN QUERY PLAN SELECT id FROM Jobs WHERE job_type = 'mail' AND status = 'Done' AND done_at <= unixepoch() - 100";
                let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(plan).fetch_all(pool).await.unwrap();
                steps.into_iter().map(|step| step.3).collect::<String>()
            }
            (_, Some(pool)) => {
                let many = "INSERT INTO apalis.jobs (job, id, job_type, status, done_at)
                    SELECT '1', lpad(i::text, 26, '0'), 'mail', 'Done', now() FROM generate_series(1, 20000) i";
                sqlx::query(many).execute(pool).await.unwrap();
                sqlx::query("ANALYZE apalis.jobs").execute(pool).await.unwrap();
                let plan = "EXPLAIN SELECT id FROM apalis.jobs WHERE job_type = 'mail' AND status = 'Done' AND done_at <= now() - interval '100 s'";
                sqlx::query_scalar::<_, String>(plan).fetch_all(pool).await.unwrap().concat()
            }
            _ => unreachable!(),
        };
        assert!(plan.contains("background_tasks_ended"), "{plan}");
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

/// Two roles or two programs can have different search paths.
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

/// Table names of SQLite are not case-sensitive.
#[tokio::test(flavor = "multi_thread")]
async fn table_of_the_program_is_rejected() {
    let database = TestDatabase::sqlite();
    for table in ["jobs", "workers"] {
        let path = format!("{}.{table}", database.address);
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE TABLE {table} (name TEXT)"))).execute(&pool).await.unwrap();
        let error = Durable::sqlite(&path).await.unwrap_err();
        assert!(matches!(&error, Error::Schema(text) if text.contains(&format!("table {table} exists"))), "{error}");
    }
}

/// A web server drops a handler when its client disconnects. The handler's connection must not keep an open transaction, which would swallow
/// the jobs that are enqueued on it later.
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
            // As many jobs as connections.
            for kept in join_all((0..10).map(|_| queue.enqueue(mail("kept")).into_future())).await {
                let info = others.queue::<Mail>("mail").info(kept.unwrap()).await.unwrap();
                assert!(info.is_some(), "in round {round}");
            }
        }
    })
    .await;
}
