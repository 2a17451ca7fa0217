//! Tests deep queues, idle queues, blocking handlers, and jobs that kill their process.

use crate::common::{HANG, Mail, TestDatabase, mail, numbers, on_each_database, on_each_store, registry, sql, until};
use background_tasks_durable::{Durable, Job, JobStatus, WorkerOptions, sqlx};
use futures_util::future::join_all;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

fn options() -> WorkerOptions {
    WorkerOptions::default().backoff(Duration::ZERO, Duration::ZERO)
}

/// Inserts many jobs without an update of the statistics. Outdated statistics are the worst case for the query planner.
async fn fill(jobs: &Durable, queue: &str, state: &str, count: u32) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let base = NEXT.fetch_add(1, Ordering::SeqCst) * 1_000_000;
    if let Some(pool) = jobs.sqlite_pool() {
        let insert = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?3)
            INSERT INTO background_tasks_jobs (id, queue, state, priority, run_at, enqueued_at, version, payload, ended_at)
            SELECT printf('%026d', i + ?4), ?1, ?2, 0, CASE WHEN ?2 IN ('scheduled', 'retrying') THEN 4000000000000 ELSE i END, 0, 1,
                '{\"to\":\"many\"}', CASE WHEN ?2 IN ('done', 'dead') THEN i END FROM n";
        sqlx::query(insert).bind(queue).bind(state).bind(count).bind(i64::from(base)).execute(pool).await.unwrap();
    } else {
        let insert = "INSERT INTO background_tasks.jobs (id, queue, state, priority, run_at, version, payload, ended_at)
            SELECT lpad((i + $4)::text, 26, '0'), $1, $2, 0,
                CASE WHEN $2 IN ('scheduled', 'retrying') THEN now() + interval '7 days' ELSE to_timestamp(i) END, 1,
                '{\"to\":\"many\"}', CASE WHEN $2 IN ('done', 'dead') THEN now() END FROM generate_series(1, $3) AS i";
        let pool = jobs.postgres_pool().unwrap();
        let insert = sqlx::query(insert).bind(queue).bind(state).bind(i32::try_from(count).unwrap());
        insert.bind(i64::from(base)).execute(pool).await.unwrap();
    }
}

/// The number of jobs in a deep queue. At this depth, a fetch that sorts or scans the queue takes 10 to 1,000 ms.
const DEEP: u32 = 60_000;

async fn analyze(jobs: &Durable) {
    sql(jobs, "ANALYZE {jobs}").await;
}

/// Returns the time that a worker needs to run `count` jobs without work, one after the other.
async fn time_of(jobs: &Durable, count: usize) -> Duration {
    let queue = jobs.queue::<Mail>("mail");
    let (registry, _) = registry();
    let ran = Arc::new(Semaphore::new(0));
    let done = ran.clone();
    let handler = move |_: Job<Mail>| {
        done.add_permits(1);
        async { Ok::<_, Infallible>(()) }
    };
    let start = Instant::now();
    queue.serve(&registry, options().concurrency(1), handler).await.unwrap();
    timeout(HANG, ran.acquire_many(u32::try_from(count).unwrap())).await.expect("the jobs run").unwrap().forget();
    let time = start.elapsed();
    registry.shutdown().await;
    time
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_time_does_not_depend_on_the_depth_of_the_queue() {
    on_each_store(async |jobs: Durable| {
        analyze(&jobs).await;
        fill(&jobs, "mail", "available", 300).await;
        let shallow = time_of(&jobs, 200).await;
        sql(&jobs, "DELETE FROM {jobs}").await;
        analyze(&jobs).await; // takes the statistics of an empty table
        fill(&jobs, "mail", "available", DEEP).await;
        // Other programs may use the machine, so the time is measured until it is short enough. A fetch that sorts the queue would always
        // take 10 times as long.
        let is_short = async || {
            let deep = time_of(&jobs, 200).await;
            eprintln!("200 jobs: shallow {shallow:?}, deep {deep:?}");
            (deep < shallow * 4 + Duration::from_secs(1)).then_some(())
        };
        until("the time without statistics does not depend on the depth", is_short).await;
        analyze(&jobs).await;
        until("the time with statistics does not depend on the depth", is_short).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_not_due_cost_nothing() {
    on_each_store(async |jobs: Durable| {
        fill(&jobs, "mail", "available", 300).await;
        let shallow = time_of(&jobs, 200).await;
        fill(&jobs, "mail2", "scheduled", 10).await;
        fill(&jobs, "mail", "scheduled", DEEP).await;
        fill(&jobs, "mail1", "retrying", DEEP).await;
        sql(&jobs, "UPDATE {jobs} SET queue = 'mail', priority = 9 WHERE queue = 'mail1'").await;
        analyze(&jobs).await;
        until("the time does not depend on the jobs that are not due", async || {
            sql(&jobs, "UPDATE {jobs} SET state = 'available' WHERE state = 'done'").await;
            let deep = time_of(&jobs, 100).await;
            eprintln!("200 jobs: shallow {shallow:?}, 100 jobs: deep {deep:?}");
            (deep < shallow * 3 + Duration::from_secs(1)).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_due_together_do_not_wait_for_the_next_look() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<Mail>("mail");
        queue.enqueue_all(vec![mail("ann"); 2500]).delay(Duration::from_secs(2)).await.unwrap();
        let (registry, _) = registry();
        let options = options().concurrency(100).batch_size(1000).poll_interval(HANG * 10);
        queue.serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        until("all jobs are done", async || (queue.counts().await.unwrap().done == 2500).then_some(())).await;
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_all_queues_does_not_depend_on_their_depth() {
    on_each_store(async |jobs: Durable| {
        let states = ["available", "scheduled", "done", "dead"];
        let fill_all = async |count| {
            for state in states {
                fill(&jobs, state, state, count).await;
            }
        };
        let time = async || {
            let mut times = Vec::new();
            for _ in 0..5 {
                let start = Instant::now();
                let queues = jobs.queues().await.unwrap();
                times.push(start.elapsed());
                let counts = queues.iter().map(|queue| queue.counts.waiting + queue.counts.done + queue.counts.dead);
                assert!(counts.clone().all(|count| count == 10_001), "{:?}", counts.collect::<Vec<_>>());
            }
            times.sort();
            times[0]
        };
        analyze(&jobs).await;
        fill_all(11_000).await;
        let shallow = time().await;
        sql(&jobs, "DELETE FROM {jobs}").await;
        analyze(&jobs).await; // takes the statistics of an empty table
        fill_all(DEEP).await;
        // Other programs may use the machine, so the time is measured until it is short enough. A count of all jobs would take more than
        // five times as long as the shallow one.
        let limit = shallow * 3 + Duration::from_millis(10);
        until("the time without statistics does not depend on the depth", async || (time().await < limit).then_some(())).await;
        analyze(&jobs).await;
        until("the time with statistics does not depend on the depth", async || (time().await < limit).then_some(())).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_uses_an_index() {
    on_each_store(async |jobs: Durable| {
        for state in ["available", "scheduled", "done", "dead"] {
            fill(&jobs, state, state, 20_000).await;
        }
        analyze(&jobs).await;
        let before = scans(&jobs).await;
        let (registry, losses) = registry();
        let queue = jobs.queue::<Mail>("mail");
        let options = options().retention(Duration::ZERO).maintenance_interval(Duration::ZERO).lease(Duration::from_secs(3));
        queue.serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        let id = queue.enqueue(mail("ann")).unique_key("one").await.unwrap().id;
        queue.wait(id).await.unwrap();
        let dead = jobs.queue::<Mail>("dead");
        let page = dead.dead().await.unwrap();
        assert_eq!(page.len(), 100);
        assert!(dead.dead_after(&page[99]).await.unwrap().len() == 100);
        // The next calls read what an operator's tool shows.
        assert_eq!(jobs.queues().await.unwrap().len(), 5);
        for state in ["available", "scheduled", "done", "dead"] {
            let status = match state {
                "done" => JobStatus::Done,
                "dead" => JobStatus::Dead,
                _ => JobStatus::Waiting,
            };
            let queue = jobs.untyped_queue(state);
            let page = queue.jobs(status, None).await.unwrap();
            assert_eq!(queue.jobs(status, page.last()).await.unwrap().len(), 100);
        }
        sleep(Duration::from_secs(2)).await; // gives the workers time for heartbeats, polls and maintenance
        registry.shutdown().await;
        assert_eq!(losses.all(), []);
        assert_eq!(scans(&jobs).await, before, "no statement scans the table");
    })
    .await;
}

/// Returns the number of full scans of the jobs table. SQLite does not count scans, but its statements name the index that they use.
async fn scans(jobs: &Durable) -> i64 {
    if jobs.sqlite_pool().is_some() {
        return 0;
    }
    sleep(Duration::from_millis(1500)).await; // Postgres updates the statistics one time per second
    numbers(jobs, "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'jobs'").await[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_queues_share_connections_and_statements() {
    let Some(database) = TestDatabase::postgres() else { return };
    let url = format!("{}?application_name=worker", database.address);
    let (jobs, other) = (Durable::postgres(&url).await.unwrap(), database.open().await);
    let (registry, _) = registry();
    let queues: Vec<&'static str> = (0..20).map(|number| &*Box::leak(format!("queue{number}").into_boxed_str())).collect();
    for name in &queues {
        jobs.queue::<Mail>(name).serve(&registry, options(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    }
    let transactions = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'worker'";
    // Waits until the first maintenance of each queue has ended.
    until("the idle queues use few connections and transactions", async || {
        let (before, start) = (numbers(&other, transactions).await[0], Instant::now());
        sleep(Duration::from_secs(4)).await;
        let (connections, count) = (numbers(&other, sessions).await[0], numbers(&other, transactions).await[0] - before);
        eprintln!("{connections} connections, {count} transactions in {:?}", start.elapsed());
        (connections <= 3 && u64::try_from(count).unwrap() < start.elapsed().as_secs() * 5).then_some(())
    })
    .await;
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notice_of_another_process_starts_its_job() {
    let Some(database) = TestDatabase::postgres() else { return };
    let (jobs, other) = (database.open().await, database.open().await);
    let (registry, _) = registry();
    let options = options().poll_interval(HANG * 10); // only a notification wakes the worker in time
    jobs.queue::<Mail>("mail").serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    let queue = other.queue::<Mail>("mail");
    for _ in 0..10 {
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let info = timeout(HANG, queue.wait(id)).await.expect("a notice wakes the worker").unwrap().unwrap();
        assert_eq!(info.status(), JobStatus::Done);
    }
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_waits_share_statements() {
    let Some(database) = TestDatabase::postgres() else { return };
    let (jobs, other) = (database.open().await, database.open().await);
    let queue = jobs.queue::<Mail>("mail");
    let ids = queue.enqueue_all(vec![mail("ann"); 500]).await.unwrap();
    let waits: Vec<_> = ids
        .iter()
        .map(|id| {
            tokio::spawn({
                let (queue, id) = (queue.clone(), *id);
                async move { queue.wait(id).await }
            })
        })
        .collect();
    let transactions = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    // When a wait starts, it executes a separate statement.
    until("the waits share statements", async || {
        let before = numbers(&other, transactions).await[0];
        sleep(Duration::from_secs(3)).await;
        (numbers(&other, transactions).await[0] - before < 100).then_some(())
    })
    .await;
    sql(&other, "UPDATE {jobs} SET state = 'done', result = 'null'").await;
    for info in join_all(waits).await {
        assert_eq!(info.unwrap().unwrap().unwrap().status(), JobStatus::Done);
    }
}

/// Uses a runtime with a single thread. A job blocks this thread for longer than the lease.
#[test]
fn handler_that_blocks_its_thread_keeps_its_lease() {
    for database in [Some(TestDatabase::sqlite()), TestDatabase::postgres()].into_iter().flatten() {
        let runs = Arc::new(AtomicUsize::new(0));
        let process = |blocks: Duration| {
            let (address, runs) = (database.address.clone(), runs.clone());
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let thread = thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let jobs = Durable::connect(&address).await.unwrap();
                    let (registry, losses) = registry();
                    let handler = move |_: Job<Mail>| {
                        runs.fetch_add(1, Ordering::SeqCst);
                        async move {
                            thread::sleep(blocks);
                            Ok::<_, Infallible>(())
                        }
                    };
                    let options = options().lease(Duration::from_secs(10)).response_timeout(HANG);
                    jobs.queue::<Mail>("mail").serve(&registry, options, handler).await.unwrap();
                    let _ = ended.await;
                    registry.shutdown().await;
                    losses.all()
                })
            });
            (end, thread)
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (jobs, id) = runtime.block_on(async {
            let jobs = database.open().await;
            let id = jobs.queue::<Mail>("mail").enqueue(mail("blocks")).await.unwrap();
            (jobs, id)
        });
        let (end, blocked) = process(Duration::from_secs(23));
        runtime.block_on(until("the job runs", async || (runs.load(Ordering::SeqCst) == 1).then_some(())));
        let (other_end, other) = process(Duration::ZERO);
        let info = runtime.block_on(async { timeout(HANG, jobs.queue::<Mail>("mail").wait(id)).await });
        let info = info.expect("the job ends").unwrap().unwrap();
        assert_eq!((info.status(), info.attempts(), runs.load(Ordering::SeqCst)), (JobStatus::Done, 1, 1));
        drop((end, other_end));
        assert_eq!((blocked.join().unwrap(), other.join().unwrap()), (vec![], vec![]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recovered_jobs_back_off_at_different_times() {
    on_each_store(async |jobs: Durable| {
        let queue = jobs.queue::<u32>("crash");
        queue.enqueue_all(0..20).await.unwrap();
        // Changes the jobs as if a worker had died while it ran them.
        sql(&jobs, "UPDATE {jobs} SET state = 'running', run = 1, worker = 'dead', crashes = 3").await;
        sql(&jobs, "INSERT INTO {workers} SELECT 'dead', queue, run_at FROM {jobs} LIMIT 1").await;
        let (registry, _) = registry();
        let other = jobs.queue::<u32>("other");
        other.serve(&registry, options().lease(Duration::from_secs(3)), async |_: Job<u32>| Ok::<_, Infallible>(())).await.unwrap();
        until("the jobs are recovered", async || (queue.counts().await.unwrap().retrying == 20).then_some(())).await;
        let due = if jobs.sqlite_pool().is_some() { "run_at" } else { "(extract(epoch FROM run_at) * 1000)::bigint" };
        let mut due = numbers(&jobs, &format!("SELECT {due} FROM {{jobs}}")).await;
        due.sort_unstable();
        due.dedup();
        assert!(due.len() > 10 && due[due.len() - 1] - due[0] > 1000, "{due:?}");
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM {jobs} WHERE crashes = 4 AND attempts = 0").await, [20]);
        registry.shutdown().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn suspect_runs_while_no_other_job_of_the_process_runs() {
    on_each_database(async |database| {
        let jobs = database.open().await;
        let (queue, other) = (jobs.queue::<Mail>("mail"), jobs.queue::<Mail>("other"));
        let suspects = queue.enqueue_all(vec![mail("suspect"); 3]).await.unwrap();
        sql(&jobs, "UPDATE {jobs} SET crashes = 2").await;
        let running = Arc::new(Mutex::new(Vec::<String>::new()));
        let together = Arc::new(AtomicUsize::new(0));
        let handler = || {
            let (running, together) = (running.clone(), together.clone());
            move |job: Job<Mail>| {
                let (running, together) = (running.clone(), together.clone());
                async move {
                    let check = |running: &Vec<String>| {
                        let bad = running.len() > 1 && running.iter().any(|to| to == "suspect");
                        together.fetch_add(usize::from(bad), Ordering::SeqCst);
                    };
                    {
                        let mut running = running.lock().unwrap();
                        running.push(job.to.clone());
                        check(&running);
                    }
                    sleep(Duration::from_millis(30)).await;
                    let mut running = running.lock().unwrap();
                    check(&running);
                    let index = running.iter().position(|to| *to == job.to).unwrap();
                    running.swap_remove(index);
                    Ok::<_, Infallible>(())
                }
            }
        };
        let mut ids = Vec::new();
        for queue in [&queue, &other] {
            for id in queue.enqueue_all(vec![mail("innocent"); 20]).await.unwrap() {
                ids.push((queue, id));
            }
        }
        let (registry, losses) = registry();
        for queue in [&queue, &other] {
            queue.serve(&registry, options().concurrency(4), handler()).await.unwrap();
        }
        ids.extend(suspects.into_iter().map(|id| (&queue, id)));
        for (queue, id) in ids {
            assert_eq!(timeout(HANG, queue.wait(id)).await.expect("the job runs").unwrap().unwrap().status(), JobStatus::Done);
        }
        assert_eq!(together.load(Ordering::SeqCst), 0);
        assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
    })
    .await;
}

/// Measures up to three shutdowns. One of them must take less than a second, because other programs may use the machine.
async fn one_takes_less_than_a_second(shutdown: impl AsyncFn() -> Duration) {
    let mut times = Vec::new();
    while times.last().is_none_or(|time| *time >= Duration::from_secs(1)) {
        assert!(times.len() < 3, "{times:?}");
        times.push(shutdown().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_without_jobs_takes_less_than_a_second() {
    on_each_database(async |database| {
        for round in 0..10 {
            one_takes_less_than_a_second(async || {
                let jobs = database.open().await;
                let (registry, _) = registry();
                let options = options().lease(Duration::from_secs(3)); // the worker sends a heartbeat every 0.6 seconds
                let handler = async |_: Job<Mail>| Ok::<_, Infallible>(());
                jobs.queue::<Mail>("mail").serve(&registry, options, handler).await.unwrap();
                sleep(Duration::from_millis(61 * round)).await;
                let start = Instant::now();
                registry.shutdown().await;
                start.elapsed()
            })
            .await;
        }
    })
    .await;
}

/// Another connection holds the lock of the file or of the tables for longer than the shutdown takes.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown_without_jobs_does_not_wait_for_a_lock() {
    on_each_database(async |database| {
        one_takes_less_than_a_second(async || {
            let jobs = database.open().await;
            let (registry, _) = registry();
            jobs.queue::<Mail>("mail").serve(&registry, options(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
            let other = database.open().await;
            macro_rules! shut_down {
                ($tx:expr) => {{
                    let tx = $tx;
                    let start = Instant::now();
                    registry.shutdown().await;
                    let took = start.elapsed();
                    tx.rollback().await.unwrap();
                    took
                }};
            }
            match (other.sqlite_pool(), other.postgres_pool()) {
                (Some(pool), _) => shut_down!(pool.begin_with("BEGIN IMMEDIATE").await.unwrap()),
                (_, Some(pool)) => shut_down!({
                    let mut tx = pool.begin().await.unwrap();
                    sqlx::query("LOCK TABLE background_tasks.jobs, background_tasks.workers").execute(&mut *tx).await.unwrap();
                    tx
                }),
                _ => unreachable!(),
            }
        })
        .await;
    })
    .await;
}
