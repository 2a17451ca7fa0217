use super::{
    Committed, EnqueuedRow, FetchRequest, FetchedJob, Heart, HeldJob, JobSpec, LimitedFetch, LimitsRow, MAX_ROWS, Notice, Order,
    Outcome, Pushed, QueueRow, QueueTick, RunAt, STATES, Store, StoreFuture, StoreResult, WorkerLease, check_version, count,
    count_columns, held_job, missing_versions, new_ids, parse_id, state_condition,
};
use crate::error::Error;
use crate::job::{JobInfo, JobRow, JobStatus, QueueCounts};
use crate::limits::QueueLimits;
use crate::operator::QueueInfo;
use crate::running::Completion;
use futures_timer::Delay;
use futures_util::future::{Either, FutureExt, select};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row};
use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::io::ErrorKind;
use std::pin::pin;
use std::time::{Duration, SystemTime};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use ulid::Ulid;

/// A call waits for a connection for at most this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection of the workers is closed after it has been idle for this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The time limit for checking that a connection responds. Both pools check a connection before each use. `Postgres::pool` also checks the
/// connection after each use.
const PING_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) struct Postgres {
    pool: PgPool,
    /// The workers have a separate pool, because handlers may use all connections of `pool`.
    worker_pool: PgPool,
    /// The connection for calls that the engine makes one at a time, such as `tick` and `fetch`. If these calls used the pool, the pool
    /// would open more connections than needed. When a call starts, the connection of the previous call is not back in the pool yet.
    engine_connection: Mutex<Option<PoolConnection<sqlx::Postgres>>>,
    /// The quoted name of the schema, followed by a dot.
    prefix: String,
}

impl Postgres {
    /// Connects to a database. If `is_existing` is false, also creates and migrates the tables.
    pub(crate) async fn connect(url: &str, schema: &str, is_existing: bool) -> StoreResult<Self> {
        let options: PgConnectOptions = url.parse().map_err(|error: sqlx::Error| Error::Address(error.to_string()))?;
        // This call removes the parameter `extra_float_digits`, because PgBouncer rejects it. The parameter affects only floating-point
        // numbers in text format.
        let options = options.extra_float_digits(None);
        // If the future of a `begin` is dropped, the driver does not record the open transaction (sqlx issue 4393). All later calls on that
        // connection would be part of this transaction and would be rolled back. Therefore `end_transaction` ends such a transaction.
        let pool =
            pool_options().before_acquire(|conn, _| ping(conn).boxed()).after_release(|conn, _| end_transaction(conn).boxed());
        // This pool calls `end_transaction` before each use instead of after it. A connection is therefore back in the pool before the next
        // statement of the engine.
        let worker_pool = pool_options().before_acquire(|conn, _| end_transaction(conn).boxed()).idle_timeout(IDLE_TIMEOUT);
        let worker_pool = worker_pool.after_connect(|conn, _| set_limits(conn).boxed()).connect_lazy_with(options.clone());
        let pool = match pool.connect_with(options.clone()).await {
            Err(sqlx::Error::PoolTimedOut) => return Err(connect_error(&options).await),
            // A file that the URL names does not exist: the socket, or a certificate for TLS.
            Err(sqlx::Error::Io(error)) if error.kind() == ErrorKind::NotFound => return Err(unavailable(&options, &error)),
            Err(error) => return Err(with_address(&options, error)),
            Ok(pool) => pool,
        };
        let mut conn = pool.acquire().await?;
        let encoding: String = sqlx::query_scalar("SHOW server_encoding").fetch_one(&mut *conn).await?;
        if encoding != "UTF8" {
            return Err(Error::Schema(format!("the encoding is {encoding}, but must be UTF8 to store every job")));
        }
        let prefix = format!("{}.", quote(schema));
        if is_existing {
            check_tables(&mut conn, &prefix, schema).await?;
        } else {
            migrate(&mut conn, &prefix, schema).await?;
        }
        Ok(Self { pool, worker_pool, engine_connection: Mutex::default(), prefix })
    }
}

impl Drop for Postgres {
    /// Closes the connection without its pool. A return to the pool needs a runtime, and the caller may not be in a runtime.
    fn drop(&mut self) {
        drop(self.engine_connection.get_mut().take().map(PoolConnection::leak));
    }
}

fn pool_options() -> PgPoolOptions {
    // The pool's own check is disabled, because the callback with `ping` replaces it.
    PgPoolOptions::new().acquire_timeout(CONNECT_TIMEOUT).test_before_acquire(false)
}

/// Checks that a connection responds. If this check fails, the pool opens another connection.
async fn ping(conn: &mut PgConnection) -> sqlx::Result<bool> {
    ping_timeout(conn.ping()).await.map(|()| true)
}

/// Ends a transaction that the driver has not recorded. The call has a time limit: otherwise, a connection that does not respond would stay
/// in the pool until the kernel closes it.
async fn end_transaction(conn: &mut PgConnection) -> sqlx::Result<bool> {
    ping_timeout(sqlx::raw_sql("BEGIN; ROLLBACK").execute(conn)).await.map(|_| true)
}

async fn ping_timeout<T>(call: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    timeout(PING_TIMEOUT, call).await.unwrap_or_else(|elapsed| Err(sqlx::Error::Io(elapsed.into())))
}

/// Configures a connection of the workers.
///
/// If a client does not respond during a transaction, the server keeps the locks of the transaction, usually for two hours.
/// `idle_in_transaction_session_timeout` shortens this time. `lock_timeout` ends a statement that waits for a lock. Without this setting,
/// the worker could not distinguish the wait from a connection that does not respond.
///
/// If the statistics of the server are old, the server may plan to sort or to scan a whole queue. The three `enable_` settings prevent such
/// plans. They also raise the estimated cost of plans, and the server compiles plans with a high cost. `jit = off` prevents this.
async fn set_limits(conn: &mut PgConnection) -> sqlx::Result<()> {
    let limits = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '10s';
        SET enable_sort = off; SET enable_bitmapscan = off; SET enable_seqscan = off; SET jit = off";
    sqlx::raw_sql(limits).execute(conn).await.map(drop)
}

/// Connects one time to find out why the pool could not connect. The pool itself retries until its time limit expires, and does not return
/// the cause.
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

/// The default schema of the tables.
pub(crate) const SCHEMA: &str = "background_tasks";

/// The migrations of the tables. Each migration contains the statements that create one version of the tables. `@` is replaced by the
/// prefix of the tables' names.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/postgres_1.sql")];
const CARRY_OVER: &str = include_str!("migrations/postgres_carry_over.sql");

async fn migrate(conn: &mut PgConnection, prefix: &str, schema: &str) -> StoreResult {
    // If all tables exist, this function must not try to create them. A user without the privilege `CREATE` cannot run `CREATE … IF NOT
    // EXISTS`, even if the tables exist.
    let versions = format!("{prefix}versions");
    let exist: (bool, bool) = sqlx::query_as("SELECT to_regclass($1) IS NOT NULL, to_regclass($2) IS NOT NULL")
        .bind(&versions)
        .bind(format!("{prefix}jobs"))
        .fetch_one(&mut *conn)
        .await?;
    let newest = format!("SELECT coalesce(max(version), 0) FROM {versions}");
    if exist.0 {
        let done = sqlx::query_scalar(AssertSqlSafe(newest.clone())).fetch_one(&mut *conn).await?;
        if missing_versions(&MIGRATIONS, done)?.is_empty() {
            return Ok(());
        }
    } else if exist.1 {
        return Err(Error::Schema(format!("table {schema}.jobs exists but was not created by this crate")));
    }
    let mut tx = conn.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock(hashtext('background_tasks'), hashtext($1))").bind(schema).execute(&mut *tx).await?;
    if sqlx::query_scalar("SELECT to_regnamespace($1) IS NULL").bind(quote(schema)).fetch_one(&mut *tx).await? {
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE SCHEMA {}", quote(schema)))).execute(&mut *tx).await?;
    }
    let table = format!(
        "CREATE TABLE IF NOT EXISTS {versions} (version bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    );
    sqlx::raw_sql(AssertSqlSafe(table)).execute(&mut *tx).await?;
    let done = sqlx::query_scalar(AssertSqlSafe(newest)).fetch_one(&mut *tx).await?;
    for (version, text) in missing_versions(&MIGRATIONS, done)? {
        sqlx::raw_sql(AssertSqlSafe(text.replace('@', prefix))).execute(&mut *tx).await?;
        sqlx::query(AssertSqlSafe(format!("INSERT INTO {versions} VALUES ($1)"))).bind(version).execute(&mut *tx).await?;
    }
    let has_old_jobs =
        "SELECT to_regclass('apalis.background_tasks_migrations') IS NOT NULL AND to_regclass('apalis.jobs') IS NOT NULL";
    if schema == SCHEMA && sqlx::query_scalar(has_old_jobs).fetch_one(&mut *tx).await? {
        sqlx::raw_sql(AssertSqlSafe(CARRY_OVER.replace('@', prefix))).execute(&mut *tx).await?;
    }
    Ok(tx.commit().await?)
}

/// Fails if the tables in the schema do not have the newest version that this crate knows.
async fn check_tables(conn: &mut PgConnection, prefix: &str, schema: &str) -> StoreResult {
    let versions = format!("{prefix}versions");
    let exists = "SELECT to_regclass($1) IS NOT NULL";
    let version = if sqlx::query_scalar(exists).bind(&versions).fetch_one(&mut *conn).await? {
        let newest = format!("SELECT coalesce(max(version), 0) FROM {versions}");
        Some(sqlx::query_scalar(AssertSqlSafe(newest)).fetch_one(conn).await?)
    } else {
        None
    };
    check_version(&MIGRATIONS, version).map_err(|error| match error {
        Error::Schema(text) => Error::Schema(format!("schema {schema}: {text}")),
        other => other,
    })
}

/// Quotes an identifier.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Inserts jobs with a single statement, which needs no explicit transaction. If the unique key is in use, inserts nothing.
const PUSH: &str = "INSERT INTO @jobs (id, queue, state, priority, run_at, version, unique_key, unique_until, limit_key, payload)
    SELECT id, $1, CASE WHEN due <= now() THEN 'available' ELSE 'scheduled' END, $2, due, $3, $4, now() + make_interval(secs => $5), $6, payload
    FROM (SELECT coalesce('epoch'::timestamptz + $7 * interval '1 microsecond', now() + make_interval(secs => $8)) AS due) AS due,
        unnest($9::text[], $10::text[]) AS jobs (id, payload)
    WHERE $4::text IS NULL OR NOT EXISTS (SELECT FROM @jobs WHERE queue = $1 AND unique_key = $4 AND unique_until > now())
    ON CONFLICT (queue, unique_key)
        WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'retrying', 'available', 'blocked', 'running') DO NOTHING";

/// Finds the job that uses a unique key.
const PUSHED: &str = "SELECT id FROM @jobs WHERE queue = $1 AND unique_key = $2
    AND (state IN ('scheduled', 'retrying', 'available', 'blocked', 'running') OR unique_until > now()) ORDER BY id DESC LIMIT 1";

pub(crate) async fn push(conn: &mut PgConnection, prefix: &str, spec: &JobSpec, payloads: &[Vec<u8>]) -> StoreResult<Pushed> {
    let ids = new_ids(payloads.len());
    let names: Vec<_> = ids.iter().map(Ulid::to_string).collect();
    let payloads: Vec<_> = payloads.iter().map(|payload| String::from_utf8_lossy(payload)).collect();
    let (at, after) = match spec.run_at {
        RunAt::Now => (None, Some(0.0)),
        RunAt::After(delay) => (None, Some(delay.as_secs_f64())),
        RunAt::At(time) => (Some(micros(Some(time))), None),
    };
    loop {
        let insert = sqlx::query(sql(PUSH, prefix)).bind(spec.queue).bind(i32::from(spec.priority)).bind(version(spec.version));
        let insert = insert.bind(&spec.unique_key).bind(spec.unique_for.map(|period| period.as_secs_f64())).bind(&spec.limit_key);
        let insert = insert.bind(at).bind(after).bind(&names).bind(&payloads);
        if insert.execute(&mut *conn).await?.rows_affected() > 0 {
            return Ok(Pushed { ids, is_new: true });
        }
        let existing = sqlx::query_scalar::<_, String>(sql(PUSHED, prefix)).bind(spec.queue).bind(&spec.unique_key);
        // If no job is found, the job that used the key has ended between the two statements, so the insert is retried.
        if let Some(id) = existing.fetch_optional(&mut *conn).await? {
            return Ok(Pushed { ids: vec![parse_id(&id)?], is_new: false });
        }
    }
}

/// Notifies the processes that serve a queue.
const NOTIFY: &str = "SELECT pg_notify($1, queue) FROM unnest($2::text[]) AS queues (queue)";

pub(crate) async fn notify(conn: &mut PgConnection, prefix: &str, queues: &[String]) -> StoreResult {
    sqlx::query(NOTIFY).bind(channel(prefix)).bind(queues).execute(conn).await?;
    Ok(())
}

/// Returns the name of the channel for notifications, which is the name of the schema.
fn channel(prefix: &str) -> String {
    prefix.trim_matches(['"', '.']).replace("\"\"", "\"")
}

fn sql(text: &str, prefix: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(text.replace('@', prefix))
}

fn version(version: u32) -> i32 {
    i32::try_from(version).unwrap_or(i32::MAX)
}

/// Replaces NUL characters, because text in Postgres cannot contain them.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// Fetches jobs. The lateral join makes the server use the index of available jobs, even if the statistics of the table are missing or old.
/// Without the join, there are two cases in which the server sorts the whole queue at each fetch. In the first case, the limit is a
/// parameter. In the second case, the statistics were collected while the queue was empty.
///
/// The commit is synchronous. After an asynchronous commit, a crash of the server could undo the fetch. Another worker could then start the
/// job while this worker still runs it.
const FETCH: &str = "WITH fetched AS (
    UPDATE @jobs AS jobs SET state = 'running', run = run + 1, worker = requests.worker
    FROM unnest($1::text[], $2::text[]) AS requests (queue, worker)
    WHERE requests.queue = jobs.queue AND id = ANY (ARRAY(
        SELECT next.id FROM unnest($1::text[], $2::text[], $3::integer[]) AS requests (queue, worker, n)
        CROSS JOIN LATERAL (SELECT id FROM @jobs WHERE queue = requests.queue AND state = 'available'
            ORDER BY priority DESC, run_at, id LIMIT requests.n FOR UPDATE SKIP LOCKED) AS next
        WHERE EXISTS (SELECT FROM @workers WHERE id = requests.worker AND expires_at > now())
        AND NOT EXISTS (SELECT FROM @queues WHERE name = requests.queue
            AND (paused OR max_running IS NOT NULL OR max_running_per_key IS NOT NULL OR rate_jobs IS NOT NULL))))
    RETURNING id, jobs.queue, run, attempts, crashes, version, payload, checkpoint, priority, run_at)
    SELECT id, queue, run, attempts, crashes, version, payload, checkpoint, priority, (extract(epoch FROM run_at) * 1000000)::bigint AS due
    FROM fetched";

/// Reads the limits of a queue, and locks their row until the transaction ends. Workers of the queue therefore fetch one after another, and
/// the next statement counts all jobs that other workers have fetched.
const LOCK_LIMITS: &str = "SELECT paused, max_running, max_running_per_key, rate_jobs, rate_seconds,
    least(rate_jobs, rate_left + greatest(0, extract(epoch FROM clock_timestamp() - rate_at)::float8) * rate_jobs / rate_seconds) AS allowed
    FROM @queues WHERE name = $1 FOR UPDATE";

const RUNNING: &str = "SELECT count(*) FROM @jobs WHERE worker IS NOT NULL AND state = 'running' AND queue = $1";

/// Fetches jobs of a queue with limits. If the limit of its key allows no further job, a job becomes blocked instead.
const FETCH_LIMITED: &str = "WITH next AS (
    SELECT id, limit_key, priority, run_at FROM @jobs WHERE queue = $1 AND state = 'available'
    AND EXISTS (SELECT FROM @workers WHERE id = $2 AND expires_at > now())
    ORDER BY priority DESC, run_at, id LIMIT $3 FOR UPDATE SKIP LOCKED),
    allowed AS (SELECT id, $4::bigint IS NULL OR limit_key IS NULL
        OR row_number() OVER (PARTITION BY limit_key ORDER BY priority DESC, run_at, id) + (SELECT count(*) FROM @jobs AS running
            WHERE worker IS NOT NULL AND state = 'running' AND queue = $1 AND running.limit_key = next.limit_key) <= $4 AS starts FROM next),
    fetched AS (UPDATE @jobs AS jobs SET state = CASE WHEN starts THEN 'running' ELSE 'blocked' END,
        run = run + starts::integer, worker = CASE WHEN starts THEN $2 END FROM allowed WHERE jobs.id = allowed.id
        RETURNING jobs.id, jobs.queue, run, attempts, crashes, version, payload, checkpoint, priority, run_at, starts)
    SELECT id, queue, run, attempts, crashes, version, payload, checkpoint, priority, (extract(epoch FROM run_at) * 1000000)::bigint AS due, starts
    FROM fetched";

const SPEND_RATE: &str = "UPDATE @queues SET rate_left = $2, rate_at = clock_timestamp() WHERE name = $1";

/// Makes due jobs available. For each queue, returns whether workers can fetch jobs, and when the next job is due. The outer query does not
/// see the update: it reads the states that the jobs had before. The query therefore also reads `due`, which contains the updated jobs.
const TICK: &str = "WITH due AS (
    UPDATE @jobs SET state = 'available' WHERE id = ANY (ARRAY(
        SELECT next.id FROM unnest($1::text[]) AS queues (name)
        CROSS JOIN LATERAL (SELECT id FROM @jobs WHERE queue = queues.name AND state IN ('scheduled', 'retrying') AND run_at <= now()
            LIMIT 1000 FOR UPDATE SKIP LOCKED) AS next)) RETURNING queue)
    SELECT queues.name, coalesce(paused, false) AS paused,
        (max_running IS NOT NULL OR max_running_per_key IS NOT NULL OR rate_jobs IS NOT NULL) AS limited,
        EXISTS (SELECT FROM due WHERE queue = queues.name) OR available.id IS NOT NULL AS ready,
        CASE WHEN (SELECT count(*) FROM due WHERE queue = queues.name) = 1000 THEN 0 ELSE
            (SELECT extract(epoch FROM min(next) - now())::float8 FROM
                (SELECT min(run_at) AS next FROM @jobs WHERE queue = queues.name AND state = 'scheduled' AND run_at > now()
                UNION ALL SELECT min(run_at) FROM @jobs WHERE queue = queues.name AND state = 'retrying' AND run_at > now()) AS times)
        END AS next_due
    FROM unnest($1::text[]) AS queues (name) LEFT JOIN @queues AS settings ON settings.name = queues.name
    LEFT JOIN LATERAL (SELECT id FROM @jobs WHERE queue = queues.name AND state = 'available'
        ORDER BY priority DESC, run_at, id LIMIT 1) AS available ON true";

/// Commits outcomes. An outcome has no effect in three cases: another outcome of the same run was committed before, the worker has lost
/// the job, or the job is cancelled.
const COMMIT: &str = "UPDATE @jobs AS jobs SET state = outcome.state, worker = NULL, attempts = attempts + outcome.charge,
        run_at = coalesce(now() + make_interval(secs => outcome.delay), run_at),
        ended_at = CASE WHEN outcome.state IN ('done', 'dead') THEN now() END,
        checkpoint = CASE WHEN outcome.state = 'done' THEN NULL ELSE checkpoint END, result = outcome.result,
        error = CASE WHEN outcome.state = 'done' OR outcome.error IS NOT NULL THEN outcome.error ELSE jobs.error END
    FROM unnest($1::text[], $2::integer[], $3::text[], $4::integer[], $5::float8[], $6::text[], $7::text[])
        AS outcome (id, run, state, charge, delay, result, error)
    WHERE jobs.id = outcome.id AND jobs.run = outcome.run AND jobs.state = 'running' RETURNING jobs.id, jobs.queue, jobs.limit_key";

/// Removes the worker from cancelled jobs, whose handlers have now stopped. `COMMIT` changes only running jobs, and therefore skips
/// cancelled jobs.
const RELEASE_CANCELLED: &str = "UPDATE @jobs SET worker = NULL WHERE id = ANY ($1) AND state = 'cancelled' AND worker IS NOT NULL RETURNING id, queue, limit_key";

/// Finds jobs that have a limit key, and that had already ended before this call. Either their handlers have called `complete_in`, or an
/// earlier call has committed their outcomes. The end of these jobs may allow blocked jobs with the same key to start.
const ENDED_OTHERWISE: &str =
    "SELECT id, queue, limit_key FROM @jobs WHERE id = ANY ($1) AND worker IS NULL AND limit_key IS NOT NULL";

/// Locks the queues whose keys are limited, until the transaction ends. A fetch that is not committed yet may have blocked jobs that the
/// next statement must find.
const LOCK_QUEUES: &str = "SELECT FROM @queues WHERE name = ANY ($1) AND max_running_per_key IS NOT NULL ORDER BY name FOR UPDATE";

/// For each of these limit keys, makes as many blocked jobs available as the limit allows. The statement does not count the jobs that are
/// already available. If it makes too many jobs available, the next fetch blocks them again.
const UNBLOCK: &str = "UPDATE @jobs SET state = 'available' WHERE id = ANY (ARRAY(
    SELECT next.id FROM unnest($1::text[], $2::text[]) AS keys (queue, key)
    LEFT JOIN @queues AS limits ON limits.name = keys.queue
    LEFT JOIN (SELECT queue, limit_key, count(*) AS running FROM @jobs WHERE worker IS NOT NULL AND state = 'running'
        AND limit_key = ANY ($2) GROUP BY queue, limit_key) AS held ON held.queue = keys.queue AND held.limit_key = keys.key
    CROSS JOIN LATERAL (SELECT id FROM @jobs WHERE queue = keys.queue AND limit_key = keys.key AND state = 'blocked'
        ORDER BY priority DESC, run_at, id
        LIMIT greatest(0, least(1000, max_running_per_key - coalesce(running, 0))) FOR UPDATE SKIP LOCKED) AS next)) RETURNING queue";

const COLUMNS: &str =
    "id, queue, priority, limit_key, state, attempts, crashes, version, (extract(epoch FROM run_at) * 1000000)::bigint AS run_at,
    (extract(epoch FROM ended_at) * 1000000)::bigint AS ended_at, error, result, payload";

/// Reads all queues without reading all jobs. In each index, the statement skips from one queue to the next. In the index of available
/// jobs, the statement also skips from one priority to the next. The first job of each priority is the oldest job of this priority. From
/// these first jobs, the statement finds the oldest due job of the queue.
const QUEUES: &str = "WITH RECURSIVE
    available AS (
        (SELECT queue, priority, run_at FROM @jobs WHERE state = 'available' ORDER BY queue, priority DESC, run_at LIMIT 1)
        UNION ALL SELECT next.queue, next.priority, next.run_at FROM available CROSS JOIN LATERAL (
            (SELECT 1 AS step, queue, priority, run_at FROM @jobs WHERE state = 'available' AND queue = available.queue
                AND priority < available.priority ORDER BY priority DESC, run_at LIMIT 1)
            UNION ALL (SELECT 2 AS step, queue, priority, run_at FROM @jobs WHERE state = 'available' AND queue > available.queue
                ORDER BY queue, priority DESC, run_at LIMIT 1)
            ORDER BY step LIMIT 1) AS next),
    due AS (
        (SELECT queue, state, run_at FROM @jobs WHERE state IN ('scheduled', 'retrying') ORDER BY queue, state, run_at LIMIT 1)
        UNION ALL SELECT next.queue, next.state, next.run_at FROM due CROSS JOIN LATERAL (
            (SELECT 1 AS step, queue, state, run_at FROM @jobs WHERE state IN ('scheduled', 'retrying') AND queue = due.queue
                AND state > due.state ORDER BY state, run_at LIMIT 1)
            UNION ALL (SELECT 2 AS step, queue, state, run_at FROM @jobs WHERE state IN ('scheduled', 'retrying') AND queue > due.queue
                ORDER BY queue, state, run_at LIMIT 1)
            ORDER BY step LIMIT 1) AS next),
    blocked AS (
        (SELECT queue FROM @jobs WHERE state = 'blocked' ORDER BY queue LIMIT 1)
        UNION ALL SELECT next.queue FROM blocked CROSS JOIN LATERAL
            (SELECT queue FROM @jobs WHERE state = 'blocked' AND queue > blocked.queue ORDER BY queue LIMIT 1) AS next),
    ended AS (
        (SELECT queue FROM @jobs WHERE state IN ('done', 'dead', 'cancelled') ORDER BY queue LIMIT 1)
        UNION ALL SELECT next.queue FROM ended CROSS JOIN LATERAL (SELECT queue FROM @jobs
            WHERE state IN ('done', 'dead', 'cancelled') AND queue > ended.queue ORDER BY queue LIMIT 1) AS next),
    held AS (SELECT queue, count(*) FILTER (WHERE state = 'running') AS running FROM @jobs WHERE worker IS NOT NULL GROUP BY queue),
    live AS (SELECT queue, count(*) AS workers FROM @workers WHERE expires_at > now() GROUP BY queue),
    names (name) AS (SELECT queue FROM available UNION SELECT queue FROM due UNION SELECT queue FROM blocked UNION SELECT queue FROM ended
        UNION SELECT queue FROM held UNION SELECT queue FROM live UNION SELECT name FROM @queues)
    SELECT names.name, coalesce(paused, false) AS paused, max_running::bigint, max_running_per_key::bigint, rate_jobs, rate_seconds,
        (SELECT extract(epoch FROM now() - min(run_at))::float8
            FROM (SELECT queue, run_at FROM available UNION ALL SELECT queue, run_at FROM due) AS heads
            WHERE heads.queue = names.name AND run_at <= now()) AS oldest,
        coalesce((SELECT running FROM held WHERE held.queue = names.name), 0) AS running,
        coalesce((SELECT workers FROM live WHERE live.queue = names.name), 0) AS workers
        %counts
    FROM names LEFT JOIN @queues AS settings ON settings.name = names.name";

/// Recovers the jobs of dead workers. A recovered job waits for 2 seconds. The delay doubles with each further crash, up to 10 minutes. A
/// random part of up to half of the delay is then added or subtracted.
const RECOVER: &str = "WITH dead AS (DELETE FROM @workers WHERE expires_at < now() RETURNING id),
    lost AS (UPDATE @jobs SET state = CASE state WHEN 'running' THEN 'retrying' ELSE state END, worker = NULL, crashes = crashes + 1,
        error = 'the worker died', run_at = now() + least(600, power(2, crashes + 1)) * (0.5 + random()) * interval '1 second'
        WHERE worker IN (SELECT id FROM dead) RETURNING id)
    SELECT count(*) FROM lost";

/// If the worker of a job is not registered, makes the job available again. The job was fetched while its worker was deregistered, so no
/// worker has started the job.
const RECOVER_UNSTARTED: &str =
    "UPDATE @jobs AS jobs SET state = CASE state WHEN 'running' THEN 'available' ELSE state END, worker = NULL
    WHERE worker IS NOT NULL AND NOT EXISTS (SELECT FROM @workers WHERE workers.id = jobs.worker)";

/// Sorts the rows of a fetch, because the server returns them in any order. `set_limits` has disabled sorts: in the statement, a sort
/// would have a very large estimated cost.
fn in_order(mut rows: Vec<PgRow>) -> Vec<PgRow> {
    let key = |row: &PgRow| -> sqlx::Result<(i64, i64, String)> {
        Ok((-i64::from(row.try_get::<i32, _>("priority")?), row.try_get("due")?, row.try_get("id")?))
    };
    rows.sort_by_cached_key(|row| key(row).unwrap_or_default());
    rows
}

fn fetched(row: &PgRow) -> StoreResult<FetchedJob> {
    Ok(FetchedJob {
        id: parse_id(row.try_get("id")?)?,
        queue: row.try_get("queue")?,
        run: row.try_get("run")?,
        attempts: count(row.try_get::<i32, _>("attempts")?.into()),
        crashes: count(row.try_get::<i32, _>("crashes")?.into()),
        version: count(row.try_get::<i32, _>("version")?.into()),
        payload: row.try_get::<String, _>("payload")?.into_bytes(),
        checkpoint: row.try_get("checkpoint")?,
    })
}

fn info(row: &PgRow) -> StoreResult<JobInfo> {
    Ok(JobInfo::new(JobRow {
        id: parse_id(row.try_get("id")?)?,
        queue: row.try_get("queue")?,
        priority: row.try_get::<i32, _>("priority")?.into(),
        limit_key: row.try_get("limit_key")?,
        state: row.try_get("state")?,
        attempts: count(row.try_get::<i32, _>("attempts")?.into()),
        crashes: count(row.try_get::<i32, _>("crashes")?.into()),
        version: count(row.try_get::<i32, _>("version")?.into()),
        due: time(row.try_get("run_at")?),
        ended: row.try_get::<Option<i64>, _>("ended_at")?.map(time),
        error: row.try_get("error")?,
        result: row.try_get("result")?,
        payload: row.try_get::<String, _>("payload")?.into_bytes(),
    }))
}

fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

/// A connection that a call of the engine uses.
struct EngineConnection<'a> {
    slot: Option<MutexGuard<'a, Option<PoolConnection<sqlx::Postgres>>>>,
    connection: PoolConnection<sqlx::Postgres>,
}

impl Postgres {
    fn sql(&self, text: &str) -> AssertSqlSafe<String> {
        sql(text, &self.prefix)
    }

    /// Returns the engine's connection. If another call uses this connection, waits until that call has ended.
    async fn engine_connection(&self) -> StoreResult<EngineConnection<'_>> {
        let mut slot = self.engine_connection.lock().await;
        let connection = match slot.take() {
            Some(connection) => connection,
            None => self.worker_pool.acquire().await?,
        };
        Ok(EngineConnection { slot: Some(slot), connection })
    }

    /// Returns the engine's connection if no call uses it. Otherwise, returns another connection of the pool. The engine never waits for
    /// this caller, because it can also take another connection.
    async fn idle_connection(&self) -> StoreResult<EngineConnection<'_>> {
        let mut kept = self.engine_connection.try_lock().ok().and_then(|mut slot| slot.take());
        // If the server was restarted, the kept connection is closed. Without this check, a call of the program would then fail.
        if let Some(connection) = &mut kept
            && end_transaction(connection).await.is_err()
        {
            kept = None;
        }
        let connection = match kept {
            Some(connection) => connection,
            None => self.worker_pool.acquire().await?,
        };
        Ok(EngineConnection { slot: None, connection })
    }

    /// Keeps the connection of a successful call for the next call. A failed or dropped call does not reach this function, and its
    /// connection goes back into the pool.
    fn keep<'a>(&'a self, used: EngineConnection<'a>) {
        if let Some(mut slot) = used.slot.or_else(|| self.engine_connection.try_lock().ok()) {
            slot.get_or_insert(used.connection);
        }
    }

    async fn unblock_keys(&self, queues: &[String], keys: &[String]) -> StoreResult {
        if !keys.is_empty() {
            let mut tx = self.worker_pool.begin().await?;
            sqlx::query(self.sql(LOCK_QUEUES)).bind(queues).execute(&mut *tx).await?;
            let unblock = sqlx::query_scalar(self.sql(UNBLOCK)).bind(queues).bind(keys);
            let queues: HashSet<String> = unblock.fetch_all(&mut *tx).await?.into_iter().collect();
            tx.commit().await?;
            if !queues.is_empty() {
                let queues: Vec<_> = queues.into_iter().collect();
                notify(&mut *self.worker_pool.acquire().await?, &self.prefix, &queues).await?;
            }
        }
        Ok(())
    }

    /// Makes jobs of these limit keys available after one of their jobs was deleted or cancelled. This change is committed, so an error is
    /// ignored. Maintenance repeats this step.
    async fn unblock_next(&self, queue: &str, keys: &[Option<String>]) {
        let keys: Vec<_> = keys.iter().flatten().cloned().collect();
        let _ = self.unblock_keys(&vec![queue.to_owned(); keys.len()], &keys).await;
    }
}

impl Store for Postgres {
    fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Processes send notifications. Polls are therefore needed only for jobs whose notification was lost, and this interval can be long.
    fn poll_interval(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn push(&self, spec: JobSpec, payloads: Vec<Vec<u8>>) -> StoreFuture<'_, Pushed> {
        async move { push(&mut *self.pool.acquire().await?, &self.prefix, &spec, &payloads).await }.boxed()
    }

    fn notify(&self, queues: Vec<String>) -> StoreFuture<'_> {
        async move { notify(&mut *self.pool.acquire().await?, &self.prefix, &queues).await }.boxed()
    }

    fn heart(&self) -> StoreFuture<'_, Box<dyn Heart>> {
        async move {
            // The driver creates a listener only from a pool.
            let pool = pool_options().max_connections(1).idle_timeout(None).max_lifetime(None);
            let pool = pool.after_connect(|conn, _| set_limits(conn).boxed());
            let pool = pool.connect_lazy_with((*self.pool.connect_options()).clone());
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(&channel(&self.prefix)).await?;
            Ok(Box::new(PostgresHeart { listener, prefix: self.prefix.clone() }) as Box<dyn Heart>)
        }
        .boxed()
    }

    fn register<'a>(&'a self, worker: &'a WorkerLease) -> StoreFuture<'a> {
        async move {
            let register = "INSERT INTO @workers VALUES ($1, $2, now() + make_interval(secs => $3))";
            let register = sqlx::query(self.sql(register)).bind(&worker.id).bind(worker.queue).bind(worker.lease.as_secs_f64());
            let mut conn = self.engine_connection().await?;
            register.execute(&mut *conn.connection).await?;
            self.keep(conn);
            Ok(())
        }
        .boxed()
    }

    fn deregister<'a>(&'a self, workers: &'a [String]) -> StoreFuture<'a> {
        async move {
            let deregister = "WITH gone AS (DELETE FROM @workers WHERE id = ANY ($1))
                UPDATE @jobs SET state = CASE state WHEN 'running' THEN 'available' ELSE state END, worker = NULL WHERE worker = ANY ($1)";
            let mut conn = self.idle_connection().await?;
            sqlx::query(self.sql(deregister)).bind(workers).execute(&mut *conn.connection).await?;
            self.keep(conn);
            Ok(())
        }
        .boxed()
    }

    fn tick<'a>(&'a self, queues: &'a [&'static str]) -> StoreFuture<'a, Vec<QueueTick>> {
        async move {
            let mut conn = self.engine_connection().await?;
            let rows = sqlx::query(self.sql(TICK)).bind(queues).fetch_all(&mut *conn.connection).await?;
            self.keep(conn);
            let tick = |row: &PgRow| -> StoreResult<QueueTick> {
                let next_due: Option<f64> = row.try_get("next_due")?;
                Ok(QueueTick {
                    queue: row.try_get("name")?,
                    is_ready: row.try_get("ready")?,
                    next_due: next_due.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
                    is_paused: row.try_get("paused")?,
                    is_limited: row.try_get::<Option<bool>, _>("limited")?.unwrap_or(false),
                })
            };
            rows.iter().map(tick).collect()
        }
        .boxed()
    }

    fn fetch<'a>(&'a self, requests: &'a [FetchRequest]) -> StoreFuture<'a, Vec<FetchedJob>> {
        async move {
            let queues: Vec<_> = requests.iter().map(|request| request.queue).collect();
            let workers: Vec<_> = requests.iter().map(|request| &*request.worker).collect();
            let limits: Vec<_> = requests.iter().map(|request| i32::try_from(request.limit).unwrap_or(i32::MAX)).collect();
            let mut conn = self.engine_connection().await?;
            let rows =
                sqlx::query(self.sql(FETCH)).bind(queues).bind(workers).bind(limits).fetch_all(&mut *conn.connection).await?;
            self.keep(conn);
            in_order(rows).iter().map(fetched).collect()
        }
        .boxed()
    }

    fn fetch_limited<'a>(&'a self, request: &'a FetchRequest) -> StoreFuture<'a, LimitedFetch> {
        async move {
            let mut tx = self.worker_pool.begin().await?;
            let limits = sqlx::query(self.sql(LOCK_LIMITS)).bind(request.queue).fetch_optional(&mut *tx).await?;
            let Some(limits) = limits else { return Ok(LimitedFetch { has_more: true, ..LimitedFetch::default() }) };
            let running = sqlx::query_scalar(self.sql(RUNNING)).bind(request.queue).fetch_one(&mut *tx).await?;
            let limits = LimitsRow {
                is_paused: limits.try_get("paused")?,
                max_running: limits.try_get::<Option<i32>, _>("max_running")?.map(Into::into),
                max_running_per_key: limits.try_get::<Option<i32>, _>("max_running_per_key")?.map(Into::into),
                rate_jobs: limits.try_get("rate_jobs")?,
                rate_seconds: limits.try_get("rate_seconds")?,
                allowed: limits.try_get("allowed")?,
                running,
            };
            let (room, retry_after) = limits.room(request.limit);
            let mut fetch = LimitedFetch { retry_after, ..LimitedFetch::default() };
            if room > 0 {
                let next = sqlx::query(self.sql(FETCH_LIMITED)).bind(request.queue).bind(&request.worker);
                let rows = next.bind(room).bind(limits.max_running_per_key).fetch_all(&mut *tx).await?;
                fetch.has_more = i64::try_from(rows.len()).is_ok_and(|rows| rows == room);
                for row in in_order(rows).iter().filter(|row| row.try_get("starts").unwrap_or(false)) {
                    fetch.jobs.push(fetched(row)?);
                }
                if let Some(allowed) = limits.allowed {
                    #[expect(clippy::cast_precision_loss, reason = "few jobs")]
                    let left = allowed - fetch.jobs.len() as f64;
                    sqlx::query(self.sql(SPEND_RATE)).bind(request.queue).bind(left).execute(&mut *tx).await?;
                }
            }
            tx.commit().await?;
            Ok(fetch)
        }
        .boxed()
    }

    fn commit<'a>(&'a self, outcomes: &'a [Outcome]) -> StoreFuture<'a, Vec<Committed>> {
        async move {
            let ids: Vec<_> = outcomes.iter().map(|outcome| outcome.id.to_string()).collect();
            let commit = sqlx::query_as::<_, (String, String, Option<String>)>(self.sql(COMMIT)).bind(&ids);
            let commit = commit.bind(outcomes.iter().map(|outcome| outcome.run).collect::<Vec<_>>());
            let commit = commit.bind(outcomes.iter().map(Outcome::state).collect::<Vec<_>>());
            let commit = commit.bind(outcomes.iter().map(|outcome| i32::from(outcome.is_charged)).collect::<Vec<_>>());
            let commit = commit.bind(outcomes.iter().map(|outcome| outcome.delay().map(|it| it.as_secs_f64())).collect::<Vec<_>>());
            let commit = commit.bind(outcomes.iter().map(|outcome| outcome.result.as_deref()).collect::<Vec<_>>());
            let commit = commit.bind(outcomes.iter().map(|outcome| outcome.error.as_deref().map(without_nul)).collect::<Vec<_>>());
            let mut ended = commit.fetch_all(&self.worker_pool).await?;
            let applied: HashSet<String> = ended.iter().map(|(id, ..)| id.clone()).collect();
            let mut cancelled = HashSet::new();
            if applied.len() < ids.len() {
                let others: Vec<_> = ids.iter().filter(|id| !applied.contains(*id)).collect();
                let rows = sqlx::query_as::<_, (String, String, Option<String>)>;
                let released = rows(self.sql(RELEASE_CANCELLED)).bind(&others).fetch_all(&self.worker_pool).await?;
                cancelled.extend(released.iter().map(|(id, ..)| id.clone()));
                ended.extend(released);
                ended.extend(rows(self.sql(ENDED_OTHERWISE)).bind(&others).fetch_all(&self.worker_pool).await?);
            }
            let keys = ended.into_iter().filter_map(|(_, queue, key)| Some((queue, key?)));
            let (queues, keys): (Vec<_>, Vec<_>) = keys.collect::<HashSet<_>>().into_iter().unzip();
            self.unblock_keys(&queues, &keys).await?;
            let outcome = |id: &String| match () {
                () if applied.contains(id) => Committed::Yes,
                () if cancelled.contains(id) => Committed::Cancelled,
                () => Committed::Lost,
            };
            Ok(ids.iter().map(outcome).collect())
        }
        .boxed()
    }

    fn held<'a>(&'a self, workers: &'a [String]) -> StoreFuture<'a, Vec<HeldJob>> {
        async move {
            let held = "SELECT id, run, state = 'cancelled' FROM @jobs WHERE worker = ANY ($1)";
            let mut conn = self.engine_connection().await?;
            let held = sqlx::query_as(self.sql(held)).bind(workers).fetch_all(&mut *conn.connection).await?;
            self.keep(conn);
            held.into_iter().map(held_job).collect()
        }
        .boxed()
    }

    fn give_back<'a>(&'a self, jobs: &'a [HeldJob]) -> StoreFuture<'a> {
        async move {
            let give_back = "UPDATE @jobs AS jobs SET state = 'available', worker = NULL FROM unnest($1::text[], $2::integer[]) AS held (id, run)
                WHERE jobs.id = held.id AND jobs.run = held.run AND jobs.state = 'running'";
            let give_back = sqlx::query(self.sql(give_back)).bind(jobs.iter().map(|job| job.id.to_string()).collect::<Vec<_>>());
            let give_back = give_back.bind(jobs.iter().map(|job| job.run).collect::<Vec<_>>());
            let mut conn = self.engine_connection().await?;
            give_back.execute(&mut *conn.connection).await?;
            self.keep(conn);
            Ok(())
        }
        .boxed()
    }

    fn prune<'a>(&'a self, queue: &'a str, retention: Duration, dead_retention: Duration) -> StoreFuture<'a, u64> {
        async move {
            let prune =
                "DELETE FROM @jobs WHERE id = ANY (ARRAY(SELECT old.id FROM unnest($2::text[], $3::float8[]) AS states (state, age)
                CROSS JOIN LATERAL (SELECT id FROM @jobs WHERE queue = $1 AND jobs.state = states.state
                    AND jobs.state IN ('done', 'dead', 'cancelled') AND ended_at <= now() - make_interval(secs => states.age)
                    AND (unique_until IS NULL OR unique_until <= now()) AND worker IS NULL ORDER BY ended_at LIMIT 1000) AS old))";
            let prune = sqlx::query(self.sql(prune)).bind(queue).bind(["done", "cancelled", "dead"]);
            let prune = prune.bind([retention, retention, dead_retention].map(|age| age.as_secs_f64()));
            let mut conn = self.idle_connection().await?;
            let deleted = prune.execute(&mut *conn.connection).await?.rows_affected();
            self.keep(conn);
            Ok(deleted)
        }
        .boxed()
    }

    fn unblock<'a>(&'a self, queue: &'a str) -> StoreFuture<'a> {
        async move {
            let keys = "SELECT DISTINCT limit_key FROM @jobs WHERE queue = $1 AND state = 'blocked' LIMIT 1000";
            let mut conn = self.idle_connection().await?;
            let keys: Vec<String> = sqlx::query_scalar(self.sql(keys)).bind(queue).fetch_all(&mut *conn.connection).await?;
            self.keep(conn);
            self.unblock_keys(&vec![queue.to_owned(); keys.len()], &keys).await
        }
        .boxed()
    }

    #[cfg(feature = "cron")]
    fn last_tick<'a>(&'a self, queue: &'a str, schedule: &'a str, tick: Option<i64>) -> StoreFuture<'a, Option<i64>> {
        async move {
            let last = "SELECT last_tick FROM @schedules WHERE queue = $1 AND key = $2";
            let last = sqlx::query_scalar(self.sql(last)).bind(queue).bind(schedule).fetch_optional(&self.pool).await?;
            if let Some(tick) = tick {
                let store = "INSERT INTO @schedules AS schedules VALUES ($1, $2, $3) ON CONFLICT (queue, key)
                    DO UPDATE SET last_tick = excluded.last_tick WHERE schedules.last_tick < excluded.last_tick";
                sqlx::query(self.sql(store)).bind(queue).bind(schedule).bind(tick).execute(&self.pool).await?;
            }
            Ok(last)
        }
        .boxed()
    }

    fn save_checkpoint<'a>(&'a self, id: Ulid, run: i32, checkpoint: &'a str) -> StoreFuture<'a, bool> {
        async move {
            let save = "UPDATE @jobs SET checkpoint = $3 WHERE id = $1 AND run = $2 AND state = 'running'";
            let save = sqlx::query(self.sql(save)).bind(id.to_string()).bind(run).bind(checkpoint);
            Ok(save.execute(&self.pool).await?.rows_affected() == 1)
        }
        .boxed()
    }

    fn info<'a>(&'a self, queue: Option<&'a str>, id: Ulid) -> StoreFuture<'a, Option<JobInfo>> {
        async move {
            let query =
                sqlx::query(self.sql(&format!("SELECT {COLUMNS} FROM @jobs WHERE id = $1 AND ($2::text IS NULL OR queue = $2)")));
            query.bind(id.to_string()).bind(queue).fetch_optional(&self.pool).await?.map(|row| info(&row)).transpose()
        }
        .boxed()
    }

    fn statuses<'a>(&'a self, ids: &'a [Ulid]) -> StoreFuture<'a, Vec<(Ulid, JobStatus)>> {
        async move {
            let ids: Vec<_> = ids.iter().map(Ulid::to_string).collect();
            let query = sqlx::query_as::<_, (String, String)>(self.sql("SELECT id, state FROM @jobs WHERE id = ANY ($1)"));
            let rows = query.bind(ids).fetch_all(&self.pool).await?;
            rows.iter().map(|(id, state)| Ok((parse_id(id)?, JobStatus::of(state)))).collect()
        }
        .boxed()
    }

    fn jobs<'a>(
        &'a self,
        queue: &'a str,
        state: &'static str,
        order: Order,
        after: Option<&'a JobInfo>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<JobInfo>> {
        async move {
            let (columns, next) = order.sql();
            let time = "('epoch'::timestamptz + $3::bigint * interval '1 microsecond')";
            let next =
                next.replace("jobs.@id", "jobs.id").replace("@1", "$2").replace("@2", time).replace("@3", "$4").replace("@4", "$5");
            let query = format!(
                "SELECT {COLUMNS} FROM @jobs AS jobs WHERE jobs.queue = $1 AND {} AND {} ORDER BY {} LIMIT $6",
                state_condition(state),
                if after.is_some() { &next } else { "true" },
                columns.replace("jobs.@id", "jobs.id"),
            );
            let query = sqlx::query(self.sql(&query)).bind(queue).bind(after.map_or(0, |info| info.position.priority));
            let query = query.bind(micros(after.map(|info| order.time(info))));
            let query =
                query.bind(after.map(|info| info.id().to_string())).bind(after.and_then(|info| info.position.limit_key.clone()));
            query.bind(i64::try_from(limit).unwrap_or(i64::MAX)).fetch_all(&self.pool).await?.iter().map(info).collect()
        }
        .boxed()
    }

    fn retry<'a>(&'a self, queue: &'a str, id: Option<Ulid>) -> StoreFuture<'a, (u64, bool)> {
        async move {
            let which = if id.is_some() { "id = $2" } else { "$2::text IS NULL" };
            // A dead job stays dead if another job uses its key now. If several dead jobs have the same key, one of them is retried.
            let retry = format!(
                "WITH dead AS (SELECT id, unique_key, ended_at FROM @jobs AS dead WHERE queue = $1 AND state = 'dead' AND {which}
                    AND (unique_key IS NULL OR NOT EXISTS (SELECT FROM @jobs AS other WHERE other.queue = $1
                        AND other.unique_key = dead.unique_key
                        AND other.state IN ('scheduled', 'retrying', 'available', 'blocked', 'running')))
                    ORDER BY ended_at LIMIT {MAX_ROWS} FOR UPDATE SKIP LOCKED),
                retried AS (UPDATE @jobs SET state = 'available', attempts = 0, crashes = 0, run_at = now(), ended_at = NULL
                    WHERE id = ANY (ARRAY(SELECT id FROM
                        (SELECT id, unique_key, row_number() OVER (PARTITION BY unique_key ORDER BY ended_at, id) AS nth FROM dead) AS dead
                        WHERE nth = 1 OR unique_key IS NULL)) RETURNING id)
                SELECT (SELECT count(*) FROM retried), (SELECT count(*) FROM dead)"
            );
            loop {
                let retry = sqlx::query_as::<_, (i64, i64)>(self.sql(&retry)).bind(queue).bind(id.map(|id| id.to_string()));
                match retry.fetch_one(&self.pool).await {
                    // Another transaction has enqueued a job with the same key, and has committed during the statement.
                    Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {}
                    retried => {
                        let (retried, dead) = retried?;
                        return Ok((u64::try_from(retried).unwrap_or(0), usize::try_from(dead) == Ok(MAX_ROWS)));
                    }
                }
            }
        }
        .boxed()
    }

    fn discard<'a>(&'a self, queue: &'a str, id: Option<Ulid>) -> StoreFuture<'a, u64> {
        async move {
            let discard = if id.is_some() {
                "DELETE FROM @jobs WHERE queue = $1 AND id = $2 AND worker IS NULL AND state NOT IN ('running', 'done') RETURNING limit_key"
                    .to_owned()
            } else {
                format!(
                    "DELETE FROM @jobs WHERE id = ANY (ARRAY(SELECT id FROM @jobs WHERE queue = $1 AND $2::text IS NULL AND state = 'dead'
                    ORDER BY ended_at LIMIT {MAX_ROWS} FOR UPDATE SKIP LOCKED)) RETURNING NULL::text"
                )
            };
            let discard = sqlx::query_scalar(self.sql(&discard)).bind(queue).bind(id.map(|id| id.to_string()));
            let keys: Vec<Option<String>> = discard.fetch_all(&self.pool).await?;
            self.unblock_next(queue, &keys).await;
            Ok(keys.len() as u64)
        }
        .boxed()
    }

    fn cancel<'a>(&'a self, queue: &'a str, id: Ulid) -> StoreFuture<'a, bool> {
        async move {
            let cancel = "UPDATE @jobs SET state = 'cancelled', ended_at = now() WHERE queue = $1 AND id = $2
                AND state IN ('scheduled', 'retrying', 'available', 'blocked', 'running') RETURNING limit_key";
            let cancel = sqlx::query_scalar(self.sql(cancel)).bind(queue).bind(id.to_string());
            let keys: Vec<Option<String>> = cancel.fetch_all(&self.pool).await?;
            self.unblock_next(queue, &keys).await;
            Ok(!keys.is_empty())
        }
        .boxed()
    }

    /// Counts jobs with the partial indexes, instead of reading the whole table.
    fn counts<'a>(&'a self, queue: &'a str) -> StoreFuture<'a, QueueCounts> {
        async move {
            let count = |state| {
                let condition = state_condition(state);
                let limit = QueueCounts::LIMIT + 1;
                format!("SELECT '{state}', count(*) FROM (SELECT FROM @jobs AS jobs WHERE queue = $1 AND {condition} LIMIT {limit}) AS jobs")
            };
            let query = self.sql(&STATES.map(count).join(" UNION ALL "));
            let mut counts = QueueCounts::default();
            // If the server has not analyzed the table, it may scan the whole table. The settings of this connection prevent this.
            let mut conn = self.idle_connection().await?;
            for (state, jobs) in sqlx::query_as::<_, (String, i64)>(query).bind(queue).fetch_all(&mut *conn.connection).await? {
                counts.add(&state, jobs);
            }
            self.keep(conn);
            Ok(counts)
        }
        .boxed()
    }

    fn queues(&self) -> StoreFuture<'_, Vec<QueueInfo>> {
        async move {
            let query = self.sql(&QUEUES.replace("%counts", &count_columns("@jobs", |_| String::new())));
            // The settings of this connection keep the server from sorting whole queues, and from compiling the plan of the statement.
            let mut conn = self.idle_connection().await?;
            let rows = sqlx::query(query).fetch_all(&mut *conn.connection).await?;
            self.keep(conn);
            let info = |row: &PgRow| -> StoreResult<QueueInfo> {
                let mut counts = QueueCounts::default();
                for state in STATES {
                    counts.add(state, row.try_get(state)?);
                }
                let oldest: Option<f64> = row.try_get("oldest")?;
                let row = QueueRow {
                    name: row.try_get("name")?,
                    is_paused: row.try_get("paused")?,
                    running: row.try_get("max_running")?,
                    running_per_key: row.try_get("max_running_per_key")?,
                    rate_jobs: row.try_get("rate_jobs")?,
                    rate_seconds: row.try_get("rate_seconds")?,
                    oldest: oldest.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()),
                    workers: row.try_get("workers")?,
                };
                Ok(row.info(counts))
            };
            let mut queues = rows.iter().map(info).collect::<StoreResult<Vec<_>>>()?;
            queues.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(queues)
        }
        .boxed()
    }

    fn pause<'a>(&'a self, queue: &'a str, is_paused: bool) -> StoreFuture<'a> {
        async move {
            let pause =
                "INSERT INTO @queues (name, paused) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET paused = excluded.paused";
            sqlx::query(self.sql(pause)).bind(queue).bind(is_paused).execute(&self.pool).await?;
            Ok(())
        }
        .boxed()
    }

    fn set_limits<'a>(&'a self, queue: &'a str, limits: QueueLimits) -> StoreFuture<'a> {
        async move {
            let set = "INSERT INTO @queues (name, max_running, max_running_per_key, rate_jobs, rate_seconds, rate_left, rate_at)
                VALUES ($1, $2, $3, $4, $5, coalesce($4::float8, 0), now()) ON CONFLICT (name) DO UPDATE SET max_running = excluded.max_running,
                max_running_per_key = excluded.max_running_per_key, rate_jobs = excluded.rate_jobs, rate_seconds = excluded.rate_seconds,
                rate_left = CASE WHEN queues.rate_jobs IS NULL THEN excluded.rate_left ELSE queues.rate_left END";
            let (jobs, period) = limits.rate.unzip();
            let set = sqlx::query(self.sql(set)).bind(queue).bind(limits.running.map(version)).bind(limits.running_per_key.map(version));
            set.bind(jobs.map(f64::from)).bind(period.map(|it| it.as_secs_f64())).execute(&self.pool).await?;
            // The limits are stored, so the call succeeds even if this step fails. Maintenance repeats this step.
            let _ = self.unblock(queue).await;
            Ok(())
        }
        .boxed()
    }

    fn enqueued<'a>(&'a self, queue: &'a str) -> StoreFuture<'a, Vec<EnqueuedRow>> {
        async move {
            let jobs = format!(
                "SELECT {COLUMNS}, unique_key, extract(epoch FROM run_at - enqueued_at)::float8 AS delay FROM @jobs
                WHERE queue = $1 AND state IN ('scheduled', 'retrying', 'available', 'blocked') ORDER BY id"
            );
            let rows = sqlx::query(self.sql(&jobs)).bind(queue).fetch_all(&self.pool).await?;
            let enqueued = |row: &PgRow| -> StoreResult<EnqueuedRow> {
                Ok(EnqueuedRow {
                    info: info(row)?,
                    delay: Duration::try_from_secs_f64(row.try_get("delay")?).unwrap_or_default(),
                    unique_key: row.try_get("unique_key")?,
                })
            };
            rows.iter().map(enqueued).collect()
        }
        .boxed()
    }

    fn advance(&self, by: Duration) -> StoreFuture<'_> {
        async move {
            let advance = "WITH queues AS (UPDATE @queues SET rate_at = rate_at - make_interval(secs => $1))
                UPDATE @jobs SET run_at = run_at - make_interval(secs => $1), enqueued_at = enqueued_at - make_interval(secs => $1),
                ended_at = ended_at - make_interval(secs => $1), unique_until = unique_until - make_interval(secs => $1)";
            sqlx::query(self.sql(advance)).bind(by.as_secs_f64()).execute(&self.pool).await?;
            Ok(())
        }
        .boxed()
    }

    fn postgres(&self) -> Option<&PgPool> {
        Some(&self.pool)
    }
}

fn micros(time: Option<SystemTime>) -> i64 {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
    // The time is rounded up, so that no job starts early.
    i64::try_from(since.as_nanos().div_ceil(1000)).unwrap_or(i64::MAX)
}

struct PostgresHeart {
    listener: PgListener,
    prefix: String,
}

impl Heart for PostgresHeart {
    fn beat<'a>(&'a mut self, workers: &'a [WorkerLease]) -> StoreFuture<'a, Vec<String>> {
        async move {
            let beat = "UPDATE @workers AS workers SET expires_at = now() + make_interval(secs => beat.lease)
                FROM unnest($1::text[], $2::float8[]) AS beat (id, lease) WHERE workers.id = beat.id RETURNING workers.id";
            let leases: HashMap<_, _> = workers.iter().map(|worker| (&*worker.id, worker)).collect();
            let beat = sqlx::query_scalar::<_, String>(sql(beat, &self.prefix)).bind(leases.keys().copied().collect::<Vec<_>>());
            let beat = beat.bind(leases.values().map(|worker| worker.lease.as_secs_f64()).collect::<Vec<_>>());
            let alive: HashSet<String> = beat.fetch_all(&mut self.listener).await?.into_iter().collect();
            let mut lost = Vec::new();
            for worker in workers.iter().filter(|worker| !alive.contains(&worker.id)) {
                let register = "INSERT INTO @workers VALUES ($1, $2, now() + make_interval(secs => $3)) ON CONFLICT DO NOTHING";
                let register = sqlx::query(sql(register, &self.prefix)).bind(&worker.id).bind(worker.queue);
                register.bind(worker.lease.as_secs_f64()).execute(&mut self.listener).await?;
                lost.push(worker.id.clone());
            }
            Ok(lost)
        }
        .boxed()
    }

    fn deregister<'a>(&'a mut self, workers: &'a [String]) -> StoreFuture<'a> {
        async move {
            let delete = sqlx::query(sql("DELETE FROM @workers WHERE id = ANY ($1)", &self.prefix)).bind(workers);
            delete.execute(&mut self.listener).await?;
            Ok(())
        }
        .boxed()
    }

    fn recover(&mut self) -> StoreFuture<'_, u64> {
        async move {
            let lost: i64 = sqlx::query_scalar(sql(RECOVER, &self.prefix)).fetch_one(&mut self.listener).await?;
            let unstarted = sqlx::query(sql(RECOVER_UNSTARTED, &self.prefix)).execute(&mut self.listener).await?.rows_affected();
            Ok(u64::try_from(lost).unwrap_or(0) + unstarted)
        }
        .boxed()
    }

    fn next_notice(&mut self, limit: Duration, _: Duration) -> StoreFuture<'_, Notice> {
        async move {
            match select(pin!(self.listener.try_recv()), Delay::new(limit)).await {
                Either::Left((notice, _)) => Ok(notice?.map_or(Notice::Any, |notice| Notice::Queue(notice.payload().to_owned()))),
                Either::Right(_) => Ok(Notice::Nothing),
            }
        }
        .boxed()
    }
}

pub(crate) async fn complete(conn: &mut PgConnection, prefix: &str, completion: &Completion) -> StoreResult<bool> {
    let complete = "UPDATE @jobs SET state = 'done', worker = NULL, attempts = attempts + 1, ended_at = now(), result = $3,
        error = NULL, checkpoint = NULL WHERE id = $1 AND run = $2 AND state = 'running'";
    let complete = sqlx::query(sql(complete, prefix)).bind(completion.id.to_string()).bind(completion.run).bind(&completion.result);
    Ok(complete.execute(conn).await?.rows_affected() == 1)
}
