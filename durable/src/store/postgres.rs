use super::{Batch, Order, Store, TICKS, Terms, Told, engine_failed, ids, migrated};
use crate::intake::{Polls, Start, engine};
use crate::{Counts, Error, Info};
use apalis_postgres::{Config, PostgresStorage, queries};
use background_tasks::ShutdownSignal;
use futures_timer::Delay;
use futures_util::future::{BoxFuture, Either, FutureExt, select};
use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::postgres::types::PgHstore;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{Connection, PgConnection, PgPool, Row};
use std::fmt::Display;
use std::io::ErrorKind;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::timeout;
use ulid::Ulid;

/// How long the server may be away before it is an error.
const AWAY: Duration = Duration::from_secs(10);

const DEAD: &str = "status IN ('Killed', 'Failed') AND (status = 'Killed' OR attempts >= max_attempts)";

const COLUMNS: &str = "id, status, attempts, max_attempts, extract(epoch FROM run_at)::bigint AS run_at,
    metadata -> 'version' AS version, last_result::text AS last_result, job";

/// How long a connection may take to answer, when it leaves its pool and when it comes back.
const SOON: Duration = Duration::from_secs(3);

/// What is asked beside what the engine itself asks. Without the first the upkeep looks at all jobs, and so does who asks for the dead; without
/// the second each heartbeat does.
const INDEXES: [(&str, &str); 2] = [
    ("background_tasks_ended", "(job_type, status, done_at) WHERE status IN ('Done', 'Failed', 'Killed')"),
    ("background_tasks_held", "(lock_by) WHERE status IN ('Queued', 'Running')"),
];

/// How often it is asked whether the engine's connection is free again.
const MOMENT: Duration = Duration::from_millis(1);

pub(crate) struct Postgres {
    pool: PgPool,
    /// The workers' own: those of the program may all be in the hands of its handlers.
    own: PgPool,
}

impl Postgres {
    pub(crate) async fn connect(url: &str) -> Told<Self> {
        let options: PgConnectOptions =
            url.parse().map_err(|error: sqlx::Error| Error::Address(format!("{error}: what was given")))?;
        // A transaction whose future was dropped as it began is one that the driver does not know of (sqlx's issue 4393), and all that is
        // done on that connection would end with it.
        let pool = pool_options().before_acquire(|conn, _| answers(conn).boxed()).after_release(|conn, _| clean(conn).boxed());
        let own = pool.clone().after_connect(|conn, _| behave(conn).boxed()).connect_lazy_with(options.clone());
        let pool = match pool.connect_with(options.clone()).await {
            Err(sqlx::Error::PoolTimedOut) => return Err(why_not(&options).await),
            // A socket, or what is to secure the connection.
            Err(sqlx::Error::Io(error)) if error.kind() == ErrorKind::NotFound => return Err(missing(&options, &error)),
            Err(error) => return Err(named(&options, error)),
            Ok(pool) => pool,
        };
        let encoding: String = sqlx::query_scalar("SHOW server_encoding").fetch_one(&pool).await?;
        if encoding != "UTF8" {
            return Err(Error::Schema(format!("its encoding is {encoding}, which cannot take every job: it must be UTF8")));
        }
        migrate(&pool).await?;
        Ok(Self { pool, own })
    }
}

fn pool_options() -> PgPoolOptions {
    // `answers` does it.
    PgPoolOptions::new().acquire_timeout(AWAY).test_before_acquire(false)
}

/// In place of one that does not answer the pool makes another, if that is told in time.
async fn answers(conn: &mut PgConnection) -> sqlx::Result<bool> {
    soon(conn.ping()).await.map(|()| true)
}

/// One that does not answer would keep its place in the pool, for as long as the kernel hopes.
async fn clean(conn: &mut PgConnection) -> sqlx::Result<bool> {
    soon(sqlx::raw_sql("BEGIN; ROLLBACK").execute(conn)).await.map(|_| true)
}

async fn soon<T>(asked: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(SOON, asked).await.unwrap_or_else(|late| Err(sqlx::Error::Io(late.into())))
}

/// Where a connection has become silent, the server would keep what its transaction has locked from all others, for two hours as a rule. And
/// what waits for a lock is not silent.
async fn behave(conn: &mut PgConnection) -> sqlx::Result<()> {
    let limits = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '10s'";
    sqlx::raw_sql(limits).execute(conn).await.map(drop)
}

/// A pool tries for as long as it may, and does not tell what it met.
async fn why_not(options: &PgConnectOptions) -> Error {
    let connected = select(PgConnection::connect_with(options).boxed(), Delay::new(Duration::from_secs(1))).await;
    let error = if let Either::Left((Err(error), _)) = connected { error } else { sqlx::Error::PoolTimedOut };
    named(options, error)
}

/// It says which server is not there.
fn named(options: &PgConnectOptions, error: sqlx::Error) -> Error {
    match error.into() {
        Error::Missing(text) => missing(options, text),
        other => other,
    }
}

fn missing(options: &PgConnectOptions, why: impl Display) -> Error {
    Error::Missing(match options.get_socket() {
        Some(folder) => format!("{}: {why}", folder.display()),
        None => format!("{}:{}: {why}", options.get_host(), options.get_port()),
    })
}

/// Ends when the engine's connection is silent: what it led to is gone without a word, and the kernel still hopes, for a quarter of an
/// hour or for ever. The engine takes it anew for each thing that it asks.
async fn silent(pool: &PgPool, taken: &AtomicUsize) {
    let (mut before, mut times) = (0, 0);
    while times < 2 {
        Delay::new(AWAY).await;
        let now = taken.load(Relaxed);
        times = if now == before && is_used(pool) { times + 1 } else { 0 };
        before = now;
    }
}

fn is_used(pool: &PgPool) -> bool {
    pool.num_idle() < pool.size() as usize
}

/// The migrations' own list of what they did stands beside the tables: where else a name leads to differs from user to user.
const MIGRATED: &str = "apalis.background_tasks_migrations";

async fn migrate(pool: &PgPool) -> Told {
    let mut migrations = PostgresStorage::migrations();
    migrations.dangerous_set_table_name(MIGRATED);
    // Who may not create may not create what is there already, either.
    if !are_done(&migrations, pool).await? {
        let strange = "SELECT to_regclass('apalis.jobs') IS NOT NULL AND to_regclass($1) IS NULL";
        if sqlx::query_scalar(strange).bind(MIGRATED).fetch_one(pool).await? {
            return Err(Error::Schema("there is a table apalis.jobs that this crate has not made".to_owned()));
        }
        if sqlx::query_scalar("SELECT to_regnamespace('apalis') IS NULL").fetch_one(pool).await? {
            migrations.create_schema("apalis");
        }
        // As `run` does, whose future is not `Send` for the compiler.
        migrated(migrations.run_direct(None, &mut *pool.acquire().await?, false).await)?;
    }
    for (name, of) in INDEXES {
        // To look first spares the others a lock.
        if sqlx::query_scalar("SELECT to_regclass($1) IS NULL").bind(format!("apalis.{name}")).fetch_one(pool).await? {
            let mut tx = pool.begin().await?;
            sqlx::query("SELECT pg_advisory_xact_lock(hashtext('apalis.background_tasks'))").execute(&mut *tx).await?;
            let index = format!("CREATE INDEX IF NOT EXISTS {name} ON apalis.jobs {of}");
            sqlx::query(sqlx::AssertSqlSafe(index)).execute(&mut *tx).await?;
            tx.commit().await?;
        }
    }
    Ok(())
}

async fn are_done(migrations: &Migrator, pool: &PgPool) -> Told<bool> {
    if sqlx::query_scalar("SELECT to_regclass($1) IS NULL").bind(MIGRATED).fetch_one(pool).await? {
        return Ok(false);
    }
    let done = "SELECT version, checksum FROM apalis.background_tasks_migrations WHERE success ORDER BY version";
    let done: Vec<(i64, Vec<u8>)> = sqlx::query_as(done).fetch_all(pool).await?;
    Ok(done
        .iter()
        .map(|(version, checksum)| (*version, &**checksum))
        .eq(migrations.iter().map(|each| (each.version, &*each.checksum))))
}

/// One statement, so a transaction by itself. The engine's fails where a key is taken, which would cost the caller its transaction.
pub(crate) async fn push(conn: &mut PgConnection, order: &Order, payloads: &[Vec<u8>]) -> Told<Vec<Ulid>> {
    let ids = ids(payloads.len());
    let names: Vec<_> = ids.iter().map(Ulid::to_string).collect();
    let metadata = PgHstore(order.metadata().into_iter().map(|(name, value)| (name, Some(value))).collect());
    loop {
        let insert =
            "INSERT INTO apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at, priority, metadata, idempotency_key)
            SELECT id, $1, job, 'Pending', 0, $2, coalesce(to_timestamp($3::bigint), date_trunc('second', now())), $4, $5, $6
            FROM unnest($7::text[], $8::bytea[]) AS jobs (id, job) ON CONFLICT (job_type, idempotency_key) DO NOTHING";
        let insert = sqlx::query(insert).bind(order.queue).bind(Order::ATTEMPTS).bind(order.due).bind(order.priority);
        let insert = insert.bind(&metadata).bind(&order.key).bind(&names).bind(payloads);
        if insert.execute(&mut *conn).await?.rows_affected() > 0 {
            return Ok(ids);
        }
        let there = sqlx::query_scalar::<_, String>("SELECT id FROM apalis.jobs WHERE job_type = $1 AND idempotency_key = $2");
        // Between the two it can be dropped, as done long ago.
        if let Some(there) = there.bind(order.queue).bind(&order.key).fetch_optional(&mut *conn).await? {
            return Ok(vec![ulid(&there)?]);
        }
    }
}

fn failed(error: apalis_postgres::Error) -> Error {
    match error {
        apalis_postgres::Error::Database(error) => error.into(),
        other => engine_failed(other),
    }
}

fn ulid(text: &str) -> Told<Ulid> {
    text.parse().map_err(|_| Error::Schema(format!("{text} is no identifier of a job")))
}

fn info(row: &PgRow) -> Told<Info> {
    Ok(Info::new(
        ulid(row.try_get("id")?)?,
        row.try_get("status")?,
        row.try_get::<i32, _>("attempts")?.into(),
        row.try_get::<i32, _>("max_attempts")?.into(),
        row.try_get("run_at")?,
        row.try_get("version")?,
        row.try_get("last_result")?,
        row.try_get("job")?,
    ))
}

/// Its JSON has no NUL.
fn without_nul(value: Value) -> Value {
    let clean = |text: String| if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text };
    match value {
        Value::String(text) => Value::String(clean(text)),
        Value::Array(values) => values.into_iter().map(without_nul).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (clean(name), without_nul(value))).collect(),
        other => other,
    }
}

impl Store for Postgres {
    fn push(&self, order: Order, payloads: Vec<Vec<u8>>) -> BoxFuture<'_, Told<Vec<Ulid>>> {
        async move { push(&mut *self.pool.acquire().await?, &order, &payloads).await }.boxed()
    }

    /// On a connection of its own, as a fetch that is dropped can still be committed: when it is free again, that is over. One is enough, as the
    /// engine asks one thing at a time.
    fn engine(
        &self,
        name: String,
        terms: Terms,
        polls: Polls,
        start: Arc<Start>,
        signal: ShutdownSignal,
    ) -> BoxFuture<'static, Option<Error>> {
        let config = Config::default()
            .queue(terms.queue)
            .batch_size(terms.batch)
            .heartbeat_interval(terms.beat)
            .missed_heartbeats(terms.beats)
            .lock_tasks(false)
            .persist_results(false);
        let taken = Arc::new(AtomicUsize::new(0));
        let count = || {
            let taken = taken.clone();
            move || _ = taken.fetch_add(1, Relaxed)
        };
        let (one_more, and_one_more) = (count(), count());
        let pool = pool_options().max_connections(1);
        let pool = pool.after_connect(move |conn, _| {
            one_more();
            behave(conn).boxed()
        });
        let pool = pool.before_acquire(move |conn, _| {
            and_one_more();
            answers(conn).boxed()
        });
        let pool = pool.connect_lazy_with((*self.pool.connect_options()).clone());
        async move {
            let engine = engine(PostgresStorage::<Vec<u8>>::new(&pool).with_config(config), name, polls, start);
            let silent = silent(&pool, &taken).map(|()| Error::Missing("the server of the database is silent".to_owned()));
            let failed = signal.run_until_shutdown(select(pin!(engine), pin!(silent)).map(|either| either.factor_first().0)).await;
            let free = async {
                while is_used(&pool) {
                    Delay::new(MOMENT).await;
                }
                pool.close().await;
            };
            select(pin!(free), Delay::new(AWAY)).await;
            failed
        }
        .boxed()
    }

    fn settle<'a>(&'a self, worker: &'a str, batch: &'a Batch) -> BoxFuture<'a, Told> {
        async move {
            let mut tx = self.own.begin().await?;
            if !batch.started.is_empty() {
                let start = "UPDATE apalis.jobs SET status = 'Running' WHERE id = ANY($1) AND lock_by = $2 AND status = 'Queued'";
                sqlx::query(start).bind(&batch.started).bind(worker).execute(&mut *tx).await?;
            }
            // Before its outcome, which makes it to be had again.
            for (id, after) in &batch.again {
                let again = "UPDATE apalis.jobs SET run_at = now() + make_interval(secs => $3) WHERE id = $1 AND lock_by = $2";
                sqlx::query(again).bind(id).bind(worker).bind(after.as_secs_f64()).execute(&mut *tx).await?;
            }
            if !batch.ended.is_empty() {
                let mut ended = batch.ended.clone();
                for each in &mut ended {
                    each.result = std::mem::replace(&mut each.result, Ok(Value::Null))
                        .map(without_nul)
                        .map_err(|text| text.replace('\0', "\u{fffd}"));
                }
                queries::handle_results(&mut *tx, &ended.iter().collect::<Vec<_>>(), worker).await.map_err(failed)?;
            }
            if !batch.returned.is_empty() {
                let back = "UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                    WHERE id = ANY($1) AND lock_by = $2 AND status IN ('Queued', 'Running')";
                sqlx::query(back).bind(&batch.returned).bind(worker).execute(&mut *tx).await?;
            }
            for (id, after, why) in &batch.deferred {
                let defer = "UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL,
                    run_at = now() + make_interval(secs => $3), last_result = jsonb_build_object('Err', $4::text)
                    WHERE id = $1 AND lock_by = $2";
                let defer = sqlx::query(defer).bind(id).bind(worker).bind(after.as_secs_f64()).bind(why);
                defer.execute(&mut *tx).await?;
            }
            Ok(tx.commit().await?)
        }
        .boxed()
    }

    fn beat<'a>(&'a self, workers: &'a [String]) -> BoxFuture<'a, Told> {
        async move {
            let beat = "UPDATE apalis.workers SET last_seen = now() WHERE id = ANY($1)";
            sqlx::query(beat).bind(workers).execute(&self.own).await?;
            Ok(())
        }
        .boxed()
    }

    fn give_back<'a>(&'a self, worker: &'a str, but: &'a [String]) -> BoxFuture<'a, Told> {
        async move {
            let back = "UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                WHERE lock_by = $1 AND status IN ('Queued', 'Running') AND id <> ALL($2)";
            sqlx::query(back).bind(worker).bind(but).execute(&self.own).await?;
            Ok(())
        }
        .boxed()
    }

    fn sign_off<'a>(&'a self, worker: &'a str) -> BoxFuture<'a, Told> {
        async move {
            self.give_back(worker, &[]).await?;
            let off = "UPDATE apalis.workers SET last_seen = 'epoch' WHERE id = $1";
            sqlx::query(off).bind(worker).execute(&self.own).await?;
            Ok(())
        }
        .boxed()
    }

    fn info<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<Option<Info>>> {
        async move {
            let asked = format!("SELECT {COLUMNS} FROM apalis.jobs WHERE id = $1 AND job_type = $2");
            let asked = sqlx::query(sqlx::AssertSqlSafe(asked)).bind(id.to_string()).bind(queue);
            asked.fetch_optional(&self.pool).await?.map(|row| info(&row)).transpose()
        }
        .boxed()
    }

    fn dead<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told<Vec<Info>>> {
        async move {
            let asked = format!("SELECT {COLUMNS} FROM apalis.jobs WHERE job_type = $1 AND {DEAD} ORDER BY done_at, id");
            let asked = sqlx::query(sqlx::AssertSqlSafe(asked)).bind(queue);
            asked.fetch_all(&self.pool).await?.iter().map(info).collect()
        }
        .boxed()
    }

    fn retry<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<bool>> {
        async move {
            let again = format!(
                "UPDATE apalis.jobs SET status = 'Pending', attempts = 0, run_at = now(), lock_by = NULL, lock_at = NULL, done_at = NULL
                WHERE id = $1 AND job_type = $2 AND {DEAD}"
            );
            let done = sqlx::query(sqlx::AssertSqlSafe(again)).bind(id.to_string()).bind(queue).execute(&self.pool).await?;
            Ok(done.rows_affected() == 1)
        }
        .boxed()
    }

    fn discard<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<bool>> {
        async move {
            let discard = "DELETE FROM apalis.jobs WHERE id = $1 AND job_type = $2 AND status IN ('Pending', 'Failed', 'Killed')";
            let done = sqlx::query(discard).bind(id.to_string()).bind(queue).execute(&self.pool).await?;
            Ok(done.rows_affected() == 1)
        }
        .boxed()
    }

    fn counts<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told<Counts>> {
        async move {
            let asked =
                "SELECT status, attempts >= max_attempts AS over, count(*) AS jobs FROM apalis.jobs WHERE job_type = $1 GROUP BY 1, 2";
            let mut counts = Counts::default();
            for row in sqlx::query(asked).bind(queue).fetch_all(&self.pool).await? {
                counts.add(row.try_get("status")?, row.try_get("over")?, row.try_get("jobs")?);
            }
            Ok(counts)
        }
        .boxed()
    }

    fn prune<'a>(&'a self, queue: &'a str, retain: Duration) -> BoxFuture<'a, Told<u64>> {
        async move {
            let prune = "DELETE FROM apalis.jobs WHERE id IN (SELECT id FROM apalis.jobs
                WHERE job_type = $1 AND status = 'Done' AND done_at <= now() - make_interval(secs => $2)
                AND (done_at <= now() - make_interval(secs => $3) OR idempotency_key IS NULL OR idempotency_key NOT LIKE 'cron %')
                LIMIT 1000)";
            let prune = sqlx::query(prune).bind(queue).bind(retain.as_secs_f64()).bind(TICKS.as_secs_f64());
            Ok(prune.execute(&self.own).await?.rows_affected())
        }
        .boxed()
    }

    /// The server's own vacuum counts its tables.
    fn tidy<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told> {
        async move {
            let gone = "DELETE FROM apalis.workers WHERE last_seen < now() - interval '1 day' AND worker_type = $1
                AND NOT EXISTS (SELECT 1 FROM apalis.jobs WHERE lock_by = workers.id)";
            sqlx::query(gone).bind(queue).execute(&self.own).await?;
            Ok(())
        }
        .boxed()
    }

    fn postgres(&self) -> Option<&PgPool> {
        Some(&self.pool)
    }
}
