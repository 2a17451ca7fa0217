//! What a reviewer found by thinking, on both stores.

mod common;

use background_tasks_durable::{Durable, Error, Job, Options, Status, sqlx};
use common::{Mail, Place, each, each_place, mail, registry, sql, until};
use futures_util::future::{join_all, poll_immediate};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

/// As when the server is killed while a fetch commits: the engine is gone, and a job stands under its name. A job that it has fetched before still
/// runs, so the name is alive.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_left_behind_is_given_back_while_its_jobs_still_run() {
    each(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let (registry, _) = registry();
        let go = Arc::new(Semaphore::new(0));
        let gone = go.clone();
        let handler = move |job: Job<Mail>| {
            let gone = gone.clone();
            async move {
                if job.to == "long" {
                    gone.acquire().await.unwrap().forget();
                }
                Ok::<_, Infallible>(())
            }
        };
        let options = Options::default().lease(Duration::from_secs(3));
        queue.serve(&registry, options, handler).await.unwrap();
        let long = queue.enqueue(mail("long")).await.unwrap();
        until("it runs", async || (sql(&jobs, "UPDATE {jobs} SET priority = 0 WHERE status = 'Running'").await == 1).then_some(()))
            .await;
        // An engine that ends, and another one.
        sql(&jobs, "UPDATE {workers} SET worker_type = 'away'").await;
        until("another engine", async || (sql(&jobs, "UPDATE {workers} SET last_seen = last_seen").await == 2).then_some(())).await;
        sql(&jobs, "UPDATE {workers} SET worker_type = 'mail'").await;
        let left = queue.enqueue(mail("left")).later(Duration::from_hours(1)).await.unwrap();
        let stands = format!(
            "UPDATE {{jobs}} SET status = 'Queued', run_at = (SELECT run_at FROM {{jobs}} WHERE id = '{long}'),
            lock_by = (SELECT lock_by FROM {{jobs}} WHERE id = '{long}') WHERE id = '{left}'"
        );
        assert_eq!(sql(&jobs, &stands).await, 1);
        let info = queue.wait(left).await.unwrap().unwrap();
        assert_eq!(info.status(), Status::Done);
        assert_eq!(queue.info(long).await.unwrap().unwrap().status(), Status::Running);
        go.add_permits(1);
        assert_eq!(queue.wait(long).await.unwrap().unwrap().status(), Status::Done);
        registry.shutdown().await;
    })
    .await;
}

/// The key is what keeps a tick from being enqueued by the next process that looks back.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_tick_is_kept_for_longer_than_its_job_is_retained() {
    each(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        let tick = queue.enqueue(mail("tick")).unique("cron * * * * * * 0").await.unwrap();
        let other = queue.enqueue(mail("other")).unique("other").await.unwrap();
        let (registry, _) = registry();
        let options = Options::default().retain(Duration::ZERO).upkeep(Duration::from_secs(1));
        queue.serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        queue.wait(tick).await.unwrap();
        until("the other is dropped", async || queue.info(other).await.unwrap().is_none().then_some(())).await;
        assert_eq!(queue.info(tick).await.unwrap().unwrap().status(), Status::Done);
        let old = if jobs.sqlite_pool().is_some() { "done_at - 1000" } else { "done_at - interval '1000 s'" };
        sql(&jobs, &format!("UPDATE {{jobs}} SET done_at = {old}")).await;
        until("it is dropped", async || queue.info(tick).await.unwrap().is_none().then_some(())).await;
        registry.shutdown().await;
    })
    .await;
}

/// What is done is most of the table, and looked for each minute.
#[tokio::test(flavor = "multi_thread")]
async fn the_upkeep_looks_only_at_what_it_drops() {
    each(async |jobs: Durable| {
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
async fn eight_that_come_at_once_find_one_store() {
    each_place(async |place: &Place| {
        let all = (0..8).map(|_| {
            let address = place.address.clone();
            tokio::spawn(async move {
                Durable::connect(&address).await.unwrap().queue::<Mail>("mail").enqueue(mail("ann")).await.unwrap()
            })
        });
        join_all(all).await.into_iter().for_each(|id| assert!(id.is_ok()));
        assert_eq!(place.open().await.queue::<Mail>("mail").counts().await.unwrap().waiting, 8);
    })
    .await;
}

/// Two roles, or two programs, of which each has its own search path.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_another_search_path_finds_the_same_store() {
    let Some(place) = Place::postgres() else { return };
    let jobs = place.open().await;
    sqlx::query("CREATE SCHEMA other").execute(jobs.postgres_pool().unwrap()).await.unwrap();
    let between = if place.address.contains('?') { '&' } else { '?' };
    let other = Durable::connect(&format!("{}{between}options=-c%20search_path%3Dother,public", place.address)).await.unwrap();
    let id = other.queue::<Mail>("mail").enqueue(mail("ann")).await.unwrap();
    assert!(jobs.queue::<Mail>("mail").info(id).await.unwrap().is_some());
}

/// SQLite does not tell upper case from lower.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_the_programs_own_is_left_alone() {
    let place = Place::sqlite();
    for table in ["jobs", "workers"] {
        let path = format!("{}.{table}", place.address);
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE TABLE {table} (name TEXT)"))).execute(&pool).await.unwrap();
        let error = Durable::sqlite(&path).await.unwrap_err();
        assert!(matches!(&error, Error::Schema(text) if text.contains(&format!("there is a table {table} "))), "{error}");
    }
}

/// As a server's handler is dropped when its client goes. A connection that it had must not take what others write into a transaction that nobody ends.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_dropped_as_it_begins_takes_nobody_else_s_jobs_along() {
    each_place(async |place| {
        let (jobs, others) = (place.open().await, place.open().await);
        let queue = jobs.queue::<Mail>("mail");
        for round in 0..20 {
            for polls in 0..20 {
                let mut keyed = Box::pin(queue.enqueue(mail("dropped")).unique(format!("{round} {polls}")).into_future());
                for _ in 0..polls {
                    if poll_immediate(&mut keyed).await.is_some() {
                        break;
                    }
                    yield_now().await;
                }
            }
            // As many as there are connections.
            for kept in join_all((0..10).map(|_| queue.enqueue(mail("kept")).into_future())).await {
                let there = others.queue::<Mail>("mail").info(kept.unwrap()).await.unwrap();
                assert!(there.is_some(), "in round {round}");
            }
        }
    })
    .await;
}
