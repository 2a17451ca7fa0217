//! Connections that are taken, slow or silent, on Postgres: a file has none of these.

mod common;

use background_tasks_durable::{Durable, Failure, Job, Options, Queue, Status, sqlx};
use common::postgres::Postgres;
use common::{HANG, Mail, Place, mail, numbers, registry, until};
use futures_util::future::{Either, join_all, select};
use sqlx::pool::PoolConnection;
use std::convert::Infallible;
use std::future::{IntoFuture, pending};
use std::io::{Write, stderr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// The outcome of one job does not wait for the transactions of the others.
#[tokio::test(flavor = "multi_thread")]
async fn handlers_may_have_all_connections_of_the_program() {
    let Some(place) = Place::postgres() else { return };
    let (jobs, other) = (place.open().await, place.open().await);
    let (registry, losses) = registry();
    let pool = jobs.postgres_pool().unwrap().clone();
    let most = pool.options().get_max_connections();
    let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (all, gone) = (begun.clone(), go.clone());
    let handler = move |job: Job<Mail>| {
        let (pool, begun, go) = (pool.clone(), begun.clone(), go.clone());
        async move {
            if job.to == "all" {
                let tx = pool.begin().await?;
                begun.add_permits(1);
                go.acquire().await.unwrap().forget();
                tx.commit().await?;
            }
            Ok::<_, sqlx::Error>(())
        }
    };
    let queue = jobs.queue::<Mail>("mail");
    queue.serve(&registry, Options::default().concurrency(most as usize + 1), handler).await.unwrap();
    let held = queue.enqueue_all((0..most).map(|_| mail("all"))).await.unwrap();
    timeout(HANG, all.acquire_many(most)).await.expect("they all have one").unwrap().forget();
    let id = other.queue::<Mail>("mail").enqueue(mail("ann")).await.unwrap();
    let info = timeout(HANG, other.queue::<Mail>("mail").wait(id)).await.expect("it is told").unwrap().unwrap();
    assert_eq!(info.status(), Status::Done);
    gone.add_permits(held.len());
    assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
}

/// Those of a pool that are forgotten all at once, as they are used, do not keep their places in it.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_silent_make_room_for_others() {
    let Some(store) = Silent::on(&[]).await else { return };
    let all = store.all_connections().await;
    store.forget_all();
    for mut connection in all {
        let asked = sqlx::query("SELECT 1").execute(&mut *connection);
        timeout(Duration::from_millis(1), asked).await.expect_err("nobody answers");
    }
    store.works().await;
}

/// Nor do idle ones make those wait who are given them.
#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_that_are_silent_are_replaced() {
    let Some(store) = Silent::on(&[]).await else { return };
    let (pool, all) = (store.jobs.postgres_pool().unwrap(), store.all_connections().await);
    let most = all.len();
    drop(all);
    until("they are idle", async || (pool.num_idle() == most).then_some(())).await;
    store.forget_all();
    store.works().await;
}

/// On a disk that is slow the engine is dropped while its fetch is being committed, and what it was to fetch is nobody's by then.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_while_the_worker_ends_goes_back_and_is_not_charged() {
    // As slow as can be set: a tenth of a second.
    let server = match Postgres::start_with(&[("commit_delay", "100000"), ("commit_siblings", "0")]) {
        Ok(server) => server,
        Err(why) => return writeln!(stderr(), "skipped: Postgres: {why}").unwrap(),
    };
    let jobs = Durable::postgres(&server.url()).await.unwrap();
    let queue = jobs.queue::<Mail>("mail");
    let started = Arc::new(AtomicBool::new(false));
    let serve = async |queue: &Queue<Mail>, options: Options| {
        let (registry, _) = registry();
        let started = started.clone();
        let handler = move |job: Job<Mail>| {
            started.store(true, Ordering::SeqCst);
            async move { Ok::<_, Infallible>(job.attempt()) }
        };
        queue.serve(&registry, options, handler).await.unwrap();
        registry
    };
    let mut caught = 0;
    while caught < 3 {
        // It beats seldom, so a commit is that of a fetch.
        let first = serve(&queue, Options::default().lease(Duration::from_mins(5)).poll(Duration::from_millis(1))).await;
        until("it fetches", async || (sessions(&jobs, "query LIKE '%get_jobs%'").await > 0).then_some(())).await;
        started.store(false, Ordering::SeqCst);
        let id = queue.enqueue(mail("ann")).await.unwrap();
        until("its commit", async || (sessions(&jobs, "query = 'COMMIT' AND state = 'active'").await > 0).then_some(())).await;
        first.shutdown().await;
        caught += i32::from(!started.load(Ordering::SeqCst));
        let second = serve(&queue, Options::default()).await;
        let info = timeout(HANG, queue.wait(id)).await.expect("it is run").unwrap().unwrap();
        assert_eq!(info.result::<u32>().unwrap(), Some(1), "its attempt");
        second.shutdown().await;
    }
}

/// How many other sessions there are of which this is true.
async fn sessions(jobs: &Durable, what: &str) -> i64 {
    let asked = format!("SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND {what}");
    numbers(jobs, &asked).await[0]
}

/// A store behind a router that forgets a connection: the next one on which these words are said, one after the other, is silent from the last of
/// them on.
struct Silent {
    place: Place,
    jobs: Durable,
    router: Arc<Router>,
}

struct Router {
    server: String,
    words: &'static [&'static str],
    /// The last word still gets there, and what is answered does not come back.
    deaf: bool,
    armed: AtomicBool,
    accepted: AtomicUsize,
    /// How many there were when all of them were forgotten.
    forgotten: watch::Sender<usize>,
}

impl Silent {
    async fn on(words: &'static [&'static str]) -> Option<Self> {
        Self::at(words, false).await
    }

    async fn at(words: &'static [&'static str], deaf: bool) -> Option<Self> {
        let place = Place::postgres()?;
        place.open().await;
        let server = place.address.split(['@', '/']).find(|part| part.starts_with("127.")).unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = place.address.replace(&server, &listener.local_addr().unwrap().to_string());
        let (armed, accepted, forgotten) = (AtomicBool::new(false), AtomicUsize::new(0), watch::Sender::new(0));
        let router = Arc::new(Router { server, words, deaf, armed, accepted, forgotten });
        let shared = router.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (router, number) = (shared.clone(), shared.accepted.fetch_add(1, Ordering::SeqCst));
                tokio::spawn(async move {
                    // What is forgotten is not closed.
                    let mut passing = pin!(router.pass(client));
                    let mut forgotten = router.forgotten.subscribe();
                    let forgotten = async { drop(forgotten.wait_for(|forgotten| *forgotten > number).await) };
                    if let Either::Right(_) = select(&mut passing, pin!(forgotten)).await {
                        pending::<()>().await;
                    }
                });
            }
        });
        Some(Self { jobs: Durable::postgres(&address).await.unwrap(), place, router })
    }

    fn arm(&self) {
        self.router.armed.store(true, Ordering::SeqCst);
    }

    async fn all_connections(&self) -> Vec<PoolConnection<sqlx::Postgres>> {
        let pool = self.jobs.postgres_pool().unwrap();
        let most = pool.options().get_max_connections();
        join_all((0..most).map(|_| pool.acquire())).await.into_iter().collect::<Result<_, _>>().unwrap()
    }

    /// At the first try.
    async fn works(&self) {
        let (registry, losses) = registry();
        let queue = self.jobs.queue::<Mail>("mail");
        let enqueued = queue.enqueue(mail("ann")).into_future();
        let id = timeout(HANG, enqueued).await.expect("it does not wait for ever").expect("there is room");
        queue.serve(&registry, Options::default(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        // With each connection that might be silent.
        join_all((0..20).map(|_| queue.info(id))).await.into_iter().for_each(|info| assert!(info.is_ok(), "{info:?}"));
        assert_eq!(timeout(HANG, queue.wait(id)).await.expect("it is run").unwrap().unwrap().status(), Status::Done);
        timeout(HANG, registry.shutdown()).await.expect("it ends");
        assert_eq!(losses.all(), []);
    }

    fn forget_all(&self) {
        self.router.forgotten.send_replace(self.router.accepted.load(Ordering::SeqCst));
    }

    async fn silence(&self) {
        until("a connection is silent", async || (!self.router.armed.load(Ordering::SeqCst)).then_some(())).await;
    }

    /// That of a process that reaches the server in another way.
    async fn other(&self) -> Queue<Mail> {
        self.place.open().await.queue("mail")
    }
}

impl Router {
    async fn pass(&self, client: TcpStream) {
        let server = TcpStream::connect(&self.server).await.unwrap();
        let ((mut from, mut back), (mut answers, mut on)) = (client.into_split(), server.into_split());
        let (mut words, (hears, mut deafened)) = (self.words, watch::channel(true));
        let there = async {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = from.read(&mut buffer).await {
                if let [word, rest @ ..] = words
                    && String::from_utf8_lossy(&buffer[..read]).contains(word)
                    && self.armed.load(Ordering::SeqCst)
                {
                    words = rest;
                    if rest.is_empty() && self.armed.swap(false, Ordering::SeqCst) {
                        hears.send_replace(false);
                        if self.deaf {
                            on.write_all(&buffer[..read]).await.unwrap();
                        }
                        pending::<()>().await;
                    }
                }
                if on.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
            }
        };
        let here = async {
            let deafened = async { drop(deafened.wait_for(|hears| !hears).await) };
            if let Either::Left(_) = select(pin!(deafened), pin!(copy(&mut answers, &mut back))).await {
                pending::<()>().await;
            }
        };
        select(pin!(there), pin!(here)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_not_answered_is_told_again() {
    let Some(store) = Silent::on(&["WITH j AS"]).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    queue.serve(&registry, Options::default(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    store.arm();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    store.silence().await;
    let info = timeout(HANG, store.other().await.wait(id)).await.expect("it is told").unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (Status::Done, 1));
    timeout(HANG, registry.shutdown()).await.expect("it ends");
    assert_eq!(losses.all(), [("failed", "mail worker", "the database has not answered for 15s".to_owned())]);
}

/// The server has the outcomes, and their rows, in a transaction whose end it is never told.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_not_committed_keeps_none_from_being_told_again() {
    let Some(store) = Silent::on(&["WITH j AS", "COMMIT"]).await else { return };
    let (registry, _) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    queue.serve(&registry, Options::default(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    store.arm();
    let ids = queue.enqueue_all(["ann", "ben", "eve"].map(mail)).await.unwrap();
    store.silence().await;
    for id in ids {
        let info = timeout(HANG, store.other().await.wait(id)).await.expect("it is told").unwrap().unwrap();
        assert_eq!((info.status(), info.attempts()), (Status::Done, 1));
    }
    timeout(HANG, registry.shutdown()).await.expect("it ends");
}

/// It is committed, and nobody was told so: what is told once more is not told of the next attempt, which has begun.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_whose_commit_is_not_answered_is_not_that_of_the_next_attempt() {
    let Some(store) = Silent::at(&["WITH j AS", "COMMIT"], true).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    let (go, begun) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (gone, second) = (go.clone(), begun.clone());
    let handler = move |job: Job<Mail>| {
        let (go, begun) = (gone.clone(), second.clone());
        async move {
            if job.attempt() == 1 {
                return Err(Failure::retry_after("not yet", Duration::ZERO));
            }
            begun.add_permits(1);
            go.acquire().await.unwrap().forget();
            Ok(())
        }
    };
    // One at a time: with more the engine has the job back, and drops it, as it runs.
    queue.serve(&registry, Options::default().concurrency(1), handler).await.unwrap();
    store.arm();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    store.silence().await;
    timeout(HANG, begun.acquire()).await.expect("the second has begun").unwrap().forget();
    // The task of the first is over when it was told again.
    until("it is told again", async || losses.all().iter().any(|loss| loss.2 == "not yet").then_some(())).await;
    assert_eq!(queue.info(id).await.unwrap().unwrap().status(), Status::Running);
    go.add_permits(1);
    let info = timeout(HANG, queue.wait(id)).await.expect("it is told").unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (Status::Done, 2));
    timeout(HANG, registry.shutdown()).await.expect("it ends");
    assert_eq!(begun.available_permits(), 0, "there is no third");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_answered_is_replaced() {
    let Some(store) = Silent::on(&["apalis.get_jobs"]).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    store.arm();
    queue.serve(&registry, Options::default(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    let info = timeout(HANG, store.other().await.wait(id)).await.expect("it is run").unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (Status::Done, 1));
    timeout(HANG, registry.shutdown()).await.expect("it ends");
    assert_eq!(losses.all(), [("failed", "mail worker", "the server of the database is silent".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_that_is_not_answered_is_not_the_last() {
    let Some(store) = Silent::on(&["UPDATE apalis.workers SET last_seen = now() WHERE id = ANY"]).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    let (begun, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (first, gone) = (begun.clone(), go.clone());
    let handler = move |_: Job<Mail>| {
        let (begun, go) = (begun.clone(), go.clone());
        async move {
            begun.add_permits(1);
            go.acquire().await.unwrap().forget();
            Ok::<_, Infallible>(())
        }
    };
    queue.serve(&registry, Options::default().lease(Duration::from_secs(10)), handler).await.unwrap();
    queue.enqueue(mail("ann")).await.unwrap();
    timeout(HANG, first.acquire()).await.expect("it runs").unwrap().forget();
    // From the signal on there is no engine that beats as well.
    let shutdown = tokio::spawn(registry.shutdown());
    let there = store.place.open().await;
    store.arm();
    store.silence().await;
    let (mut beats, mut last) = (0, i64::MAX);
    until("two more beats", async || {
        let age = numbers(&there, "SELECT (extract(epoch FROM now() - last_seen) * 1000)::bigint FROM {workers}").await[0];
        assert!(age < 10_000, "it is taken for dead");
        beats += i32::from(age < last && last < i64::MAX);
        last = age;
        (beats == 2).then_some(())
    })
    .await;
    gone.add_permits(1);
    timeout(HANG, shutdown).await.expect("it ends").unwrap();
    assert_eq!(losses.all(), [("failed", "mail worker", "the database has not answered for 4s".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upkeep_that_is_not_answered_is_not_the_last() {
    let Some(store) = Silent::on(&["DELETE FROM apalis.jobs"]).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    store.arm();
    let options = Options::default().retain(Duration::ZERO).upkeep(Duration::ZERO);
    queue.serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    store.silence().await;
    let id = queue.enqueue(mail("ann")).await.unwrap();
    until("what is done is dropped", async || queue.info(id).await.unwrap().is_none().then_some(())).await;
    timeout(HANG, registry.shutdown()).await.expect("it ends");
    assert_eq!(losses.all(), [("failed", "mail worker", "the database has not answered for 15s".to_owned())]);
}

/// As by a `VACUUM FULL`: nobody is silent then.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_locked_is_said_to_be() {
    let Some(place) = Place::postgres() else { return };
    let (jobs, other) = (place.open().await, place.open().await);
    let (registry, losses) = registry();
    let queue = jobs.queue::<Mail>("mail");
    queue.serve(&registry, Options::default(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    queue.wait(id).await.unwrap();
    let mut tx = other.postgres_pool().unwrap().begin().await.unwrap();
    sqlx::query("LOCK TABLE apalis.jobs").execute(&mut *tx).await.unwrap();
    until("it is told", async || (!losses.all().is_empty()).then_some(())).await;
    tx.rollback().await.unwrap();
    let id = queue.enqueue(mail("ben")).await.unwrap();
    assert_eq!(timeout(HANG, queue.wait(id)).await.expect("it is run").unwrap().unwrap().status(), Status::Done);
    timeout(HANG, registry.shutdown()).await.expect("it ends");
    assert!(losses.all().iter().all(|loss| loss.2.contains("lock timeout")), "{:?}", losses.all());
}

/// Most of a table is done; what a heartbeat looks for is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_looks_only_at_what_is_held() {
    let Some(place) = Place::postgres() else { return };
    let jobs = place.open().await;
    let pool = jobs.postgres_pool().unwrap();
    let many = "INSERT INTO apalis.jobs (job, id, job_type, status, done_at)
        SELECT '1', lpad(i::text, 26, '0'), 'mail', 'Done', now() FROM generate_series(1, 20000) i";
    sqlx::query(many).execute(pool).await.unwrap();
    sqlx::query("ANALYZE apalis.jobs").execute(pool).await.unwrap();
    let (registry, _) = registry();
    let handler = async |_: Job<Mail>| Ok::<_, Infallible>(());
    jobs.queue("mail").serve(&registry, Options::default().lease(Duration::from_secs(3)), handler).await.unwrap();
    let uses = "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_user_indexes WHERE indexrelname = 'background_tasks_held'";
    until("its index is used", async || (numbers(&jobs, uses).await[0] > 1).then_some(())).await;
    registry.shutdown().await;
}
