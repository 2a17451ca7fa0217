use super::{
    Committed, EnqueuedRow, FetchRequest, FetchedJob, Heart, HeldJob, JobSpec, LimitedFetch, LimitsRow, MAX_ROWS, Notice, Order,
    Outcome, Pushed, QueueRow, QueueTick, RunAt, STATES, Store, StoreFuture, StoreResult, WorkerLease, check_version, count,
    count_columns, held_job, index_of, missing_versions, new_ids, parse_id, state_condition,
};
use crate::error::Error;
use crate::job::{JobInfo, JobRow, JobStatus, QueueCounts};
use crate::limits::QueueLimits;
use crate::operator::QueueInfo;
use crate::running::Completion;
use futures_timer::Delay;
use futures_util::future::{FutureExt, ready};
use serde::Serialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection, SqlitePool};
use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};
use ulid::Ulid;

/// If another connection locks the file, a call waits for at most this time.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Sqlite {
    file: File,
    /// A pool with a single connection for writes, because SQLite allows only one writer at a time. Writers of this process wait in the
    /// queue of this pool, which is fairer than SQLite's busy timeout.
    writer: SqlitePool,
    pool: SqlitePool,
    /// The workers read with a separate pool, because the program may use all connections of `pool`.
    worker_pool: SqlitePool,
    /// Keeps a database in memory alive. The pools may close all their connections, and SQLite deletes the database when its last
    /// connection is closed.
    _anchor: Option<Mutex<SqliteConnection>>,
}

impl Sqlite {
    /// Creates a database in the memory of this process. All connections of this store use the same database.
    pub(crate) async fn in_memory() -> StoreResult<Self> {
        let name = format!("/background-tasks-{}", Ulid::generate());
        let options = options(Path::new(&name)).vfs("memdb");
        let anchor = options.connect().await?;
        let writer = pool(1).idle_timeout(None).max_lifetime(None).connect_with(options.clone()).await?;
        let (pool, worker_pool) = (pool(8).connect_lazy_with(options.clone()), pool(2).connect_lazy_with(options));
        migrate(&writer).await?;
        let file = File { path: PathBuf::new(), identity: None };
        Ok(Self { file, writer, pool, worker_pool, _anchor: Some(Mutex::new(anchor)) })
    }

    /// Opens a database file. If `is_existing` is false, also creates the file if it does not exist, and migrates the tables.
    pub(crate) async fn open(path: &Path, is_existing: bool) -> StoreResult<Self> {
        // The path is made absolute, because the program may change its working directory.
        let path = &std::path::absolute(path).map_err(|error| Error::Unavailable(format!("{}: {error}", path.display())))?;
        let options = options(path).create_if_missing(!is_existing);
        let denied = |reason: String| {
            Error::Denied(io::Error::new(ErrorKind::PermissionDenied, format!("{}: {reason}", path.display())).into())
        };
        let with_path = |error| match error {
            Error::Unavailable(text) => match OpenOptions::new().write(true).create(!is_existing).truncate(false).open(path) {
                Err(cause) if matches!(cause.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                    denied(cause.to_string())
                }
                _ => Error::Unavailable(format!("{}: {text}", path.display())),
            },
            Error::Denied(sqlx::Error::Database(cause)) => denied(cause.message().to_owned()),
            Error::Schema(text) => Error::Schema(format!("{}: {text}", path.display())),
            other => other,
        };
        if is_existing {
            check_tables(&options).await.map_err(with_path)?;
        }
        let options = options.journal_mode(SqliteJournalMode::Wal);
        let connect = || pool(1).idle_timeout(None).max_lifetime(None).connect_with(options.clone());
        let start = Instant::now();
        let writer = loop {
            match connect().await.map_err(|error| with_path(error.into())) {
                // If several processes open a new file at the same time, each of them switches the file to a write-ahead log. SQLite lets
                // only one of them succeed, and the others fail without waiting, so this loop retries.
                Err(Error::Locked(_)) if start.elapsed() < LOCK_TIMEOUT => Delay::new(Duration::from_millis(20)).await,
                connected => break connected?,
            }
        };
        if !is_existing {
            migrate(&writer).await.map_err(with_path)?;
        }
        let options = options.create_if_missing(false);
        let (pool, worker_pool) = (pool(8).connect_lazy_with(options.clone()), pool(2).connect_lazy_with(options));
        Ok(Self { file: File::at(path), writer, pool, worker_pool, _anchor: None })
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    // With `Full`, commits survive a power failure. The row buffer is large enough for all rows of a fetch. The thread of the driver can
    // therefore finish the statement even if a handler blocks the runtime, so that no task receives the rows.
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(LOCK_TIMEOUT)
        .row_buffer_size(MAX_ROWS + 1)
}

fn pool(max_connections: u32) -> SqlitePoolOptions {
    let options =
        SqlitePoolOptions::new().max_connections(max_connections).acquire_timeout(LOCK_TIMEOUT * 3).test_before_acquire(false);
    // When the disk is full, SQLite rolls back the transaction, but the driver still counts the transaction as open. The pool does not use
    // a connection with such a transaction again.
    options.before_acquire(|conn, _| ready(Ok(!conn.is_in_transaction())).boxed())
}

/// At this interval, the heartbeat thread checks whether the file has changed. Each check takes microseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// The migrations of the tables. Each migration contains the statements that create one version of the tables.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/sqlite_1.sql")];
const CARRY_OVER: &str = include_str!("migrations/sqlite_carry_over.sql");

/// Runs all migrations in one transaction. If several processes start at the same time, only one of them creates the tables.
async fn migrate(writer: &SqlitePool) -> StoreResult {
    let exists = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = ?1 COLLATE NOCASE)";
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let has_versions: bool = sqlx::query_scalar(exists).bind("background_tasks_versions").fetch_one(&mut *tx).await?;
    if !has_versions && sqlx::query_scalar(exists).bind("background_tasks_jobs").fetch_one(&mut *tx).await? {
        return Err(Error::Schema("table background_tasks_jobs exists but was not created by this crate".to_owned()));
    }
    let table = "CREATE TABLE IF NOT EXISTS background_tasks_versions (version integer PRIMARY KEY)";
    sqlx::raw_sql(table).execute(&mut *tx).await?;
    let done = "SELECT coalesce(max(version), 0) FROM background_tasks_versions";
    for (version, text) in missing_versions(&MIGRATIONS, sqlx::query_scalar(done).fetch_one(&mut *tx).await?)? {
        sqlx::raw_sql(text).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO background_tasks_versions VALUES (?1)").bind(version).execute(&mut *tx).await?;
    }
    let has_old_jobs = "SELECT count(*) = 3 FROM sqlite_master WHERE type = 'table' AND name IN ('Jobs', 'Workers', 'background_tasks_migrations')";
    if sqlx::query_scalar(has_old_jobs).fetch_one(&mut *tx).await? {
        sqlx::raw_sql(CARRY_OVER).execute(&mut *tx).await?;
    }
    Ok(tx.commit().await?)
}

/// Fails if the tables in the file do not have the newest version that this crate knows. Changes nothing in the file.
async fn check_tables(options: &SqliteConnectOptions) -> StoreResult {
    let mut conn = options.clone().connect().await?;
    let exists = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'background_tasks_versions')";
    let version = if sqlx::query_scalar(exists).fetch_one(&mut conn).await? {
        Some(sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM background_tasks_versions").fetch_one(&mut conn).await?)
    } else {
        None
    };
    conn.close().await?;
    check_version(&MIGRATIONS, version)
}

/// The identity of the opened file. If the file is deleted or replaced, writes still succeed, but their data is lost. Calls therefore
/// compare this identity with the file that is now at the path.
#[derive(Clone)]
struct File {
    /// The path of the file. The path is empty for a database in memory.
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl File {
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }

    fn check_available(&self) -> StoreResult {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        let now = identity(&self.path);
        if now.is_some() && now == self.identity {
            return Ok(());
        }
        Err(Error::Unavailable(format!("{} was deleted or replaced while it was open", self.path.display())))
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().ok().map(|file| (file.dev(), file.ino()))
}

/// Returns the same identity for all files. On systems other than Unix, an open file cannot be deleted, so no check is needed.
#[cfg(not(unix))]
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|_| (0, 0))
}

/// Returns the time of the store in milliseconds since 1970.
fn now() -> i64 {
    to_millis(SystemTime::now())
}

fn to_millis(time: SystemTime) -> i64 {
    millis(time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// Returns the duration in milliseconds, rounded up so that no job starts early.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn json(values: &impl Serialize) -> String {
    serde_json::to_string(values).expect("strings and numbers")
}

/// Inserts jobs. If the unique key is in use, inserts nothing. `?1` is the current time.
const PUSH: &str = "INSERT INTO background_tasks_jobs
        (id, queue, state, priority, run_at, enqueued_at, version, unique_key, unique_until, limit_key, payload)
    SELECT value ->> 0, ?2, CASE WHEN ?3 <= ?1 THEN 'available' ELSE 'scheduled' END, ?4, ?3, ?1, ?5, ?6, ?7, ?8,
        CAST(substr(?9, value ->> 1, value ->> 2) AS text)
    FROM json_each(?10) WHERE ?6 IS NULL OR NOT EXISTS
        (SELECT 1 FROM background_tasks_jobs WHERE queue = ?2 AND unique_key = ?6 AND unique_until IS NOT NULL AND unique_until > ?1)
    ON CONFLICT (queue, unique_key)
        WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'retrying', 'available', 'blocked', 'running') DO NOTHING";

/// Finds the job that uses a unique key.
const PUSHED: &str = "SELECT id FROM background_tasks_jobs WHERE queue = ?1 AND unique_key = ?2
        AND state IN ('scheduled', 'retrying', 'available', 'blocked', 'running')
    UNION ALL SELECT id FROM background_tasks_jobs WHERE queue = ?1 AND unique_key = ?2 AND unique_until IS NOT NULL AND unique_until > ?3
    LIMIT 1";

/// Inserts the jobs with a single statement. The statement needs no explicit transaction, and only one round trip to the driver's thread.
pub(crate) async fn push(conn: &mut SqliteConnection, spec: &JobSpec, payloads: &[Vec<u8>]) -> StoreResult<Pushed> {
    let (ids, mut end) = (new_ids(payloads.len()), 0);
    let parts = ids.iter().zip(payloads).map(|(id, payload)| {
        let start = end + 1; // SQL counts from one
        end += payload.len();
        (id.to_string(), start, payload.len())
    });
    let parts = json(&parts.collect::<Vec<_>>());
    let all = payloads.concat();
    loop {
        let now = now();
        let run_at = match spec.run_at {
            RunAt::Now => now,
            RunAt::After(delay) => now.saturating_add(millis(delay)),
            RunAt::At(time) => to_millis(time),
        };
        let insert = sqlx::query(PUSH).bind(now).bind(spec.queue).bind(run_at).bind(spec.priority).bind(spec.version);
        let insert = insert.bind(&spec.unique_key).bind(spec.unique_for.map(|period| now.saturating_add(millis(period))));
        let insert = insert.bind(&spec.limit_key).bind(&all).bind(&parts);
        if insert.execute(&mut *conn).await?.rows_affected() > 0 {
            return Ok(Pushed { ids, is_new: true });
        }
        let existing = sqlx::query_scalar::<_, String>(PUSHED).bind(spec.queue).bind(&spec.unique_key).bind(now);
        // If no job is found, the job that used the key has ended between the two statements, so the insert is retried.
        if let Some(id) = existing.fetch_optional(&mut *conn).await? {
            return Ok(Pushed { ids: vec![parse_id(&id)?], is_new: false });
        }
    }
}

/// Fetches jobs. `INDEXED BY` keeps the query planner from choosing another index.
const FETCH: &str = "UPDATE background_tasks_jobs SET state = 'running', run = run + 1, worker = ?2 WHERE seq IN (
        SELECT seq FROM background_tasks_jobs INDEXED BY background_tasks_jobs_available WHERE queue = ?1 AND state = 'available'
        AND EXISTS (SELECT 1 FROM background_tasks_workers WHERE id = ?2 AND expires_at > ?4)
        AND NOT EXISTS (SELECT 1 FROM background_tasks_queues WHERE name = ?1
            AND (paused OR max_running IS NOT NULL OR max_running_per_key IS NOT NULL OR rate_jobs IS NOT NULL))
        ORDER BY priority DESC, run_at, seq LIMIT ?3)
    RETURNING id, queue, run, attempts, crashes, version, payload, checkpoint, priority, run_at, seq";

const LIMITS: &str = "SELECT paused, max_running, max_running_per_key, rate_jobs, rate_seconds,
    min(rate_jobs, rate_left + max(0, ?2 - rate_at) / 1000.0 * rate_jobs / rate_seconds) AS allowed,
    (SELECT count(*) FROM background_tasks_jobs WHERE worker IS NOT NULL AND state = 'running' AND queue = ?1) AS running
    FROM background_tasks_queues WHERE name = ?1";

/// Fetches jobs of a queue with limits. If the limit of its key allows no further job, a job becomes blocked instead.
const FETCH_LIMITED: &str = "UPDATE background_tasks_jobs SET
        state = CASE WHEN starts THEN 'running' ELSE 'blocked' END, run = run + starts, worker = CASE WHEN starts THEN ?2 END
    FROM (SELECT next.seq AS next, ?4 IS NULL OR next.limit_key IS NULL
            OR row_number() OVER (PARTITION BY next.limit_key ORDER BY next.priority DESC, next.run_at, next.seq)
            + (SELECT count(*) FROM background_tasks_jobs AS running WHERE running.worker IS NOT NULL AND running.state = 'running'
                AND running.queue = ?1 AND running.limit_key = next.limit_key) <= ?4 AS starts
        FROM (SELECT seq, limit_key, priority, run_at FROM background_tasks_jobs INDEXED BY background_tasks_jobs_available
            WHERE queue = ?1 AND state = 'available'
            AND EXISTS (SELECT 1 FROM background_tasks_workers WHERE id = ?2 AND expires_at > ?5)
            ORDER BY priority DESC, run_at, seq LIMIT ?3) AS next)
    WHERE seq = next
    RETURNING id, queue, run, attempts, crashes, version, payload, checkpoint, priority, run_at, seq, worker IS NOT NULL AS starts";

const PROMOTE: &str = "UPDATE background_tasks_jobs SET state = 'available' WHERE seq IN (
    SELECT seq FROM background_tasks_jobs INDEXED BY background_tasks_jobs_due
    WHERE queue = ?1 AND state IN ('scheduled', 'retrying') AND run_at <= ?2 LIMIT 1000)";

const TICK: &str = "SELECT value AS name, coalesce(paused, 0) AS paused,
        coalesce(max_running IS NOT NULL OR max_running_per_key IS NOT NULL OR rate_jobs IS NOT NULL, 0) AS limited,
        EXISTS (SELECT 1 FROM background_tasks_jobs INDEXED BY background_tasks_jobs_available
            WHERE queue = value AND state = 'available') AS ready,
        (SELECT min(due) FROM (SELECT min(run_at) AS due FROM background_tasks_jobs INDEXED BY background_tasks_jobs_due
                WHERE queue = value AND state = 'scheduled' AND state IN ('scheduled', 'retrying')
            UNION ALL SELECT min(run_at) FROM background_tasks_jobs INDEXED BY background_tasks_jobs_due
                WHERE queue = value AND state = 'retrying' AND state IN ('scheduled', 'retrying'))) AS next_due
    FROM json_each(?1) LEFT JOIN background_tasks_queues ON name = value";

/// Commits outcomes. An outcome has no effect in three cases: another outcome of the same run was committed before, the worker has lost
/// the job, or the job is cancelled.
const COMMIT: &str = "UPDATE background_tasks_jobs AS jobs SET state = outcome.state, worker = NULL, attempts = attempts + charge,
        run_at = coalesce(?2 + delay, run_at), ended_at = CASE WHEN outcome.state IN ('done', 'dead') THEN ?2 END,
        checkpoint = CASE WHEN outcome.state = 'done' THEN NULL ELSE checkpoint END, result = outcome.result,
        error = CASE WHEN outcome.state = 'done' OR outcome.error IS NOT NULL THEN outcome.error ELSE jobs.error END
    FROM (SELECT value ->> 0 AS id, value ->> 1 AS run, value ->> 2 AS state, value ->> 3 AS charge, value ->> 4 AS delay,
        value ->> 5 AS result, value ->> 6 AS error FROM json_each(?1)) AS outcome
    WHERE jobs.id = outcome.id AND jobs.run = outcome.run AND jobs.state = 'running' RETURNING id, queue, limit_key";

/// Removes the worker from cancelled jobs, whose handlers have now stopped. `COMMIT` changes only running jobs, and therefore skips
/// cancelled jobs.
const RELEASE_CANCELLED: &str = "UPDATE background_tasks_jobs SET worker = NULL
    WHERE id IN (SELECT value FROM json_each(?1)) AND state = 'cancelled' AND worker IS NOT NULL RETURNING id, queue, limit_key";

/// Finds jobs that have a limit key, and that had already ended before this call. Either their handlers have called `complete_in`, or an
/// earlier call has committed their outcomes. The end of these jobs may allow blocked jobs with the same key to start.
const ENDED_OTHERWISE: &str = "SELECT id, queue, limit_key FROM background_tasks_jobs
    WHERE id IN (SELECT value FROM json_each(?1)) AND worker IS NULL AND limit_key IS NOT NULL";

/// Finds the limit keys in `?1` that have blocked jobs, and returns how many of these jobs the limit allows to start. The statement
/// does not count the jobs that are already available. If too many jobs become available, the next fetch blocks them again.
const UNBLOCKABLE: &str = "SELECT queue, key, min(1000, coalesce(max_running_per_key - coalesce(running, 0), 1000)) AS room
    FROM (SELECT value ->> 0 AS queue, value ->> 1 AS key FROM json_each(?1)) AS keys
    LEFT JOIN background_tasks_queues ON name = queue
    LEFT JOIN (SELECT queue AS held_queue, limit_key, count(*) AS running
        FROM background_tasks_jobs INDEXED BY background_tasks_jobs_held
        WHERE worker IS NOT NULL AND state = 'running' GROUP BY queue, limit_key) ON held_queue = queue AND limit_key = key
    WHERE room > 0 AND EXISTS (SELECT 1 FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_blocked
        WHERE jobs.queue = keys.queue AND jobs.limit_key = key AND jobs.state = 'blocked')";

/// Makes the next blocked jobs of a limit key available.
const UNBLOCK: &str = "UPDATE background_tasks_jobs SET state = 'available' WHERE seq IN (
    SELECT seq FROM background_tasks_jobs INDEXED BY background_tasks_jobs_blocked
    WHERE queue = ?1 AND limit_key = ?2 AND state = 'blocked' ORDER BY priority DESC, run_at, seq LIMIT ?3)";

const PRUNE: &str = "DELETE FROM background_tasks_jobs WHERE seq IN (
    SELECT seq FROM background_tasks_jobs INDEXED BY background_tasks_jobs_ended
    WHERE queue = ?1 AND state = ?2 AND state IN ('done', 'dead', 'cancelled') AND ended_at <= ?3
    AND (unique_until IS NULL OR unique_until <= ?4) AND worker IS NULL ORDER BY ended_at LIMIT 500)";

const COLUMNS: &str = "id, queue, priority, limit_key, state, attempts, crashes, version, run_at, ended_at, error, result, payload";

/// Recovers the jobs of dead workers. A recovered job waits for 2 seconds. The delay doubles with each further crash, up to 10 minutes. A
/// random part of up to half of the delay is then added or subtracted.
const RECOVER: &str =
    "UPDATE background_tasks_jobs SET state = CASE state WHEN 'running' THEN 'retrying' ELSE state END, worker = NULL,
        crashes = crashes + 1, error = 'the worker died',
        run_at = ?1 + min(600, 2 << min(crashes, 10)) * (500 + abs(random() % 1000))
    WHERE worker IN (SELECT id FROM background_tasks_workers WHERE expires_at < ?1)";

/// If the worker of a job is not registered, makes the job available again. The job was fetched while its worker was deregistered, so no
/// worker has started the job.
const RECOVER_UNSTARTED: &str = "UPDATE background_tasks_jobs SET
        state = CASE state WHEN 'running' THEN 'available' ELSE state END, worker = NULL
    WHERE worker IS NOT NULL AND worker NOT IN (SELECT id FROM background_tasks_workers)";

/// Checks whether the lease of a worker has expired, or a job belongs to a worker that is not registered. The updates that recover jobs
/// wait for other writers, and this read does not. Therefore the updates run only if this read finds something.
const HAS_DEAD: &str = "SELECT EXISTS (SELECT 1 FROM background_tasks_workers WHERE expires_at < ?1)
    OR EXISTS (SELECT 1 FROM background_tasks_jobs WHERE worker IS NOT NULL AND worker NOT IN (SELECT id FROM background_tasks_workers))";

/// Reads all queues without reading all jobs. In each index, the statement skips from one queue to the next. In the index of available
/// jobs, the statement also skips from one priority to the next. The first job of each priority is the oldest job of this priority. From
/// these first jobs, the statement finds the oldest due job of the queue. `?1` is the current time.
const QUEUES: &str = "WITH RECURSIVE
    available (queue, priority, run_at) AS (
        SELECT * FROM (SELECT queue, priority, run_at FROM background_tasks_jobs INDEXED BY background_tasks_jobs_available
            WHERE state = 'available' ORDER BY queue, priority DESC, run_at LIMIT 1)
        UNION ALL SELECT next.queue, next.priority, next.run_at FROM available JOIN background_tasks_jobs AS next ON next.seq = coalesce(
            (SELECT seq FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_available WHERE state = 'available'
                AND queue = available.queue AND priority < available.priority ORDER BY priority DESC, run_at LIMIT 1),
            (SELECT seq FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_available WHERE state = 'available'
                AND queue > available.queue ORDER BY queue, priority DESC, run_at LIMIT 1))),
    due (queue, state, run_at) AS (
        SELECT * FROM (SELECT queue, state, run_at FROM background_tasks_jobs INDEXED BY background_tasks_jobs_due
            WHERE state IN ('scheduled', 'retrying') ORDER BY queue, state, run_at LIMIT 1)
        UNION ALL SELECT next.queue, next.state, next.run_at FROM due JOIN background_tasks_jobs AS next ON next.seq = coalesce(
            (SELECT seq FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_due WHERE state IN ('scheduled', 'retrying')
                AND queue = due.queue AND state > due.state ORDER BY state, run_at LIMIT 1),
            (SELECT seq FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_due WHERE state IN ('scheduled', 'retrying')
                AND queue > due.queue ORDER BY queue, state, run_at LIMIT 1))),
    blocked (queue) AS (
        SELECT * FROM (SELECT queue FROM background_tasks_jobs INDEXED BY background_tasks_jobs_blocked
            WHERE state = 'blocked' ORDER BY queue LIMIT 1)
        UNION ALL SELECT (SELECT queue FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_blocked
            WHERE state = 'blocked' AND queue > blocked.queue ORDER BY queue LIMIT 1) FROM blocked WHERE blocked.queue IS NOT NULL),
    ended (queue) AS (
        SELECT * FROM (SELECT queue FROM background_tasks_jobs INDEXED BY background_tasks_jobs_ended
            WHERE state IN ('done', 'dead', 'cancelled') ORDER BY queue LIMIT 1)
        UNION ALL SELECT (SELECT queue FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_ended
            WHERE state IN ('done', 'dead', 'cancelled') AND queue > ended.queue ORDER BY queue LIMIT 1)
            FROM ended WHERE ended.queue IS NOT NULL),
    held AS (SELECT queue, count(*) FILTER (WHERE state = 'running') AS running
        FROM background_tasks_jobs INDEXED BY background_tasks_jobs_held WHERE worker IS NOT NULL GROUP BY queue),
    live AS (SELECT queue, count(*) AS workers FROM background_tasks_workers WHERE expires_at > ?1 GROUP BY queue),
    names (name) AS (SELECT queue FROM available UNION SELECT queue FROM due UNION SELECT queue FROM blocked UNION SELECT queue FROM ended
        UNION SELECT queue FROM held UNION SELECT queue FROM live UNION SELECT name FROM background_tasks_queues)
    SELECT names.name, coalesce(paused, 0) AS paused, max_running, max_running_per_key, rate_jobs, rate_seconds,
        (SELECT min(run_at) FROM (SELECT queue, run_at FROM available UNION ALL SELECT queue, run_at FROM due) AS heads
            WHERE heads.queue = names.name AND run_at <= ?1) AS oldest,
        coalesce((SELECT running FROM held WHERE held.queue = names.name), 0) AS running,
        coalesce((SELECT workers FROM live WHERE live.queue = names.name), 0) AS workers
        @counts
    FROM names LEFT JOIN background_tasks_queues AS settings ON settings.name = names.name WHERE names.name IS NOT NULL ORDER BY names.name";

const DEREGISTER: &str = "DELETE FROM background_tasks_workers WHERE id IN (SELECT value FROM json_each(?1))";

/// Makes a statement use the index that contains the done, dead and cancelled jobs.
const ENDED: &str = "INDEXED BY background_tasks_jobs_ended";

fn fetched(row: &SqliteRow) -> StoreResult<FetchedJob> {
    Ok(FetchedJob {
        id: parse_id(row.try_get("id")?)?,
        queue: row.try_get("queue")?,
        run: row.try_get("run")?,
        attempts: count(row.try_get("attempts")?),
        crashes: count(row.try_get("crashes")?),
        version: count(row.try_get("version")?),
        payload: row.try_get("payload")?,
        checkpoint: row.try_get("checkpoint")?,
    })
}

/// Sorts the rows of a fetch, because SQLite returns them in any order.
fn in_order(mut rows: Vec<SqliteRow>) -> Vec<SqliteRow> {
    let column = |row: &SqliteRow, name| row.try_get::<i64, _>(name).unwrap_or(0);
    rows.sort_by_cached_key(|row| (-column(row, "priority"), column(row, "run_at"), column(row, "seq")));
    rows
}

fn info(row: &SqliteRow) -> StoreResult<JobInfo> {
    Ok(JobInfo::new(JobRow {
        id: parse_id(row.try_get("id")?)?,
        queue: row.try_get("queue")?,
        priority: row.try_get("priority")?,
        limit_key: row.try_get("limit_key")?,
        state: row.try_get("state")?,
        attempts: count(row.try_get("attempts")?),
        crashes: count(row.try_get("crashes")?),
        version: count(row.try_get("version")?),
        due: time(row.try_get("run_at")?),
        ended: row.try_get::<Option<i64>, _>("ended_at")?.map(time),
        error: row.try_get("error")?,
        result: row.try_get("result")?,
        payload: row.try_get("payload")?,
    }))
}

impl Sqlite {
    async fn unblock_keys(&self, keys: HashSet<(String, String)>) -> StoreResult {
        if !keys.is_empty() {
            let keys =
                sqlx::query_as::<_, (String, String, i64)>(UNBLOCKABLE).bind(json(&keys)).fetch_all(&self.worker_pool).await?;
            for (queue, key, room) in keys {
                sqlx::query(UNBLOCK).bind(queue).bind(key).bind(room).execute(&self.writer).await?;
            }
        }
        Ok(())
    }

    /// Makes jobs of these limit keys available after one of their jobs was deleted or cancelled. This change is committed, so an error is
    /// ignored. Maintenance repeats this step.
    async fn unblock_next(&self, queue: &str, keys: &[Option<String>]) {
        let _ = self.unblock_keys(keys.iter().flatten().map(|key| (queue.to_owned(), key.clone())).collect()).await;
    }
}

impl Store for Sqlite {
    fn check_available(&self) -> StoreResult {
        self.file.check_available()
    }

    fn poll_interval(&self) -> Duration {
        POLL_INTERVAL
    }

    /// The regular checks of the queues happen at most once a second. The heartbeat thread polls the file at the poll interval, and a
    /// change of the file causes an additional check.
    fn look_interval(&self, poll_interval: Duration) -> Duration {
        poll_interval.max(Duration::from_secs(1))
    }

    fn push(&self, spec: JobSpec, payloads: Vec<Vec<u8>>) -> StoreFuture<'_, Pushed> {
        async move {
            self.file.check_available()?;
            push(&mut *self.writer.acquire().await?, &spec, &payloads).await
        }
        .boxed()
    }

    fn heart(&self) -> StoreFuture<'_, Box<dyn Heart>> {
        async move {
            let conn = self.writer.connect_options().as_ref().clone().create_if_missing(false).connect().await?;
            Ok(Box::new(SqliteHeart { file: self.file.clone(), conn, version: None }) as Box<dyn Heart>)
        }
        .boxed()
    }

    fn register<'a>(&'a self, worker: &'a WorkerLease) -> StoreFuture<'a> {
        async move {
            self.file.check_available()?;
            let register =
                sqlx::query("INSERT INTO background_tasks_workers VALUES (?1, ?2, ?3)").bind(&worker.id).bind(worker.queue);
            register.bind(now().saturating_add(millis(worker.lease))).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn deregister<'a>(&'a self, workers: &'a [String]) -> StoreFuture<'a> {
        async move {
            sqlx::query(DEREGISTER).bind(json(&workers)).execute(&self.writer).await?;
            let release =
                "UPDATE background_tasks_jobs SET state = CASE state WHEN 'running' THEN 'available' ELSE state END, worker = NULL
                WHERE worker IN (SELECT value FROM json_each(?1))";
            sqlx::query(release).bind(json(&workers)).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn tick<'a>(&'a self, queues: &'a [&'static str]) -> StoreFuture<'a, Vec<QueueTick>> {
        async move {
            self.file.check_available()?;
            let look = async || {
                let now = now();
                let rows = sqlx::query(TICK).bind(json(&queues)).fetch_all(&self.worker_pool).await?;
                let tick = |row: &SqliteRow| -> StoreResult<QueueTick> {
                    let next_due: Option<i64> = row.try_get("next_due")?;
                    Ok(QueueTick {
                        queue: row.try_get("name")?,
                        is_ready: row.try_get("ready")?,
                        next_due: next_due.map(|due| Duration::from_millis(u64::try_from(due - now).unwrap_or(0))),
                        is_paused: row.try_get("paused")?,
                        is_limited: row.try_get("limited")?,
                    })
                };
                rows.iter().map(tick).collect::<StoreResult<Vec<_>>>()
            };
            // A write waits for other writers. Therefore `PROMOTE`, which writes, runs only if a job is due.
            let mut ticks = look().await?;
            for tick in ticks.iter_mut().filter(|tick| tick.next_due == Some(Duration::ZERO)) {
                sqlx::query(PROMOTE).bind(&tick.queue).bind(now()).execute(&self.writer).await?;
                tick.is_ready = true;
            }
            Ok(ticks)
        }
        .boxed()
    }

    fn fetch<'a>(&'a self, requests: &'a [FetchRequest]) -> StoreFuture<'a, Vec<FetchedJob>> {
        async move {
            self.file.check_available()?;
            let mut jobs = Vec::new();
            for request in requests {
                let fetch = sqlx::query(FETCH).bind(request.queue).bind(&request.worker);
                let fetch = fetch.bind(i64::try_from(request.limit.min(MAX_ROWS)).unwrap_or(i64::MAX)).bind(now());
                for row in in_order(fetch.fetch_all(&self.writer).await?) {
                    jobs.push(fetched(&row)?);
                }
            }
            Ok(jobs)
        }
        .boxed()
    }

    fn fetch_limited<'a>(&'a self, request: &'a FetchRequest) -> StoreFuture<'a, LimitedFetch> {
        async move {
            self.file.check_available()?;
            let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
            let limits = sqlx::query(LIMITS).bind(request.queue).bind(now()).fetch_optional(&mut *tx).await?;
            let Some(row) = limits else { return Ok(LimitedFetch { has_more: true, ..LimitedFetch::default() }) };
            let limits = LimitsRow {
                is_paused: row.try_get("paused")?,
                max_running: row.try_get("max_running")?,
                max_running_per_key: row.try_get("max_running_per_key")?,
                rate_jobs: row.try_get("rate_jobs")?,
                rate_seconds: row.try_get("rate_seconds")?,
                allowed: row.try_get("allowed")?,
                running: row.try_get("running")?,
            };
            let (room, retry_after) = limits.room(request.limit.min(MAX_ROWS));
            let mut fetch = LimitedFetch { retry_after, ..LimitedFetch::default() };
            if room > 0 {
                let next = sqlx::query(FETCH_LIMITED).bind(request.queue).bind(&request.worker).bind(room);
                let rows = next.bind(limits.max_running_per_key).bind(now()).fetch_all(&mut *tx).await?;
                fetch.has_more = i64::try_from(rows.len()).is_ok_and(|rows| rows == room);
                for row in in_order(rows).iter().filter(|row| row.try_get("starts").unwrap_or(false)) {
                    fetch.jobs.push(fetched(row)?);
                }
                if let Some(allowed) = limits.allowed {
                    #[expect(clippy::cast_precision_loss, reason = "few jobs")]
                    let left = allowed - fetch.jobs.len() as f64;
                    let spend = "UPDATE background_tasks_queues SET rate_left = ?2, rate_at = ?3 WHERE name = ?1";
                    sqlx::query(spend).bind(request.queue).bind(left).bind(now()).execute(&mut *tx).await?;
                }
            }
            tx.commit().await?;
            Ok(fetch)
        }
        .boxed()
    }

    fn commit<'a>(&'a self, outcomes: &'a [Outcome]) -> StoreFuture<'a, Vec<Committed>> {
        async move {
            self.file.check_available()?;
            let row = |outcome: &'a Outcome| {
                let delay = outcome.delay().map(millis);
                let (result, error) = (outcome.result.as_deref(), outcome.error.as_deref());
                (outcome.id.to_string(), outcome.run, outcome.state(), i32::from(outcome.is_charged), delay, result, error)
            };
            let rows = json(&outcomes.iter().map(row).collect::<Vec<_>>());
            let commit = sqlx::query_as::<_, (String, String, Option<String>)>(COMMIT).bind(rows).bind(now());
            let mut ended = commit.fetch_all(&self.writer).await?;
            let applied: HashSet<String> = ended.iter().map(|(id, ..)| id.clone()).collect();
            let ids: Vec<_> = outcomes.iter().map(|outcome| outcome.id.to_string()).collect();
            let mut cancelled = HashSet::new();
            if applied.len() < ids.len() {
                let others: Vec<_> = ids.iter().filter(|id| !applied.contains(*id)).collect();
                let (others, rows) = (json(&others), sqlx::query_as::<_, (String, String, Option<String>)>);
                let released = rows(RELEASE_CANCELLED).bind(&others).fetch_all(&self.writer).await?;
                cancelled.extend(released.iter().map(|(id, ..)| id.clone()));
                ended.extend(released);
                ended.extend(rows(ENDED_OTHERWISE).bind(&others).fetch_all(&self.worker_pool).await?);
            }
            let keys: HashSet<_> = ended.into_iter().filter_map(|(_, queue, key)| Some((queue, key?))).collect();
            self.unblock_keys(keys).await?;
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
            self.file.check_available()?;
            let held = "SELECT id, run, state = 'cancelled' FROM background_tasks_jobs INDEXED BY background_tasks_jobs_held
                WHERE worker IN (SELECT value FROM json_each(?1)) AND worker IS NOT NULL";
            sqlx::query_as(held).bind(json(&workers)).fetch_all(&self.worker_pool).await?.into_iter().map(held_job).collect()
        }
        .boxed()
    }

    fn give_back<'a>(&'a self, jobs: &'a [HeldJob]) -> StoreFuture<'a> {
        async move {
            let give_back = "UPDATE background_tasks_jobs AS jobs SET state = 'available', worker = NULL
                FROM (SELECT value ->> 0 AS id, value ->> 1 AS run FROM json_each(?1)) AS held
                WHERE jobs.id = held.id AND jobs.run = held.run AND jobs.state = 'running'";
            let jobs: Vec<_> = jobs.iter().map(|job| (job.id.to_string(), job.run)).collect();
            sqlx::query(give_back).bind(json(&jobs)).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn prune<'a>(&'a self, queue: &'a str, retention: Duration, dead_retention: Duration) -> StoreFuture<'a, u64> {
        async move {
            self.file.check_available()?;
            let (now, mut deleted) = (now(), 0);
            for (state, age) in [("done", retention), ("cancelled", retention), ("dead", dead_retention)] {
                let prune = sqlx::query(PRUNE).bind(queue).bind(state).bind(now.saturating_sub(millis(age))).bind(now);
                deleted += prune.execute(&self.writer).await?.rows_affected();
            }
            Ok(deleted)
        }
        .boxed()
    }

    fn unblock<'a>(&'a self, queue: &'a str) -> StoreFuture<'a> {
        async move {
            let keys = "SELECT DISTINCT limit_key FROM background_tasks_jobs WHERE queue = ?1 AND state = 'blocked' LIMIT 1000";
            let keys: Vec<String> = sqlx::query_scalar(keys).bind(queue).fetch_all(&self.worker_pool).await?;
            self.unblock_keys(keys.into_iter().map(|key| (queue.to_owned(), key)).collect()).await
        }
        .boxed()
    }

    #[cfg(feature = "cron")]
    fn last_tick<'a>(&'a self, queue: &'a str, schedule: &'a str, tick: Option<i64>) -> StoreFuture<'a, Option<i64>> {
        async move {
            self.file.check_available()?;
            let last = "SELECT last_tick FROM background_tasks_schedules WHERE queue = ?1 AND key = ?2";
            let last = sqlx::query_scalar(last).bind(queue).bind(schedule).fetch_optional(&self.pool).await?;
            if let Some(tick) = tick {
                let store = "INSERT INTO background_tasks_schedules VALUES (?1, ?2, ?3) ON CONFLICT (queue, key)
                    DO UPDATE SET last_tick = excluded.last_tick WHERE last_tick < excluded.last_tick";
                sqlx::query(store).bind(queue).bind(schedule).bind(tick).execute(&self.writer).await?;
            }
            Ok(last)
        }
        .boxed()
    }

    fn save_checkpoint<'a>(&'a self, id: Ulid, run: i32, checkpoint: &'a str) -> StoreFuture<'a, bool> {
        async move {
            self.file.check_available()?;
            let save = "UPDATE background_tasks_jobs SET checkpoint = ?3 WHERE id = ?1 AND run = ?2 AND state = 'running'";
            let save = sqlx::query(save).bind(id.to_string()).bind(run).bind(checkpoint);
            Ok(save.execute(&self.writer).await?.rows_affected() == 1)
        }
        .boxed()
    }

    fn info<'a>(&'a self, queue: Option<&'a str>, id: Ulid) -> StoreFuture<'a, Option<JobInfo>> {
        async move {
            self.file.check_available()?;
            let query = format!("SELECT {COLUMNS} FROM background_tasks_jobs WHERE id = ?1 AND (?2 IS NULL OR queue = ?2)");
            let query = sqlx::query(AssertSqlSafe(query)).bind(id.to_string()).bind(queue);
            query.fetch_optional(&self.pool).await?.map(|row| info(&row)).transpose()
        }
        .boxed()
    }

    fn statuses<'a>(&'a self, ids: &'a [Ulid]) -> StoreFuture<'a, Vec<(Ulid, JobStatus)>> {
        async move {
            self.file.check_available()?;
            let ids: Vec<_> = ids.iter().map(Ulid::to_string).collect();
            let query = "SELECT id, state FROM background_tasks_jobs WHERE id IN (SELECT value FROM json_each(?1))";
            let rows: Vec<(String, String)> = sqlx::query_as(query).bind(json(&ids)).fetch_all(&self.pool).await?;
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
            self.file.check_available()?;
            let (columns, next) = order.sql();
            // If the job `after` was deleted since the previous page, this page starts with all jobs that have the same time as `after`.
            let first = if matches!(order, Order::Ended) { i64::MAX } else { 0 };
            let seq = format!("coalesce((SELECT seq FROM background_tasks_jobs WHERE id = ?4), {first})");
            let next = next.replace("@1", "?2").replace("@2", "?3").replace("@3", &seq).replace("@4", "?5");
            let query = format!(
                "SELECT {COLUMNS} FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_{}
                WHERE jobs.queue = ?1 AND {} AND {} ORDER BY {columns} LIMIT ?6",
                index_of(state),
                state_condition(state),
                if after.is_some() { &next } else { "1" },
            );
            let query = query.replace("jobs.@id", "jobs.seq");
            let query = sqlx::query(AssertSqlSafe(query)).bind(queue).bind(after.map_or(0, |info| info.position.priority));
            let query = query.bind(after.map_or(0, |info| to_millis(order.time(info))));
            let query =
                query.bind(after.map(|info| info.id().to_string())).bind(after.and_then(|info| info.position.limit_key.clone()));
            query.bind(i64::try_from(limit).unwrap_or(i64::MAX)).fetch_all(&self.pool).await?.iter().map(info).collect()
        }
        .boxed()
    }

    fn retry<'a>(&'a self, queue: &'a str, id: Option<Ulid>) -> StoreFuture<'a, (u64, bool)> {
        async move {
            self.file.check_available()?;
            let which = if id.is_some() { ("", "id = ?2") } else { (ENDED, "?2 IS NULL AND state IN ('done', 'dead', 'cancelled')") };
            // A dead job stays dead if another job uses its key now.
            let dead = format!(
                "SELECT seq FROM background_tasks_jobs AS dead {} WHERE queue = ?1 AND state = 'dead' AND {}
                AND (unique_key IS NULL OR NOT EXISTS (SELECT 1 FROM background_tasks_jobs AS other WHERE other.queue = ?1
                    AND other.unique_key = dead.unique_key
                    AND other.state IN ('scheduled', 'retrying', 'available', 'blocked', 'running')))
                ORDER BY ended_at LIMIT {MAX_ROWS}",
                which.0, which.1
            );
            let id = id.map(|id| id.to_string());
            let found = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM ({dead})"))).bind(queue).bind(&id);
            let found: i64 = found.fetch_one(&self.writer).await?;
            // If several dead jobs have the same key, `OR IGNORE` makes the statement retry one of them.
            let retry = format!(
                "UPDATE OR IGNORE background_tasks_jobs SET state = 'available', attempts = 0, crashes = 0, run_at = ?3, ended_at = NULL
                WHERE seq IN ({dead})"
            );
            let retry = sqlx::query(AssertSqlSafe(retry)).bind(queue).bind(&id).bind(now());
            Ok((retry.execute(&self.writer).await?.rows_affected(), usize::try_from(found) == Ok(MAX_ROWS)))
        }
        .boxed()
    }

    fn discard<'a>(&'a self, queue: &'a str, id: Option<Ulid>) -> StoreFuture<'a, u64> {
        async move {
            self.file.check_available()?;
            let discard = if id.is_some() {
                "DELETE FROM background_tasks_jobs WHERE queue = ?1 AND id = ?2 AND worker IS NULL AND state NOT IN ('running', 'done')
                RETURNING limit_key"
                    .to_owned()
            } else {
                format!(
                    "DELETE FROM background_tasks_jobs WHERE seq IN (SELECT seq FROM background_tasks_jobs {ENDED} WHERE queue = ?1
                    AND ?2 IS NULL AND state = 'dead' AND state IN ('done', 'dead', 'cancelled') ORDER BY ended_at LIMIT {MAX_ROWS})
                    RETURNING NULL"
                )
            };
            let discard = sqlx::query_scalar(AssertSqlSafe(discard)).bind(queue).bind(id.map(|id| id.to_string()));
            let keys: Vec<Option<String>> = discard.fetch_all(&self.writer).await?;
            self.unblock_next(queue, &keys).await;
            Ok(keys.len() as u64)
        }
        .boxed()
    }

    fn cancel<'a>(&'a self, queue: &'a str, id: Ulid) -> StoreFuture<'a, bool> {
        async move {
            self.file.check_available()?;
            let cancel = "UPDATE background_tasks_jobs SET state = 'cancelled', ended_at = ?3 WHERE queue = ?1 AND id = ?2
                AND state IN ('scheduled', 'retrying', 'available', 'blocked', 'running') RETURNING limit_key";
            let cancel = sqlx::query_scalar(cancel).bind(queue).bind(id.to_string()).bind(now());
            let keys: Vec<Option<String>> = cancel.fetch_all(&self.writer).await?;
            self.unblock_next(queue, &keys).await;
            Ok(!keys.is_empty())
        }
        .boxed()
    }

    /// Counts jobs with the partial indexes, instead of reading the whole table.
    fn counts<'a>(&'a self, queue: &'a str) -> StoreFuture<'a, QueueCounts> {
        async move {
            self.file.check_available()?;
            // `INDEXED BY` keeps the query planner from choosing another index.
            let count = |state| {
                let (index, condition, limit) = (index_of(state), state_condition(state), QueueCounts::LIMIT + 1);
                format!(
                    "SELECT '{state}', count(*) FROM (SELECT 1 FROM background_tasks_jobs AS jobs INDEXED BY background_tasks_jobs_{index}
                    WHERE queue = ?1 AND {condition} LIMIT {limit})"
                )
            };
            let query = AssertSqlSafe(STATES.map(count).join(" UNION ALL "));
            let mut counts = QueueCounts::default();
            for (state, jobs) in sqlx::query_as::<_, (String, i64)>(query).bind(queue).fetch_all(&self.pool).await? {
                counts.add(&state, jobs);
            }
            Ok(counts)
        }
        .boxed()
    }

    fn queues(&self) -> StoreFuture<'_, Vec<QueueInfo>> {
        async move {
            self.file.check_available()?;
            let index = |index: &str| format!("INDEXED BY background_tasks_jobs_{index}");
            let query = QUEUES.replace("@counts", &count_columns("background_tasks_jobs", index));
            let now = now();
            let rows = sqlx::query(AssertSqlSafe(query)).bind(now).fetch_all(&self.pool).await?;
            let info = |row: &SqliteRow| -> StoreResult<QueueInfo> {
                let mut counts = QueueCounts::default();
                for state in STATES {
                    counts.add(state, row.try_get(state)?);
                }
                let oldest: Option<i64> = row.try_get("oldest")?;
                let row = QueueRow {
                    name: row.try_get("name")?,
                    is_paused: row.try_get("paused")?,
                    running: row.try_get("max_running")?,
                    running_per_key: row.try_get("max_running_per_key")?,
                    rate_jobs: row.try_get("rate_jobs")?,
                    rate_seconds: row.try_get("rate_seconds")?,
                    oldest: oldest.map(|oldest| Duration::from_millis(u64::try_from(now - oldest).unwrap_or(0))),
                    workers: row.try_get("workers")?,
                };
                Ok(row.info(counts))
            };
            rows.iter().map(info).collect()
        }
        .boxed()
    }

    fn pause<'a>(&'a self, queue: &'a str, is_paused: bool) -> StoreFuture<'a> {
        async move {
            self.file.check_available()?;
            let pause = "INSERT INTO background_tasks_queues (name, paused) VALUES (?1, ?2)
                ON CONFLICT (name) DO UPDATE SET paused = excluded.paused";
            sqlx::query(pause).bind(queue).bind(is_paused).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn set_limits<'a>(&'a self, queue: &'a str, limits: QueueLimits) -> StoreFuture<'a> {
        async move {
            self.file.check_available()?;
            let set = "INSERT INTO background_tasks_queues
                    (name, max_running, max_running_per_key, rate_jobs, rate_seconds, rate_left, rate_at)
                VALUES (?1, ?2, ?3, ?4, ?5, coalesce(?4, 0), ?6) ON CONFLICT (name) DO UPDATE SET max_running = excluded.max_running,
                max_running_per_key = excluded.max_running_per_key, rate_jobs = excluded.rate_jobs, rate_seconds = excluded.rate_seconds,
                rate_left = CASE WHEN rate_jobs IS NULL THEN excluded.rate_left ELSE rate_left END";
            let (jobs, period) = limits.rate.unzip();
            let set = sqlx::query(set).bind(queue).bind(limits.running).bind(limits.running_per_key).bind(jobs.map(f64::from));
            set.bind(period.map(|period| period.as_secs_f64())).bind(now()).execute(&self.writer).await?;
            // The limits are stored, so the call succeeds even if this step fails. Maintenance repeats this step.
            let _ = self.unblock(queue).await;
            Ok(())
        }
        .boxed()
    }

    fn enqueued<'a>(&'a self, queue: &'a str) -> StoreFuture<'a, Vec<EnqueuedRow>> {
        async move {
            let jobs = format!(
                "SELECT {COLUMNS}, unique_key, run_at - enqueued_at AS delay FROM background_tasks_jobs
                WHERE queue = ?1 AND state IN ('scheduled', 'retrying', 'available', 'blocked') ORDER BY seq"
            );
            let rows = sqlx::query(AssertSqlSafe(jobs)).bind(queue).fetch_all(&self.pool).await?;
            let enqueued = |row: &SqliteRow| -> StoreResult<EnqueuedRow> {
                Ok(EnqueuedRow {
                    info: info(row)?,
                    delay: Duration::from_millis(u64::try_from(row.try_get::<i64, _>("delay")?).unwrap_or(0)),
                    unique_key: row.try_get("unique_key")?,
                })
            };
            rows.iter().map(enqueued).collect()
        }
        .boxed()
    }

    fn advance(&self, by: Duration) -> StoreFuture<'_> {
        async move {
            let advance = "UPDATE background_tasks_jobs SET run_at = run_at - ?1, enqueued_at = enqueued_at - ?1,
                ended_at = ended_at - ?1, unique_until = unique_until - ?1";
            sqlx::query(advance).bind(millis(by)).execute(&self.writer).await?;
            let advance = "UPDATE background_tasks_queues SET rate_at = rate_at - ?1";
            sqlx::query(advance).bind(millis(by)).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn sqlite(&self) -> Option<&SqlitePool> {
        Some(&self.pool)
    }
}

struct SqliteHeart {
    file: File,
    /// This connection is not from a pool. While a handler blocks the runtime of the program, tasks of this runtime may hold all
    /// connections of the pools, and cannot release them.
    conn: SqliteConnection,
    /// The version of the file. SQLite changes this number when another connection commits.
    version: Option<i64>,
}

impl Heart for SqliteHeart {
    fn beat<'a>(&'a mut self, workers: &'a [WorkerLease]) -> StoreFuture<'a, Vec<String>> {
        async move {
            self.file.check_available()?;
            let now = now();
            let expiry = |worker: &WorkerLease| (worker.id.clone(), now.saturating_add(millis(worker.lease)));
            let beat = "UPDATE background_tasks_workers SET expires_at = beat.expires_at
                FROM (SELECT value ->> 0 AS id, value ->> 1 AS expires_at FROM json_each(?1)) AS beat
                WHERE background_tasks_workers.id = beat.id RETURNING id";
            let beat = sqlx::query_scalar(beat).bind(json(&workers.iter().map(expiry).collect::<Vec<_>>()));
            let alive: HashSet<String> = beat.fetch_all(&mut self.conn).await?.into_iter().collect();
            let mut lost = Vec::new();
            for worker in workers.iter().filter(|worker| !alive.contains(&worker.id)) {
                let register = sqlx::query("INSERT OR IGNORE INTO background_tasks_workers VALUES (?1, ?2, ?3)");
                let register = register.bind(&worker.id).bind(worker.queue).bind(expiry(worker).1);
                register.execute(&mut self.conn).await?;
                lost.push(worker.id.clone());
            }
            Ok(lost)
        }
        .boxed()
    }

    fn deregister<'a>(&'a mut self, workers: &'a [String]) -> StoreFuture<'a> {
        async move {
            sqlx::query(DEREGISTER).bind(json(&workers)).execute(&mut self.conn).await?;
            Ok(())
        }
        .boxed()
    }

    fn recover(&mut self) -> StoreFuture<'_, u64> {
        async move {
            let now = now();
            if !sqlx::query_scalar(HAS_DEAD).bind(now).fetch_one(&mut self.conn).await? {
                return Ok(0);
            }
            let lost = sqlx::query(RECOVER).bind(now).execute(&mut self.conn).await?.rows_affected();
            let delete = "DELETE FROM background_tasks_workers WHERE expires_at < ?1";
            sqlx::query(delete).bind(now).execute(&mut self.conn).await?;
            Ok(lost + sqlx::query(RECOVER_UNSTARTED).execute(&mut self.conn).await?.rows_affected())
        }
        .boxed()
    }

    fn next_notice(&mut self, limit: Duration, poll_interval: Duration) -> StoreFuture<'_, Notice> {
        async move {
            let deadline = Instant::now() + limit;
            loop {
                let version: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut self.conn).await?;
                if self.version.replace(version) != Some(version) {
                    return Ok(Notice::Any);
                }
                let time_left = deadline.saturating_duration_since(Instant::now());
                if time_left.is_zero() {
                    return Ok(Notice::Nothing);
                }
                Delay::new(time_left.min(poll_interval)).await;
            }
        }
        .boxed()
    }
}

pub(crate) async fn complete(conn: &mut SqliteConnection, completion: &Completion) -> StoreResult<bool> {
    let complete =
        "UPDATE background_tasks_jobs SET state = 'done', worker = NULL, attempts = attempts + 1, ended_at = ?3, result = ?4,
        error = NULL, checkpoint = NULL WHERE id = ?1 AND run = ?2 AND state = 'running'";
    let complete = sqlx::query(complete).bind(completion.id.to_string()).bind(completion.run).bind(now()).bind(&completion.result);
    Ok(complete.execute(conn).await?.rows_affected() == 1)
}
