use super::{CRON_KEY_RETENTION, JobSpec, OutcomeBatch, Store, StoreResult, VERSION, migrated, new_ids, parse_id};
use crate::engine::{FetchConfig, PollTimer, StartJob, run_engine};
use crate::error::Error;
use crate::job::{JobInfo, QueueCounts};
use apalis_sqlite::{Config, SqliteStorage, queries};
use background_tasks::ShutdownSignal;
use futures_timer::Delay;
use futures_util::future::{BoxFuture, FutureExt, ready};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Connection, Row, SqliteConnection, SqlitePool};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use ulid::Ulid;

/// How long a call waits while another connection locks the file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The table in which the migrations record their progress, separate from the table of the program's own migrations.
const MIGRATIONS_TABLE: &str = "background_tasks_migrations";

/// Matches dead jobs: killed, or failed as often as the engine allows.
const DEAD: &str = "status IN ('Killed', 'Failed') AND (status = 'Killed' OR attempts >= max_attempts)";

pub(crate) struct Sqlite {
    file: File,
    /// A single connection: SQLite has one writer at a time, and the queue of a pool is fairer than SQLite's busy timeout.
    writer: SqlitePool,
    pool: SqlitePool,
}

impl Sqlite {
    pub(crate) async fn open(path: &Path) -> StoreResult<Self> {
        // The program may change its working directory.
        let path = &std::path::absolute(path).map_err(|error| Error::Unavailable(format!("{}: {error}", path.display())))?;
        // `synchronous` makes commits survive a power failure. The engine's own setup turns it off.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(LOCK_TIMEOUT)
            .foreign_keys(true)
            .analysis_limit(1000);
        let denied = |reason: String| {
            Error::Denied(io::Error::new(ErrorKind::PermissionDenied, format!("{}: {reason}", path.display())).into())
        };
        let with_path = |error| match error {
            Error::Unavailable(text) => match OpenOptions::new().write(true).create(true).truncate(false).open(path) {
                Err(cause) if matches!(cause.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                    denied(cause.to_string())
                }
                _ => Error::Unavailable(format!("{}: {text}", path.display())),
            },
            Error::Denied(sqlx::Error::Database(cause)) => denied(cause.message().to_owned()),
            Error::Schema(text) => Error::Schema(format!("{}: {text}", path.display())),
            other => other,
        };
        let pool = |max_connections| {
            let options = SqlitePoolOptions::new()
                .max_connections(max_connections)
                .acquire_timeout(LOCK_TIMEOUT * 3)
                .test_before_acquire(false);
            // SQLite rolls back when the disk is full, but the driver then counts an open transaction on this connection forever.
            options.before_acquire(|conn, _| ready(Ok(!conn.is_in_transaction())).boxed())
        };
        let connect = || pool(1).idle_timeout(None).max_lifetime(None).connect_with(options.clone());
        let start = Instant::now();
        let writer = loop {
            match connect().await.map_err(|error| with_path(error.into())) {
                // When several connections switch a new file to its write-ahead log, SQLite fails for all but one without waiting.
                Err(Error::Locked(_)) if start.elapsed() < LOCK_TIMEOUT => Delay::new(Duration::from_millis(20)).await,
                connected => break connected?,
            }
        };
        migrate(&writer).await.map_err(with_path)?;
        let pool = pool(8).connect_lazy_with(options.create_if_missing(false));
        Ok(Self { file: File::at(path), writer, pool })
    }
}

/// Runs all migrations in one transaction: if several processes start together, one creates the tables and the others find them.
async fn migrate(writer: &SqlitePool) -> StoreResult {
    let mut migrations = SqliteStorage::migrations();
    migrations.dangerous_set_table_name(MIGRATIONS_TABLE);
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let foreign = "SELECT name FROM sqlite_master WHERE name COLLATE NOCASE IN ('Jobs', 'Workers')
        AND NOT EXISTS (SELECT 1 FROM sqlite_master WHERE name = ?1) ORDER BY name";
    if let Some(table) = sqlx::query_scalar::<_, String>(foreign).bind(MIGRATIONS_TABLE).fetch_optional(&mut *tx).await? {
        return Err(Error::Schema(format!("table {table} exists but was not created by this crate")));
    }
    // `run` does the same, but the compiler does not recognize its future as `Send`.
    migrated(migrations.run_direct(None, &mut *tx, false).await)?;
    // Without this index, pruning scans all finished jobs while it blocks all other writers.
    let index = "CREATE INDEX IF NOT EXISTS background_tasks_ended ON Jobs(job_type, done_at) WHERE status = 'Done'";
    sqlx::query(index).execute(&mut *tx).await?;
    Ok(tx.commit().await?)
}

/// The identity of the opened file. If the file was deleted or replaced, writes still succeed but are lost.
struct File {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl File {
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }

    fn check_available(&self) -> StoreResult {
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

/// On other systems an open file cannot be deleted.
#[cfg(not(unix))]
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|_| (0, 0))
}

/// Inserts the jobs in a single statement, which is a transaction and one round trip to the driver's thread.
pub(crate) async fn push(conn: &mut SqliteConnection, spec: &JobSpec, payloads: &[Vec<u8>]) -> StoreResult<Vec<Ulid>> {
    let (ids, mut end) = (new_ids(payloads.len()), 0);
    let parts = ids.iter().zip(payloads).map(|(id, payload)| {
        let start = end + 1; // SQL counts from one
        end += payload.len();
        (id.to_string(), start, payload.len())
    });
    let parts = serde_json::to_string(&parts.collect::<Vec<_>>()).expect("strings and numbers");
    let metadata = serde_json::to_string(&spec.metadata().into_iter().collect::<BTreeMap<_, _>>()).expect("strings");
    let all = payloads.concat();
    loop {
        let insert =
            "INSERT INTO Jobs (id, job_type, job, status, attempts, max_attempts, run_at, priority, metadata, idempotency_key)
            SELECT value ->> 0, ?1, substr(?2, value ->> 1, value ->> 2), 'Pending', 0, ?3, coalesce(?4, unixepoch()), ?5, ?6, ?7
            FROM json_each(?8) WHERE true ON CONFLICT (job_type, idempotency_key) DO NOTHING";
        let insert = sqlx::query(insert).bind(spec.queue).bind(&all).bind(JobSpec::MAX_ATTEMPTS).bind(spec.run_at);
        let insert = insert.bind(spec.priority).bind(&metadata).bind(&spec.unique_key).bind(&parts);
        if insert.execute(&mut *conn).await?.rows_affected() > 0 {
            return Ok(ids);
        }
        let existing = sqlx::query_scalar::<_, String>("SELECT id FROM Jobs WHERE job_type = ?1 AND idempotency_key = ?2");
        // Between the two statements, maintenance may have deleted the job.
        if let Some(id) = existing.bind(spec.queue).bind(&spec.unique_key).fetch_optional(&mut *conn).await? {
            return Ok(vec![parse_id(&id)?]);
        }
    }
}

fn info(row: &SqliteRow) -> StoreResult<JobInfo> {
    let metadata: Option<String> = row.try_get("metadata")?;
    let metadata: serde_json::Value = metadata.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(JobInfo::new(
        parse_id(row.try_get("id")?)?,
        row.try_get("status")?,
        row.try_get("attempts")?,
        row.try_get("max_attempts")?,
        row.try_get("run_at")?,
        metadata[VERSION].as_str(),
        row.try_get::<Option<String>, _>("last_result")?.as_deref(),
        row.try_get("job")?,
    ))
}

/// Rounds up to whole seconds, the unit of SQLite's clock.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))).unwrap_or(i64::MAX)
}

/// Rounds up to the next whole second, so that no job starts early.
fn due(delay: Duration) -> i64 {
    let due = (SystemTime::now() + delay).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let next = !delay.is_zero() && due.subsec_nanos() > 0;
    i64::try_from(due.as_secs()).map_or(i64::MAX, |due| due + i64::from(next))
}

fn json(ids: &[String]) -> String {
    serde_json::to_string(ids).expect("strings")
}

impl Store for Sqlite {
    fn check_available(&self) -> StoreResult {
        self.file.check_available()
    }

    fn push(&self, spec: JobSpec, payloads: Vec<Vec<u8>>) -> BoxFuture<'_, StoreResult<Vec<Ulid>>> {
        async move {
            self.file.check_available()?;
            push(&mut *self.writer.acquire().await?, &spec, &payloads).await
        }
        .boxed()
    }

    /// The engine's statements precede all later ones, because there is a single connection.
    fn run_engine(
        &self,
        name: String,
        config: FetchConfig,
        timer: PollTimer,
        start: Arc<StartJob>,
        signal: ShutdownSignal,
    ) -> BoxFuture<'static, Option<Error>> {
        let config = Config::default()
            .queue(config.queue)
            .batch_size(config.batch_size)
            .heartbeat_interval(config.heartbeat_interval)
            .missed_heartbeats(config.missed_heartbeats)
            .lock_tasks(false)
            .persist_results(false);
        let storage = SqliteStorage::<Vec<u8>>::new(&self.writer).with_config(config);
        async move { signal.run_until_shutdown(run_engine(storage, name, timer, start)).await }.boxed()
    }

    fn commit_outcomes<'a>(&'a self, engine: &'a str, batch: &'a OutcomeBatch) -> BoxFuture<'a, StoreResult> {
        async move {
            self.file.check_available()?;
            let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
            if !batch.started.is_empty() {
                let start = "UPDATE Jobs SET status = 'Running' WHERE id IN (SELECT value FROM json_each(?1)) AND lock_by = ?2 AND status = 'Queued'";
                sqlx::query(start).bind(json(&batch.started)).bind(engine).execute(&mut *tx).await?;
            }
            // Before the acknowledgement, which makes the job available again.
            for (id, delay) in &batch.retries {
                let retry = "UPDATE Jobs SET run_at = ?3 WHERE id = ?1 AND lock_by = ?2";
                sqlx::query(retry).bind(id).bind(engine).bind(due(*delay)).execute(&mut *tx).await?;
            }
            if !batch.ended.is_empty() {
                queries::ack_tasks(&mut *tx, &batch.ended.iter().collect::<Vec<_>>(), engine).await?;
            }
            if !batch.returned.is_empty() {
                let release = "UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                    WHERE id IN (SELECT value FROM json_each(?1)) AND lock_by = ?2 AND status IN ('Queued', 'Running')";
                sqlx::query(release).bind(json(&batch.returned)).bind(engine).execute(&mut *tx).await?;
            }
            for (id, delay, reason) in &batch.deferred {
                let defer = "UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_at = ?3,
                    last_result = json_object('Err', ?4) WHERE id = ?1 AND lock_by = ?2";
                sqlx::query(defer).bind(id).bind(engine).bind(due(*delay)).bind(reason).execute(&mut *tx).await?;
            }
            Ok(tx.commit().await?)
        }
        .boxed()
    }

    fn heartbeat<'a>(&'a self, engines: &'a [String]) -> BoxFuture<'a, StoreResult> {
        async move {
            self.file.check_available()?;
            let heartbeat = "UPDATE Workers SET last_seen = unixepoch() WHERE id IN (SELECT value FROM json_each(?1))";
            sqlx::query(heartbeat).bind(json(engines)).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn release<'a>(&'a self, engine: &'a str, except: &'a [String]) -> BoxFuture<'a, StoreResult> {
        async move {
            // `+` avoids the index of `lock_by`, which also contains every job that the engine has finished.
            let release = "UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                WHERE +lock_by = ?1 AND status IN ('Queued', 'Running') AND id NOT IN (SELECT value FROM json_each(?2))";
            sqlx::query(release).bind(engine).bind(json(except)).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn deregister<'a>(&'a self, engine: &'a str) -> BoxFuture<'a, StoreResult> {
        async move {
            self.release(engine, &[]).await?;
            sqlx::query("UPDATE Workers SET last_seen = 0 WHERE id = ?1").bind(engine).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn info<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<Option<JobInfo>>> {
        async move {
            self.file.check_available()?;
            let query = sqlx::query("SELECT * FROM Jobs WHERE id = ?1 AND job_type = ?2").bind(id.to_string()).bind(queue);
            query.fetch_optional(&self.pool).await?.map(|row| info(&row)).transpose()
        }
        .boxed()
    }

    fn dead<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult<Vec<JobInfo>>> {
        async move {
            self.file.check_available()?;
            let query = format!("SELECT * FROM Jobs WHERE job_type = ?1 AND {DEAD} ORDER BY done_at, id");
            let query = sqlx::query(sqlx::AssertSqlSafe(query)).bind(queue);
            query.fetch_all(&self.pool).await?.iter().map(info).collect()
        }
        .boxed()
    }

    fn retry<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<bool>> {
        async move {
            self.file.check_available()?;
            let retry = format!(
                "UPDATE Jobs SET status = 'Pending', attempts = 0, run_at = unixepoch(), lock_by = NULL, lock_at = NULL, done_at = NULL
                WHERE id = ?1 AND job_type = ?2 AND {DEAD}"
            );
            let done = sqlx::query(sqlx::AssertSqlSafe(retry)).bind(id.to_string()).bind(queue).execute(&self.writer).await?;
            Ok(done.rows_affected() == 1)
        }
        .boxed()
    }

    fn discard<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, StoreResult<bool>> {
        async move {
            self.file.check_available()?;
            let discard = "DELETE FROM Jobs WHERE id = ?1 AND job_type = ?2 AND status IN ('Pending', 'Failed', 'Killed')";
            let done = sqlx::query(discard).bind(id.to_string()).bind(queue).execute(&self.writer).await?;
            Ok(done.rows_affected() == 1)
        }
        .boxed()
    }

    fn counts<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult<QueueCounts>> {
        async move {
            self.file.check_available()?;
            // Jobs that did not fail are counted in an index alone.
            let query = "SELECT status, 0 AS over, count(*) AS jobs FROM Jobs WHERE job_type = ?1 AND status <> 'Failed' GROUP BY 1
                UNION ALL SELECT status, attempts >= max_attempts, count(*) FROM Jobs
                WHERE job_type = ?1 AND status = 'Failed' GROUP BY 1, 2";
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
            self.file.check_available()?;
            let prune = "DELETE FROM Jobs WHERE id IN
                (SELECT id FROM Jobs WHERE job_type = ?1 AND status = 'Done' AND done_at <= unixepoch() - ?2
                AND (done_at <= unixepoch() - ?3 OR idempotency_key IS NULL OR idempotency_key NOT LIKE 'cron %') LIMIT 500)";
            let prune = sqlx::query(prune).bind(queue).bind(seconds(retention)).bind(seconds(CRON_KEY_RETENTION));
            Ok(prune.execute(&self.writer).await?.rows_affected())
        }
        .boxed()
    }

    fn clean_up<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, StoreResult> {
        async move {
            self.file.check_available()?;
            let dead = "DELETE FROM Workers WHERE last_seen < unixepoch() - 86400 AND worker_type = ?1
                AND NOT EXISTS (SELECT 1 FROM Jobs WHERE lock_by = Workers.id)";
            sqlx::query(dead).bind(queue).execute(&self.writer).await?;
            // The query planner relies on these statistics: without an update it treats a large queue as small.
            sqlx::query("ANALYZE Jobs").execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn sqlite(&self) -> Option<&SqlitePool> {
        Some(&self.pool)
    }
}
