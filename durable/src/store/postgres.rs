use super::{CRON_KEY_RETENTION, JobSpec, OutcomeBatch, Store, StoreResult, migrated, new_ids, parse_id};
use crate::engine::{FetchConfig, PollTimer, StartJob, engine_error, run_engine};
use crate::error::Error;
use crate::job::{JobInfo, QueueCounts};
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

/// How long a call waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Matches dead jobs: killed, or failed as often as the engine allows.
const DEAD: &str = "status IN ('Killed', 'Failed') AND (status = 'Killed' OR attempts >= max_attempts)";

const COLUMNS: &str = "id, status, attempts, max_attempts, extract(epoch FROM run_at)::bigint AS run_at,
    metadata -> 'version' AS version, last_result::text AS last_result, job";

/// How long a connection may take to respond when it leaves its pool and when it returns.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Indexes for the queries that this crate adds to those of the engine. Without the first, maintenance and `Queue::dead` scan all jobs.
/// Without the second, each heartbeat does.
const INDEXES: [(&str, &str); 2] = [
    ("background_tasks_ended", "(job_type, status, done_at) WHERE status IN ('Done', 'Failed', 'Killed')"),
    ("background_tasks_held", "(lock_by) WHERE status IN ('Queued', 'Running')"),
];

/// How often the shutdown of an engine checks whether its connection is idle.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(1);

pub(crate) struct Postgres {
    pool: PgPool,
    /// Connections of the workers: handlers may use all connections of `pool`.
    worker_pool: PgPool,
}

impl Postgres {
    pub(crate) async fn connect(url: &str) -> StoreResult<Self> {
        let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| Error::Address(error.to_string()))?;
        // If the future of a `begin` is dropped, the driver does not know about the open transaction (sqlx issue 4393). Everything that is
        // later done on that connection would be rolled back with it.
        let pool =
            pool_options().before_acquire(|conn, _| ping(conn).boxed()).after_release(|conn, _| end_transaction(conn).boxed());
        let worker_pool = pool.clone().after_connect(|conn, _| set_limits(conn).boxed()).connect_lazy_with(options.clone());
        let pool = match pool.connect_with(options.clone()).await {
            Err(sqlx::Error::PoolTimedOut) => return Err(connect_error(&options).await),
            // The socket, or a file for TLS, does not exist.
            Err(sqlx::Error::Io(error)) if error.kind() == ErrorKind::NotFound => return Err(unavailable(&options, &error)),
            Err(error) => return Err(with_address(&options, error)),
            Ok(pool) => pool,
        };
        let encoding: String = sqlx::query_scalar("SHOW server_encoding").fetch_one(&pool).await?;
        if encoding != "UTF8" {
            return Err(Error::Schema(format!("the encoding is {encoding}, but must be UTF8 to store every job")));
        }
        migrate(&pool).await?;
        Ok(Self { pool, worker_pool })
    }
}

fn pool_options() -> PgPoolOptions {
    // `ping` replaces the test.
    PgPoolOptions::new().acquire_timeout(CONNECT_TIMEOUT).test_before_acquire(false)
}

/// Checks that a connection responds. On an error the pool opens another connection.
async fn ping(conn: &mut PgConnection) -> sqlx::Result<bool> {
    ping_timeout(conn.ping()).await.map(|()| true)
}

/// Ends a transaction that the driver does not know about. Without a time limit, a silent connection would occupy the pool until the
/// kernel gives up.
async fn end_transaction(conn: &mut PgConnection) -> sqlx::Result<bool> {
    ping_timeout(sqlx::raw_sql("BEGIN; ROLLBACK").execute(conn)).await.map(|_| true)
}

async fn ping_timeout<T>(call: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(PING_TIMEOUT, call).await.unwrap_or_else(|elapsed| Err(sqlx::Error::Io(elapsed.into())))
}

/// Sets limits for the workers' connections. Without the first, the server keeps the locks of a silent connection's transaction, usually for
/// two hours. Without the second, a connection that waits for a lock looks like a silent one.
async fn set_limits(conn: &mut PgConnection) -> sqlx::Result<()> {
    let limits = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '10s'";
    sqlx::raw_sql(limits).execute(conn).await.map(drop)
}

/// Connects once to find out why the pool could not connect: it retries until its time limit and does not report the cause.
async fn connect_error(options: &PgConnectOptions) -> Error {
    let connected = select(PgConnection::connect_with(options).boxed(), Delay::new(Duration::from_secs(1))).await;
    let error = if let Either::Left((Err(error), _)) = connected { error } else { sqlx::Error::PoolTimedOut };
    with_address(options, error)
}

/// Adds the address of the server to the error.
fn with_address(options: &PgConnectOptions, error: sqlx::Error) -> Error {
    match error.into() {
        Error::Unavailable(text) => unavailable(options, text),
        other => other,
    }
}

fn unavailable(options: &PgConnectOptions, cause: impl Display) -> Error {
    Error::Unavailable(match options.get_socket() {
        Some(folder) => format!("{}: {cause}", folder.display()),
        None => format!("{}:{}: {cause}", options.get_host(), options.get_port()),
    })
}

/// Resolves when the engine's connection does not respond. The server may be unreachable while the kernel still waits, for a quarter of an
/// hour or forever. The engine acquires the connection for each statement, so an unchanged count of a used connection shows the stall.
///
/// The count must be unchanged twice in a row, so this function returns after two to three intervals without an acquisition.
async fn unresponsive(pool: &PgPool, acquired: &AtomicUsize, interval: Duration) {
    let (mut previous, mut unchanged) = (0, 0);
    while unchanged < 2 {
        Delay::new(interval).await;
        let count = acquired.load(Relaxed);
        unchanged = if count == previous && is_used(pool) { unchanged + 1 } else { 0 };
        previous = count;
    }
}

fn is_used(pool: &PgPool) -> bool {
    pool.num_idle() < pool.size() as usize
}

/// The table in which the migrations record their progress. Its schema is explicit because the search path differs between users.
const MIGRATIONS_TABLE: &str = "apalis.background_tasks_migrations";

async fn migrate(pool: &PgPool) -> StoreResult {
    let mut migrations = PostgresStorage::migrations();
    migrations.dangerous_set_table_name(MIGRATIONS_TABLE);
    // A user without the privilege to create cannot run `CREATE … IF NOT EXISTS` either.
    if !is_migrated(&migrations, pool).await? {
        let foreign = "SELECT to_regclass('apalis.jobs') IS NOT NULL AND to_regclass($1) IS NULL";
        if sqlx::query_scalar(foreign).bind(MIGRATIONS_TABLE).fetch_one(pool).await? {
            return Err(Error::Schema("table apalis.jobs exists but was not created by this crate".to_owned()));
        }
        if sqlx::query_scalar("SELECT to_regnamespace('apalis') IS NULL").fetch_one(pool).await? {
            migrations.create_schema("apalis");
        }
        // `run` does the same, but the compiler does not recognize its future as `Send`.
        migrated(migrations.run_direct(None, &mut *pool.acquire().await?, false).await)?;
    }
    for (name, columns) in INDEXES {
        // Checks first, because creating an index locks the table.
        if sqlx::query_scalar("SELECT to_regclass($1) IS NULL").bind(format!("apalis.{name}")).fetch_one(pool).await? {
            let mut tx = pool.begin().await?;
            sqlx::query("SELECT pg_advisory_xact_lock(hashtext('apalis.background_tasks'))").execute(&mut *tx).await?;
            let index = format!("CREATE INDEX IF NOT EXISTS {name} ON apalis.jobs {columns}");
            sqlx::query(sqlx::AssertSqlSafe(index)).execute(&mut *tx).await?;
            tx.commit().await?;
        }
    }
    Ok(())
}

async fn is_migrated(migrations: &Migrator, pool: &PgPool) -> StoreResult<bool> {
    if sqlx::query_scalar("SELECT to_regclass($1) IS NULL").bind(MIGRATIONS_TABLE).fetch_one(pool).await? {
        return Ok(false);
    }
    let done = "SELECT version, checksum FROM apalis.background_tasks_migrations WHERE success ORDER BY version";
    let done: Vec<(i64, Vec<u8>)> = sqlx::query_as(done).fetch_all(pool).await?;
    Ok(done
        .iter()
        .map(|(version, checksum)| (*version, &**checksum))
        .eq(migrations.iter().map(|each| (each.version, &*each.checksum))))
}

/// Inserts the jobs in a single statement, which is a transaction. The engine's own statement fails if the key exists, and so aborts the
/// caller's transaction.
pub(crate) async fn push(conn: &mut PgConnection, spec: &JobSpec, payloads: &[Vec<u8>]) -> StoreResult<Vec<Ulid>> {
    let ids = new_ids(payloads.len());
    let names: Vec<_> = ids.iter().map(Ulid::to_string).collect();
    let metadata = PgHstore(spec.metadata().into_iter().map(|(name, value)| (name, Some(value))).collect());
    loop {
        let insert =
            "INSERT INTO apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at, priority, metadata, idempotency_key)
            SELECT id, $1, job, 'Pending', 0, $2, coalesce(to_timestamp($3::bigint), date_trunc('second', now())), $4, $5, $6
            FROM unnest($7::text[], $8::bytea[]) AS jobs (id, job) ON CONFLICT (job_type, idempotency_key) DO NOTHING";
        let insert = sqlx::query(insert).bind(spec.queue).bind(JobSpec::MAX_ATTEMPTS).bind(spec.run_at).bind(spec.priority);
        let insert = insert.bind(&metadata).bind(&spec.unique_key).bind(&names).bind(payloads);
        if insert.execute(&mut *conn).await?.rows_affected() > 0 {
            return Ok(ids);
        }
        let existing = sqlx::query_scalar::<_, String>("SELECT id FROM apalis.jobs WHERE job_type = $1 AND idempotency_key = $2");
        // Between the two statements, maintenance may have deleted the job.
        if let Some(id) = existing.bind(spec.queue).bind(&spec.unique_key).fetch_optional(&mut *conn).await? {
            return Ok(vec![parse_id(&id)?]);
        }
    }
}

fn ack_error(error: apalis_postgres::Error) -> Error {
    match error {
        apalis_postgres::Error::Database(error) => error.into(),
        other => engine_error(other),
    }
}

fn info(row: &PgRow) -> StoreResult<JobInfo> {
    Ok(JobInfo::new(
        parse_id(row.try_get("id")?)?,
        row.try_get("status")?,
        row.try_get::<i32, _>("attempts")?.into(),
        row.try_get::<i32, _>("max_attempts")?.into(),
        row.try_get("run_at")?,
        row.try_get("version")?,
        row.try_get("last_result")?,
        row.try_get("job")?,
    ))
}

/// Replaces NUL characters, which the JSON of Postgres cannot contain.
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
    fn push(&self, spec: JobSpec, payloads: Vec<Vec<u8>>) -> BoxFuture<'_, StoreResult<Vec<Ulid>>> {
        async move { push(&mut *self.pool.acquire().await?, &spec, &payloads).await }.boxed()
    }

    /// Runs the engine on a separate connection. A dropped fetch can still commit, and has ended when the connection is idle again. One
    /// connection is enough, because the engine runs one statement at a time.
    fn run_engine(
        &self,
        name: String,
        config: FetchConfig,
        timer: PollTimer,
        start: Arc<StartJob>,
        signal: ShutdownSignal,
    ) -> BoxFuture<'static, Option<Error>> {
        let fetch_timeout = config.response_timeout * 2 / 3;
        let config = Config::default()
            .queue(config.queue)
            .batch_size(config.batch_size)
            .heartbeat_interval(config.heartbeat_interval)
            .missed_heartbeats(config.missed_heartbeats)
            .lock_tasks(false)
            .persist_results(false);
        let acquired = Arc::new(AtomicUsize::new(0));
        let counter = || {
            let acquired = acquired.clone();
            move || _ = acquired.fetch_add(1, Relaxed)
        };
        let (count_connect, count_acquire) = (counter(), counter());
        let pool = pool_options().max_connections(1);
        let pool = pool.after_connect(move |conn, _| {
            count_connect();
            set_limits(conn).boxed()
        });
        let pool = pool.before_acquire(move |conn, _| {
            count_acquire();
            ping(conn).boxed()
        });
        let pool = pool.connect_lazy_with((*self.pool.connect_options()).clone());
        async move {
            let engine = run_engine(PostgresStorage::<Vec<u8>>::new(&pool).with_config(config), name, timer, start);
            let unresponsive = unresponsive(&pool, &acquired, fetch_timeout);
            let unresponsive = unresponsive.map(|()| Error::Unavailable("the database server does not respond".to_owned()));
            // This statement drops the engine at its end, which returns the connection.
            let failure =
                signal.run_until_shutdown(select(pin!(engine), pin!(unresponsive)).map(|either| either.factor_first().0)).await;
            let idle = async {
                while is_used(&pool) {
                    Delay::new(IDLE_CHECK_INTERVAL).await;
                }
                pool.close().await;
            };
            select(pin!(idle), Delay::new(fetch_timeout)).await;
            failure
        }
        .boxed()
    }

    fn commit_outcomes<'a>(&'a self, engine: &'a str, batch: &'a OutcomeBatch) -> BoxFuture<'a, StoreResult> {
        async move {
            let mut tx = self.worker_pool.begin().await?;
            if !batch.started.is_empty() {
                let start = "UPDATE apalis.jobs SET status = 'Running' WHERE id = ANY($1) AND lock_by = $2 AND status = 'Queued'";
                sqlx::query(start).bind(&batch.started).bind(engine).execute(&mut *tx).await?;
            }
            // Before the acknowledgement, which makes the job available again.
            for (id, delay) in &batch.retries {
                let retry = "UPDATE apalis.jobs SET run_at = now() + make_interval(secs => $3) WHERE id = $1 AND lock_by = $2";
                sqlx::query(retry).bind(id).bind(engine).bind(delay.as_secs_f64()).execute(&mut *tx).await?;
            }
            if !batch.ended.is_empty() {
                let mut ended = batch.ended.clone();
                for each in &mut ended {
                    each.result = std::mem::replace(&mut each.result, Ok(Value::Null))
                        .map(without_nul)
                        .map_err(|text| text.replace('\0', "\u{fffd}"));
                }
                queries::handle_results(&mut *tx, &ended.iter().collect::<Vec<_>>(), engine).await.map_err(ack_error)?;
            }
            if !batch.returned.is_empty() {
                let release = "UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                    WHERE id = ANY($1) AND lock_by = $2 AND status IN ('Queued', 'Running')";
                sqlx::query(release).bind(&batch.returned).bind(engine).execute(&mut *tx).await?;
            }
            for (id, delay, reason) in &batch.deferred {
                let defer = "UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL,
                    run_at = now() + make_interval(secs => $3), last_result = jsonb_build_object('Err', $4::text)
                    WHERE id = $1 AND lock_by = $2";
                let defer = sqlx::query(defer).bind(id).bind(engine).bind(delay.as_secs_f64()).bind(reason);
                defer.execute(&mut *tx).await?;
            }
            Ok(tx.commit().await?)
        }
        .boxed()
    }

    fn heartbeat<'a>(&'a self, engines: &'a [String]) -> BoxFuture<'a, StoreResult> {
        async move {
            let heartbeat = "UPDATE apalis.workers SET last_seen = now() WHERE id = ANY($1)";
            sqlx::query(heartbeat).bind(engines).execute(&self.worker_pool).await?;
            Ok(())
        }
        .boxed()
    }

    fn release<'a>(&'a self, engine: &'a str, except: &'a [String]) -> BoxFuture<'a, StoreResult> {
        async move {
            let release = "UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                WHERE lock_by = $1 AND status IN ('Queued', 'Running') AND id <> ALL($2)";
            sqlx::query(release).bind(engine).bind(except).execute(&self.worker_pool).await?;
            Ok(())
        }
        .boxed()
    }

    fn deregister<'a>(&'a self, engine: &'a str) -> BoxFuture<'a, StoreResult> {
        async move {
            self.release(engine, &[]).await?;
            let expire = "UPDATE apalis.workers SET last_seen = 'epoch' WHERE id = $1";
            sqlx::query(expire).bind(engine).execute(&self.worker_pool).await?;
            Ok(())
        }
        .boxed()
    }

    fn info<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<Option<JobInfo>>> {
        async move {
            let query = format!("SELECT {COLUMNS} FROM apalis.jobs WHERE id = $1 AND job_type = $2");
            let query = sqlx::query(sqlx::AssertSqlSafe(query)).bind(id.to_string()).bind(queue);
            query.fetch_optional(&self.pool).await?.map(|row| info(&row)).transpose()
        }
        .boxed()
    }

    fn dead<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult<Vec<JobInfo>>> {
        async move {
            let query = format!("SELECT {COLUMNS} FROM apalis.jobs WHERE job_type = $1 AND {DEAD} ORDER BY done_at, id");
            let query = sqlx::query(sqlx::AssertSqlSafe(query)).bind(queue);
            query.fetch_all(&self.pool).await?.iter().map(info).collect()
        }
        .boxed()
    }

    fn retry<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<bool>> {
        async move {
            let retry = format!(
                "UPDATE apalis.jobs SET status = 'Pending', attempts = 0, run_at = now(), lock_by = NULL, lock_at = NULL, done_at = NULL
                WHERE id = $1 AND job_type = $2 AND {DEAD}"
            );
            let done = sqlx::query(sqlx::AssertSqlSafe(retry)).bind(id.to_string()).bind(queue).execute(&self.pool).await?;
            Ok(done.rows_affected() == 1)
        }
        .boxed()
    }

    fn discard<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<bool>> {
        async move {
            let discard = "DELETE FROM apalis.jobs WHERE id = $1 AND job_type = $2 AND status IN ('Pending', 'Failed', 'Killed')";
            let done = sqlx::query(discard).bind(id.to_string()).bind(queue).execute(&self.pool).await?;
            Ok(done.rows_affected() == 1)
        }
        .boxed()
    }

    fn counts<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult<QueueCounts>> {
        async move {
            let query =
                "SELECT status, attempts >= max_attempts AS over, count(*) AS jobs FROM apalis.jobs WHERE job_type = $1 GROUP BY 1, 2";
            let mut counts = QueueCounts::default();
            for row in sqlx::query(query).bind(queue).fetch_all(&self.pool).await? {
                counts.add(row.try_get("status")?, row.try_get("over")?, row.try_get("jobs")?);
            }
            Ok(counts)
        }
        .boxed()
    }

    fn prune<'a>(&'a self, queue: &'a str, retention: Duration) -> BoxFuture<'a, StoreResult<u64>> {
        async move {
            let prune = "DELETE FROM apalis.jobs WHERE id IN (SELECT id FROM apalis.jobs
                WHERE job_type = $1 AND status = 'Done' AND done_at <= now() - make_interval(secs => $2)
                AND (done_at <= now() - make_interval(secs => $3) OR idempotency_key IS NULL OR idempotency_key NOT LIKE 'cron %')
                LIMIT 1000)";
            let prune = sqlx::query(prune).bind(queue).bind(retention.as_secs_f64()).bind(CRON_KEY_RETENTION.as_secs_f64());
            Ok(prune.execute(&self.worker_pool).await?.rows_affected())
        }
        .boxed()
    }

    /// Deletes dead workers only: the server's autovacuum updates the statistics.
    fn clean_up<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult> {
        async move {
            let dead = "DELETE FROM apalis.workers WHERE last_seen < now() - interval '1 day' AND worker_type = $1
                AND NOT EXISTS (SELECT 1 FROM apalis.jobs WHERE lock_by = workers.id)";
            sqlx::query(dead).bind(queue).execute(&self.worker_pool).await?;
            Ok(())
        }
        .boxed()
    }

    fn postgres(&self) -> Option<&PgPool> {
        Some(&self.pool)
    }
}
