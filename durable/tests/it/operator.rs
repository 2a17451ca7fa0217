//! Tests the calls of an operator's tool, which does not have the payload types of the jobs. The tests run on both stores.

use crate::common::{HANG, Mail, TestDatabase, mail, numbers, on_each_database, on_each_store, registry, sql, until};
use background_tasks_durable::{Durable, Error, Job, JobInfo, JobStatus, QueueCounts, QueueLimits, WorkerOptions, sqlx};
use std::collections::HashSet;
use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn queues_are_listed_with_counts_limits_age_and_workers() {
    on_each_database(async |database| {
        let (tool, program) = (database.open().await, database.open().await);
        assert_eq!(tool.queues().await.unwrap(), []);
        // The tool finds each of these queues through another table or column.
        let (registry, _) = registry();
        let worker = program.queue::<Mail>("worker");
        let end = Arc::new(Semaphore::new(0));
        let ended = end.clone();
        let handler = move |_: Job<Mail>| {
            let ended = ended.clone();
            async move { ended.acquire().await.map(drop) }
        };
        worker.serve(&registry, WorkerOptions::default(), handler).await.unwrap();
        worker.enqueue_all([mail("ann"), mail("bob")]).await.unwrap();
        program.queue::<Mail>("paused").pause().await.unwrap();
        let limits = QueueLimits::default().running(3).running_per_key(2).rate(5, Duration::from_mins(1));
        program.queue::<Mail>("limits").set_limits(limits).await.unwrap();
        let year = if database.is_postgres { "now() + interval '1 year'" } else { "4000000000000" };
        sql(&program, &format!("INSERT INTO {{workers}} VALUES ('other', 'running', {year})")).await;
        for state in ["scheduled", "retrying", "blocked", "running", "done", "dead", "cancelled"] {
            let name: &'static str = state;
            program.queue::<Mail>(name).enqueue(mail("ann")).delay(HANG).await.unwrap();
            let limit_key = if state == "blocked" { "'key'" } else { "NULL" };
            let worker = if state == "running" { "'other'" } else { "NULL" };
            let update = format!(
                "UPDATE {{jobs}} SET state = '{state}', worker = {worker}, limit_key = {limit_key}, ended_at = enqueued_at WHERE queue = '{state}'"
            );
            assert_eq!(sql(&program, &update).await, 1);
        }
        // The job that has been due for the longest time has the lowest priority.
        let due = program.queue::<Mail>("due");
        let hour_ago = SystemTime::now() - Duration::from_hours(1);
        due.enqueue(mail("old")).run_at(hour_ago).await.unwrap();
        due.enqueue(mail("new")).priority(9).await.unwrap();
        due.enqueue(mail("new")).priority(5).await.unwrap();
        due.enqueue(mail("later")).delay(HANG).await.unwrap();
        // This job is due, but no worker has changed its state to available yet.
        let overdue = program.queue::<Mail>("overdue").enqueue(mail("ann")).delay(HANG).await.unwrap();
        let minutes = if database.is_postgres { "now() - interval '5 minutes'" } else { "enqueued_at - 300000" };
        sql(&program, &format!("UPDATE {{jobs}} SET run_at = {minutes} WHERE id = '{overdue}'")).await;

        let queues = until("the worker has fetched its jobs", async || {
            let queues = tool.queues().await.unwrap();
            queues.iter().any(|queue| queue.name == "worker" && queue.counts.running == 2).then_some(queues)
        })
        .await;
        let names: Vec<_> = queues.iter().map(|queue| &*queue.name).collect();
        let all = [
            "blocked", "cancelled", "dead", "done", "due", "limits", "overdue", "paused", "retrying", "running", "scheduled", "worker",
        ];
        assert_eq!(names, all);
        let of = |name: &str| queues.iter().find(|queue| queue.name == name).unwrap();
        let (mut none, mut waiting) = (QueueCounts::default(), QueueCounts::default());
        waiting.waiting = 1;
        assert_eq!((of("paused").is_paused, of("limits").is_paused), (true, false));
        assert_eq!((of("limits").limits, of("paused").limits), (limits, QueueLimits::default()));
        assert_eq!((of("limits").counts, of("blocked").counts, of("scheduled").counts), (none, waiting, waiting));
        assert_eq!(of("due").counts.waiting, 4);
        assert_eq!((of("retrying").counts.retrying, of("done").counts.done, of("dead").counts.dead), (1, 1, 1));
        assert_eq!((of("cancelled").counts.cancelled, of("running").counts.running), (1, 1));
        none.running = 2;
        assert_eq!(of("worker").counts, none);
        assert_eq!((of("worker").workers, of("running").workers, of("done").workers), (1, 1, 0));
        for queue in &queues {
            let counts = program.untyped_queue(queue.name.clone()).counts().await.unwrap();
            assert_eq!(counts, queue.counts, "{}", queue.name);
            let seconds = queue.oldest.map(|age| age.as_secs());
            match &*queue.name {
                "due" => assert!(seconds.is_some_and(|age| (3600..3600 + 120).contains(&age)), "{seconds:?}"),
                "overdue" => assert!(seconds.is_some_and(|age| (300..300 + 120).contains(&age)), "{seconds:?}"),
                _ => assert_eq!(seconds, None, "{}", queue.name),
            }
        }
        // A worker counts as dead when its lease has expired.
        let past = if database.is_postgres { "'epoch'" } else { "0" };
        sql(&program, &format!("INSERT INTO {{workers}} VALUES ('expired', 'paused', {past})")).await;
        let queues = tool.queues().await.unwrap();
        assert_eq!(queues.iter().find(|queue| queue.name == "paused").unwrap().workers, 0);
        end.add_permits(1);
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_each_status_are_listed_in_pages() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<u32>("numbers");
        let tool = jobs.untyped_queue("numbers".to_owned());
        for status in ["available", "blocked", "scheduled", "retrying", "running", "done", "dead", "cancelled"] {
            // Enqueues many jobs with the same times. Some of them have another priority and a key.
            queue.enqueue_all(0..150).await.unwrap();
            let worker = if status == "running" { "'worker'" } else { "worker" };
            let is_ended = ["done", "dead", "cancelled"].contains(&status);
            let ended = if is_ended { "enqueued_at" } else { "ended_at" };
            let update = format!(
                "UPDATE {{jobs}} SET state = 'moved {status}', worker = {worker}, ended_at = {ended} WHERE state = 'available'"
            );
            assert_eq!(sql(&jobs, &update).await, 150);
        }
        jobs.queue::<u32>("others").enqueue_all(0..10).await.unwrap();
        sql(
            &jobs,
            "UPDATE {jobs} SET state = substr(state, 7), priority = length(payload),
            limit_key = CASE WHEN state = 'moved blocked' THEN substr(payload, 1, 1) END WHERE state LIKE 'moved %'",
        )
        .await;
        let statuses =
            [JobStatus::Waiting, JobStatus::Retrying, JobStatus::Running, JobStatus::Done, JobStatus::Dead, JobStatus::Cancelled];
        for status in statuses {
            let mut all = Vec::<JobInfo>::new();
            loop {
                let page = assert_send(tool.jobs(status, all.last())).await.unwrap();
                assert!(page.len() <= 100 && page.iter().all(|job| job.status() == status && job.queue() == "numbers"));
                if page.is_empty() {
                    break;
                }
                assert_eq!(page.len(), 100.min(all_of(status) - all.len()), "{status}");
                all.extend(page);
            }
            let ids: HashSet<_> = all.iter().map(JobInfo::id).collect();
            assert_eq!((ids.len(), all.len()), (all_of(status), all_of(status)), "{status}");
            let ended: Vec<_> = all.iter().filter_map(|job| Some((job.ended()?, job.id()))).collect();
            assert!(ended.is_sorted_by(|a, b| a > b), "the last ones first");
            if status == JobStatus::Waiting {
                // The list is sorted by priority, and then by the order of the calls. The priority of a job is the number of its digits.
                let first: Vec<u32> = all[..150].iter().map(|job| job.payload().unwrap()).collect();
                assert_eq!(first, (100..150).chain(10..100).chain(0..10).collect::<Vec<_>>());
            }
        }
        // If the last job of a page is deleted, the next page must still follow. It may contain jobs of the previous page with the same
        // time.
        let mut page = tool.jobs(JobStatus::Dead, None).await.unwrap();
        assert!(tool.discard(page[99].id()).await.unwrap());
        let mut listed = HashSet::new();
        while let Some(last) = page.last().cloned() {
            listed.extend(page.iter().map(|job| job.payload::<u32>().unwrap()));
            page = tool.jobs(JobStatus::Dead, Some(&last)).await.unwrap();
        }
        assert_eq!(listed.len(), 150);
    })
    .await;
}

/// These futures must be `Send`, because a server spawns them.
fn assert_send<F: Future + Send>(future: F) -> F {
    future
}

fn all_of(status: JobStatus) -> usize {
    if status == JobStatus::Waiting { 450 } else { 150 }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_stop_at_their_limit() {
    on_each_store(async |jobs: Durable| {
        let limit = QueueCounts::LIMIT;
        jobs.queue::<u32>("exact").enqueue_all(0..u32::try_from(limit).unwrap()).await.unwrap();
        jobs.queue::<u32>("more").enqueue_all(0..u32::try_from(limit + 50).unwrap()).await.unwrap();
        let queues = jobs.queues().await.unwrap();
        let counts: Vec<_> = queues.iter().map(|queue| (&*queue.name, queue.counts.waiting)).collect();
        assert_eq!(counts, [("exact", limit), ("more", limit + 1)]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tool_without_types_operates_the_queues_of_a_program() {
    on_each_database(async |database| {
        let program = database.open().await;
        let tool = Durable::open_existing(&database.address, None).await.unwrap();
        let queue = program.queue::<Mail>("mail");
        let untyped = tool.untyped_queue(String::from("mail"));
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let info = tool.job(id).await.unwrap().unwrap();
        assert_eq!((info.queue(), &*info.payload_json(), info.result_json()), ("mail", r#"{"to":"ann"}"#, None));
        let age = SystemTime::now().duration_since(info.enqueued()).unwrap_or_default();
        assert!(age < HANG, "{age:?}");
        untyped.pause().await.unwrap();
        let (registry, _) = registry();
        queue
            .serve(&registry, WorkerOptions::default(), async |job: Job<Mail>| Ok::<_, Infallible>(job.into_inner()))
            .await
            .unwrap();
        assert_eq!(untyped.counts().await.unwrap().waiting, 1);
        untyped.resume().await.unwrap();
        assert_eq!(timeout(HANG, queue.wait(id)).await.unwrap().unwrap().unwrap().status(), JobStatus::Done);
        assert_eq!(tool.job(id).await.unwrap().unwrap().result_json(), Some(r#"{"to":"ann"}"#));
        let waiting = queue.enqueue(mail("later")).delay(HANG).await.unwrap();
        assert!(untyped.cancel(waiting).await.unwrap());
        assert!(untyped.discard(waiting).await.unwrap());
        assert!(tool.job(waiting).await.unwrap().is_none());
        sql(&program, "UPDATE {jobs} SET state = 'dead'").await;
        assert!(untyped.retry(id).await.unwrap());
        assert_eq!(timeout(HANG, queue.wait(id)).await.unwrap().unwrap().unwrap().status(), JobStatus::Done);
        queue.enqueue_all([mail("ann"), mail("bob")]).delay(HANG).await.unwrap();
        sql(&program, "UPDATE {jobs} SET state = 'dead', ended_at = run_at").await;
        assert_eq!((untyped.retry_all().await.unwrap(), untyped.discard_all().await.unwrap()), (3, 0));
        until("the jobs have run again", async || (untyped.counts().await.unwrap().done == 3).then_some(())).await;
        sql(&program, "UPDATE {jobs} SET state = 'dead'").await;
        assert_eq!(untyped.discard_all().await.unwrap(), 3);
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_an_existing_store_creates_and_migrates_nothing() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let open = async |address: &str| Durable::open_existing(address, None).await.unwrap_err();
    // The next paths are a missing file, a file of another program, an empty file, and a file that is not a database.
    let error = open(&path("missing.db")).await;
    assert!(matches!(&error, Error::Unavailable(text) if text.contains("missing.db")), "{error}");
    let other = sqlx::SqlitePool::connect(&format!("sqlite://{}?mode=rwc", path("other.db"))).await.unwrap();
    sqlx::query("CREATE TABLE orders (id integer)").execute(&other).await.unwrap();
    other.close().await;
    fs::write(path("empty.db"), "").unwrap();
    fs::write(path("text.db"), "not a database, but a text that is longer than the header of one".repeat(10)).unwrap();
    let files = ["empty.db", "other.db", "text.db"];
    let before = files.map(|name| fs::read(path(name)).unwrap());
    for name in files {
        let error = open(&path(name)).await;
        assert!(matches!(&error, Error::Schema(text) if text.contains(name)), "{error}");
    }
    assert_eq!(files.map(|name| fs::read(path(name)).unwrap()), before);
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, files);
    let error = Durable::open_existing(&path("other.db"), Some("jobs")).await.unwrap_err();
    assert!(matches!(error, Error::Address(_)), "{error}");

    if let Some(database) = TestDatabase::postgres() {
        let error = open(&database.address).await;
        assert!(matches!(&error, Error::Schema(text) if text.contains("background_tasks")), "{error}");
        let pool = sqlx::PgPool::connect(&database.address).await.unwrap();
        let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'background_tasks'";
        assert_eq!(sqlx::query_scalar::<_, i64>(schemas).fetch_one(&pool).await.unwrap(), 0);
        database.open().await;
        let error = Durable::open_existing(&database.address, Some("other")).await.unwrap_err();
        assert!(matches!(&error, Error::Schema(text) if text.contains("other")), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_version_are_not_opened_as_existing() {
    on_each_database(async |database| {
        let jobs = database.open().await;
        Durable::open_existing(&database.address, None).await.unwrap();
        let versions = if database.is_postgres { "background_tasks.versions" } else { "background_tasks_versions" };
        for (version, text) in [(99, "newer"), (0, "older")] {
            sql(&jobs, &format!("UPDATE {versions} SET version = {version}")).await;
            let error = Durable::open_existing(&database.address, None).await.unwrap_err();
            assert!(matches!(&error, Error::Schema(why) if why.contains(text)), "{error}");
        }
        assert_eq!(numbers(&jobs, &format!("SELECT version FROM {versions}")).await, [0]);
    })
    .await;
}
