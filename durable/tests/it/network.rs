//! Tests Postgres connections that are in use, slow or silent. A silent connection is open, but the server does not respond on it.

use crate::common::{HANG, Mail, TestDatabase, mail, numbers, registry, until};
use background_tasks_durable::{Durable, Failure, Job, JobStatus, Queue, WorkerOptions, sqlx};
use futures_util::future::{Either, join_all, select};
use sqlx::pool::PoolConnection;
use std::convert::Infallible;
use std::future::{IntoFuture, pending};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// The worker commits outcomes without waiting for the transactions of handlers.
#[tokio::test(flavor = "multi_thread")]
async fn outcomes_commit_while_handlers_use_all_connections() {
    let Some(database) = TestDatabase::postgres() else { return };
    let (jobs, other) = (database.open().await, database.open().await);
    let (registry, losses) = registry();
    let pool = jobs.postgres_pool().unwrap().clone();
    let max_connections = pool.options().get_max_connections();
    let (started, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (all_started, permits) = (started.clone(), go.clone());
    let handler = move |job: Job<Mail>| {
        let (pool, started, go) = (pool.clone(), started.clone(), go.clone());
        async move {
            if job.to == "all" {
                let tx = pool.begin().await?;
                started.add_permits(1);
                go.acquire().await.unwrap().forget();
                tx.commit().await?;
            }
            Ok::<_, sqlx::Error>(())
        }
    };
    let queue = jobs.queue::<Mail>("mail");
    queue.serve(&registry, WorkerOptions::default().concurrency(max_connections as usize + 1), handler).await.unwrap();
    let held = queue.enqueue_all((0..max_connections).map(|_| mail("all"))).await.unwrap();
    timeout(HANG, all_started.acquire_many(max_connections)).await.expect("every job has a connection").unwrap().forget();
    let id = other.queue::<Mail>("mail").enqueue(mail("ann")).await.unwrap();
    let info = timeout(HANG, other.queue::<Mail>("mail").wait(id)).await.expect("the job ends").unwrap().unwrap();
    assert_eq!(info.status(), JobStatus::Done);
    permits.add_permits(held.len());
    assert!(registry.shutdown().await.is_clean(), "{:?}", losses.all());
}

/// If connections become silent while they are in use, the pool replaces them.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_replaced_in_the_pool() {
    let Some(store) = ProxiedStore::on(&[]).await else { return };
    let all = store.all_connections().await;
    store.silence_all().await;
    for mut connection in all {
        let query = sqlx::query("SELECT 1").execute(&mut *connection);
        timeout(Duration::from_millis(1), query).await.expect_err("the server does not respond");
    }
    store.works().await;
}

/// If idle connections become silent, a call that acquires one of them does not hang.
#[tokio::test(flavor = "multi_thread")]
async fn silent_idle_connections_are_replaced() {
    let Some(store) = ProxiedStore::on(&[]).await else { return };
    let (pool, all) = (store.jobs.postgres_pool().unwrap(), store.all_connections().await);
    let count = all.len();
    drop(all);
    until("the connections are idle", async || (pool.num_idle() == count).then_some(())).await;
    store.silence_all().await;
    store.works().await;
}

/// A store behind a proxy that silences connections but does not close them. `arm` activates the proxy. It then waits for a connection on
/// which the client sends all given texts in order, and silences this connection from the last text on.
struct ProxiedStore {
    database: TestDatabase,
    jobs: Durable,
    proxy: Arc<Proxy>,
}

struct Proxy {
    server: String,
    texts: &'static [&'static str],
    /// If true, the server receives the last text, but the client receives no response. If false, the server does not receive the last
    /// text.
    drops_response: bool,
    armed: AtomicBool,
    accepted: AtomicUsize,
    /// All connections with a lower number than this value are silent.
    silenced: watch::Sender<usize>,
}

impl ProxiedStore {
    async fn on(texts: &'static [&'static str]) -> Option<Self> {
        Self::new(texts, false).await
    }

    async fn new(texts: &'static [&'static str], drops_response: bool) -> Option<Self> {
        let database = TestDatabase::postgres()?;
        database.open().await;
        let server = database.address.split(['@', '/']).find(|part| part.starts_with("127.")).unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = database.address.replace(&server, &listener.local_addr().unwrap().to_string());
        let (armed, accepted, silenced) = (AtomicBool::new(false), AtomicUsize::new(0), watch::Sender::new(0));
        let proxy = Arc::new(Proxy { server, texts, drops_response, armed, accepted, silenced });
        let shared = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (proxy, number) = (shared.clone(), shared.accepted.fetch_add(1, Ordering::SeqCst));
                tokio::spawn(async move {
                    // The proxy does not close a silenced connection.
                    let mut forwarding = pin!(proxy.forward(client));
                    let mut receiver = proxy.silenced.subscribe();
                    // Drops the receiver when the connection is silenced. `silence_all` waits until all receivers are dropped.
                    let silenced = Box::pin(async move { drop(receiver.wait_for(|silenced| *silenced > number).await) });
                    if let Either::Right(_) = select(&mut forwarding, silenced).await {
                        pending::<()>().await;
                    }
                });
            }
        });
        Some(Self { jobs: Durable::postgres(&address).await.unwrap(), database, proxy })
    }

    fn arm(&self) {
        self.proxy.armed.store(true, Ordering::SeqCst);
    }

    async fn all_connections(&self) -> Vec<PoolConnection<sqlx::Postgres>> {
        let pool = self.jobs.postgres_pool().unwrap();
        let max_connections = pool.options().get_max_connections();
        join_all((0..max_connections).map(|_| pool.acquire())).await.into_iter().collect::<Result<_, _>>().unwrap()
    }

    /// Checks that all calls succeed at the first try.
    async fn works(&self) {
        let (registry, losses) = registry();
        let queue = self.jobs.queue::<Mail>("mail");
        let enqueued = queue.enqueue(mail("ann")).into_future();
        let id = timeout(HANG, enqueued).await.expect("the call ends").expect("a connection is available");
        queue.serve(&registry, WorkerOptions::default(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
        // The number of calls is high enough to use all connections of the pool.
        join_all((0..20).map(|_| queue.info(id))).await.into_iter().for_each(|info| assert!(info.is_ok(), "{info:?}"));
        assert_eq!(timeout(HANG, queue.wait(id)).await.expect("the job runs").unwrap().unwrap().status(), JobStatus::Done);
        timeout(HANG, registry.shutdown()).await.expect("shutdown ends");
        assert_eq!(losses.all(), []);
    }

    /// Silences all connections, and waits until they are silent. Otherwise a connection could respond to the pool's ping, and become
    /// silent after that.
    async fn silence_all(&self) {
        self.proxy.silenced.send_replace(self.proxy.accepted.load(Ordering::SeqCst));
        timeout(HANG, self.proxy.silenced.closed()).await.expect("all connections are silent");
    }

    async fn wait_until_silent(&self) {
        until("a connection is silent", async || (!self.proxy.armed.load(Ordering::SeqCst)).then_some(())).await;
    }

    /// Opens the queue with connections that do not use the proxy.
    async fn direct(&self) -> Queue<Mail> {
        self.database.open().await.queue("mail")
    }
}

impl Proxy {
    async fn forward(&self, client: TcpStream) {
        let server = TcpStream::connect(&self.server).await.unwrap();
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) = (client.into_split(), server.into_split());
        let (mut texts, (returns_responses, mut is_returning)) = (self.texts, watch::channel(true));
        let requests = async {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                if let [text, rest @ ..] = texts
                    && String::from_utf8_lossy(&buffer[..read]).contains(text)
                    && self.armed.load(Ordering::SeqCst)
                {
                    texts = rest;
                    if rest.is_empty() && self.armed.swap(false, Ordering::SeqCst) {
                        returns_responses.send_replace(false);
                        if self.drops_response {
                            to_server.write_all(&buffer[..read]).await.unwrap();
                        }
                        pending::<()>().await;
                    }
                }
                if to_server.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
            }
        };
        let responses = async {
            let silenced = async { drop(is_returning.wait_for(|is_returning| !is_returning).await) };
            if let Either::Left(_) = select(pin!(silenced), pin!(copy(&mut from_server, &mut to_client))).await {
                pending::<()>().await;
            }
        };
        select(pin!(requests), pin!(responses)).await;
    }
}

/// Returns the options of a worker with a short response timeout.
fn impatient() -> WorkerOptions {
    WorkerOptions::default().response_timeout(Duration::from_secs(5))
}

#[tokio::test(flavor = "multi_thread")]
async fn outcome_without_response_is_committed_again() {
    let Some(store) = ProxiedStore::on(&["jobs SET state = outcome.state"]).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    queue.serve(&registry, impatient(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    store.arm();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    store.wait_until_silent().await;
    let info = timeout(HANG, store.direct().await.wait(id)).await.expect("the outcome is committed").unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (JobStatus::Done, 1));
    timeout(HANG, registry.shutdown()).await.expect("shutdown ends");
    let text =
        format!("the worker cannot store the outcomes of these jobs, and retries: {id}: the database did not respond within 5s");
    assert_eq!(losses.all(), [("failed", "mail worker", text)]);
}

/// The database commits the outcome of the first attempt, but the worker receives no response. The worker then commits the outcome again.
/// This must not end the second attempt, which already runs.
#[tokio::test(flavor = "multi_thread")]
async fn outcome_without_response_is_not_applied_to_the_next_attempt() {
    // The driver first prepares the statement, and then sends the state of the job.
    let Some(store) = ProxiedStore::new(&["jobs SET state = outcome.state", "available"], true).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    let (go, started) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (permits, second) = (go.clone(), started.clone());
    let handler = move |job: Job<Mail>| {
        let (go, started) = (permits.clone(), second.clone());
        async move {
            if job.attempt() == 1 {
                return Err(Failure::retry_after("not yet", Duration::ZERO));
            }
            started.add_permits(1);
            go.acquire().await.unwrap().forget();
            Ok(())
        }
    };
    queue.serve(&registry, impatient().concurrency(1), handler).await.unwrap();
    store.arm();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    store.wait_until_silent().await;
    timeout(HANG, started.acquire()).await.expect("the second attempt starts").unwrap().forget();
    // The task of the first attempt ends when the worker has committed the outcome again.
    let report = format!("job {id}, attempt 1 of 20: not yet; retried immediately");
    until("the outcome is committed again", async || losses.all().iter().any(|loss| loss.2 == report).then_some(())).await;
    assert_eq!(queue.info(id).await.unwrap().unwrap().status(), JobStatus::Running);
    go.add_permits(1);
    let info = timeout(HANG, queue.wait(id)).await.expect("the outcome is committed").unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (JobStatus::Done, 2));
    timeout(HANG, registry.shutdown()).await.expect("shutdown ends");
    assert_eq!(started.available_permits(), 0, "there is no third attempt");
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_without_response_is_repeated() {
    let Some(store) = ProxiedStore::on(&["WITH fetched AS"]).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    store.arm();
    queue.serve(&registry, impatient(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    let info = timeout(HANG, store.direct().await.wait(id)).await.expect("the job runs").unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (JobStatus::Done, 1));
    timeout(HANG, registry.shutdown()).await.expect("shutdown ends");
    let text = "the worker cannot fetch jobs, and retries: the database did not respond within 5s".to_owned();
    assert_eq!(losses.all(), [("failed", "mail worker", text)]);
}

/// The server has executed the fetch, so it has assigned the jobs to the worker. The worker has not received them.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_fetch_whose_response_is_lost_run() {
    // The driver first prepares the statement, and then sends the name of the queue.
    let Some(store) = ProxiedStore::new(&["WITH fetched AS", "mail"], true).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    let id = queue.enqueue(mail("ann")).await.unwrap();
    store.arm();
    queue.serve(&registry, impatient(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    store.wait_until_silent().await;
    let info = timeout(HANG, store.direct().await.wait(id)).await.expect("the job runs").unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (JobStatus::Done, 1));
    timeout(HANG, registry.shutdown()).await.expect("shutdown ends");
    let text = "the worker cannot fetch jobs, and retries: the database did not respond within 5s".to_owned();
    assert_eq!(losses.all(), [("failed", "mail worker", text)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_does_not_wait_for_the_comparison_of_held_jobs() {
    let Some(store) = ProxiedStore::on(&["state = 'cancelled' FROM"]).await else { return };
    let (registry, losses) = registry();
    store.arm();
    let options = WorkerOptions::default().response_timeout(Duration::from_hours(1));
    store.jobs.queue::<Mail>("mail").serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    store.wait_until_silent().await;
    timeout(HANG, registry.shutdown()).await.expect("shutdown ends");
    assert_eq!(losses.all(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_continue_after_one_without_response() {
    let Some(store) = ProxiedStore::on(&["workers AS workers SET expires_at"]).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    let (started, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (first, permits) = (started.clone(), go.clone());
    let handler = move |_: Job<Mail>| {
        let (started, go) = (started.clone(), go.clone());
        async move {
            started.add_permits(1);
            go.acquire().await.unwrap().forget();
            Ok::<_, Infallible>(())
        }
    };
    store.arm();
    queue.serve(&registry, WorkerOptions::default().lease(Duration::from_secs(10)), handler).await.unwrap();
    queue.enqueue(mail("ann")).await.unwrap();
    timeout(HANG, first.acquire()).await.expect("it runs").unwrap().forget();
    let shutdown = tokio::spawn(registry.shutdown());
    let direct = store.database.open().await;
    store.wait_until_silent().await;
    let (mut heartbeats, mut last) = (0, i64::MAX);
    until("two more heartbeats have arrived", async || {
        let age =
            numbers(&direct, "SELECT (extract(epoch FROM interval '10 s' - (expires_at - now())) * 1000)::bigint FROM {workers}")
                .await[0];
        assert!(age < 10_000, "the worker counts as dead");
        heartbeats += i32::from(age < last && last < i64::MAX);
        last = age;
        (heartbeats == 2).then_some(())
    })
    .await;
    permits.add_permits(1);
    timeout(HANG, shutdown).await.expect("shutdown ends").unwrap();
    let text = "the worker cannot renew its lease, and retries: the database did not respond within 4s".to_owned();
    assert_eq!(losses.all(), [("failed", "mail worker", text)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_continues_after_a_call_without_response() {
    let Some(store) = ProxiedStore::on(&["jobs WHERE id = ANY (ARRAY(SELECT old.id"]).await else { return };
    let (registry, losses) = registry();
    let queue = store.jobs.queue::<Mail>("mail");
    store.arm();
    let options = impatient().retention(Duration::ZERO).maintenance_interval(Duration::ZERO);
    queue.serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    store.wait_until_silent().await;
    let id = queue.enqueue(mail("ann")).await.unwrap();
    until("the finished job is deleted", async || queue.info(id).await.unwrap().is_none().then_some(())).await;
    timeout(HANG, registry.shutdown()).await.expect("shutdown ends");
    let text = "the worker cannot delete old jobs, and retries: the database did not respond within 5s".to_owned();
    assert_eq!(losses.all(), [("failed", "mail worker", text)]);
}

/// Another program locks the table, as `VACUUM FULL` does. The connection is not silent.
#[tokio::test(flavor = "multi_thread")]
async fn locked_table_is_reported_as_locked() {
    let Some(database) = TestDatabase::postgres() else { return };
    let (jobs, other) = (database.open().await, database.open().await);
    let (registry, losses) = registry();
    let queue = jobs.queue::<Mail>("mail");
    queue.serve(&registry, WorkerOptions::default(), async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    queue.wait(id).await.unwrap();
    let mut tx = other.postgres_pool().unwrap().begin().await.unwrap();
    sqlx::query("LOCK TABLE background_tasks.jobs").execute(&mut *tx).await.unwrap();
    until("the lock is reported", async || (!losses.all().is_empty()).then_some(())).await;
    tx.rollback().await.unwrap();
    let id = queue.enqueue(mail("ben")).await.unwrap();
    assert_eq!(timeout(HANG, queue.wait(id)).await.expect("the job runs").unwrap().unwrap().status(), JobStatus::Done);
    timeout(HANG, registry.shutdown()).await.expect("shutdown ends");
    assert!(losses.all().iter().all(|loss| loss.2.contains("lock timeout")), "{:?}", losses.all());
}
