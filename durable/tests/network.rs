//! Connections that are taken, slow or silent, on Postgres: a file has none of these.

mod common;

use background_tasks_durable::{Durable, Job, Options, Queue, Status, sqlx};
use common::postgres::Postgres;
use common::{HANG, Mail, Place, mail, numbers, registry, until};
use std::convert::Infallible;
use std::future::pending;
use std::io::{Write, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
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

/// A store behind a router that forgets a connection: the next one on which the word is said is silent from there on.
struct Silent {
    place: Place,
    jobs: Durable,
    armed: Arc<AtomicBool>,
}

impl Silent {
    async fn on(word: &'static str) -> Option<Self> {
        let place = Place::postgres()?;
        place.open().await;
        let server = place.address.split(['@', '/']).find(|part| part.starts_with("127.")).unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = place.address.replace(&server, &listener.local_addr().unwrap().to_string());
        let armed = Arc::new(AtomicBool::new(false));
        let arms = armed.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server.clone(), word, arms.clone()));
            }
        });
        Some(Self { jobs: Durable::postgres(&address).await.unwrap(), place, armed })
    }

    fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    async fn silence(&self) {
        until("a connection is silent", async || (!self.armed.load(Ordering::SeqCst)).then_some(())).await;
    }

    /// That of a process that reaches the server in another way.
    async fn other(&self) -> Queue<Mail> {
        self.place.open().await.queue("mail")
    }
}

async fn pass(client: TcpStream, server: String, word: &'static str, armed: Arc<AtomicBool>) {
    let server = TcpStream::connect(server).await.unwrap();
    let ((mut from, mut back), (mut answers, mut on)) = (client.into_split(), server.into_split());
    let _answers = tokio::spawn(async move { copy(&mut answers, &mut back).await });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if String::from_utf8_lossy(&buffer[..read]).contains(word) && armed.swap(false, Ordering::SeqCst) {
            pending::<()>().await;
        }
        if on.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_is_not_answered_is_told_again() {
    let Some(store) = Silent::on("WITH j AS").await else { return };
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

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_answered_is_replaced() {
    let Some(store) = Silent::on("apalis.get_jobs").await else { return };
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
    let Some(store) = Silent::on("UPDATE apalis.workers SET last_seen = now() WHERE id = ANY").await else { return };
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
