use super::{Batch, MIGRATED, Order, Store, TICKS, Terms, Told, ids, migrated};
use crate::intake::{Polls, Start, engine};
use crate::{Counts, Error, Info};
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

/// How long somebody else may hold the file before it is an error.
const BUSY: Duration = Duration::from_secs(10);

/// What is dead: given up, or failed as often as the engine lets it.
const DEAD: &str = "status IN ('Killed', 'Failed') AND (status = 'Killed' OR attempts >= max_attempts)";

pub(crate) struct Sqlite {
    file: File,
    /// One connection: SQLite has one writer at a time, and a pool's line is fairer than the waits of its busy time-out.
    writer: SqlitePool,
    pool: SqlitePool,
}

impl Sqlite {
    pub(crate) async fn open(path: &Path) -> Told<Self> {
        // As seen from here: the program may go to another folder.
        let path = &std::path::absolute(path).map_err(|error| Error::Missing(format!("{}: {error}", path.display())))?;
        // `synchronous` is what makes a commit outlive a power cut; the engine's own set-up turns it off.
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .foreign_keys(true)
            .analysis_limit(1000);
        let denied = |why| Error::Denied(io::Error::new(ErrorKind::PermissionDenied, format!("{}: {why}", path.display())).into());
        let cannot = |error| match error {
            Error::Missing(text) => match OpenOptions::new().write(true).create(true).truncate(false).open(path) {
                Err(why) if matches!(why.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                    denied(why.to_string())
                }
                _ => Error::Missing(format!("{}: {text}", path.display())),
            },
            Error::Denied(sqlx::Error::Database(why)) => denied(why.message().to_owned()),
            Error::Schema(text) => Error::Schema(format!("{}: {text}", path.display())),
            other => other,
        };
        let pool = |most| {
            let options = SqlitePoolOptions::new().max_connections(most).acquire_timeout(BUSY * 3).test_before_acquire(false);
            // When the disk is full SQLite rolls back by itself, and the driver counts a transaction for ever that is not there.
            options.before_acquire(|conn, _| ready(Ok(!conn.is_in_transaction())).boxed())
        };
        let connect = || pool(1).idle_timeout(None).max_lifetime(None).connect_with(options.clone());
        let began = Instant::now();
        let writer = loop {
            match connect().await.map_err(|error| cannot(error.into())) {
                // Of those that turn a fresh file to its log at once, SQLite lets all but one wait for nothing.
                Err(Error::Locked(_)) if began.elapsed() < BUSY => Delay::new(Duration::from_millis(20)).await,
                connected => break connected?,
            }
        };
        migrate(&writer).await.map_err(cannot)?;
        let pool = pool(8).connect_lazy_with(options.create_if_missing(false));
        Ok(Self { file: File::at(path), writer, pool })
    }
}

/// All at once, so that of processes that start together one does it and the others find it done.
async fn migrate(writer: &SqlitePool) -> Told {
    let mut migrations = SqliteStorage::migrations();
    migrations.dangerous_set_table_name(MIGRATED);
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let strange = "SELECT name FROM sqlite_master WHERE name COLLATE NOCASE IN ('Jobs', 'Workers')
        AND NOT EXISTS (SELECT 1 FROM sqlite_master WHERE name = ?1) ORDER BY name";
    if let Some(table) = sqlx::query_scalar::<_, String>(strange).bind(MIGRATED).fetch_optional(&mut *tx).await? {
        return Err(Error::Schema(format!("there is a table {table} that this crate has not made")));
    }
    // As `run` does, whose future is not `Send` for the compiler.
    migrated(migrations.run_direct(None, &mut *tx, false).await)?;
    // Without it the upkeep looks at all that is done, while nobody else can write.
    let index = "CREATE INDEX IF NOT EXISTS background_tasks_ended ON Jobs(job_type, done_at) WHERE status = 'Done'";
    sqlx::query(index).execute(&mut *tx).await?;
    Ok(tx.commit().await?)
}

/// The file that was opened: one that was deleted or replaced takes writes that nobody will ever read.
struct File {
    path: PathBuf,
    is: Option<(u64, u64)>,
}

impl File {
    fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), is: identity(path) }
    }

    fn is_there(&self) -> Told {
        let now = identity(&self.path);
        if now.is_some() && now == self.is {
            return Ok(());
        }
        Err(Error::Missing(format!("{} was deleted or replaced while it was open", self.path.display())))
    }
}

#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().ok().map(|file| (file.dev(), file.ino()))
}

/// Elsewhere an open file cannot be deleted.
#[cfg(not(unix))]
fn identity(path: &Path) -> Option<(u64, u64)> {
    path.metadata().ok().map(|_| (0, 0))
}

/// One statement, so a transaction by itself, and one trip to the driver's thread.
pub(crate) async fn push(conn: &mut SqliteConnection, order: &Order, payloads: &[Vec<u8>]) -> Told<Vec<Ulid>> {
    let (ids, mut end) = (ids(payloads.len()), 0);
    let parts = ids.iter().zip(payloads).map(|(id, payload)| {
        let start = end + 1; // counted from one
        end += payload.len();
        (id.to_string(), start, payload.len())
    });
    let parts = serde_json::to_string(&parts.collect::<Vec<_>>()).expect("strings and numbers");
    let metadata = serde_json::to_string(&order.metadata().into_iter().collect::<BTreeMap<_, _>>()).expect("strings");
    let all = payloads.concat();
    loop {
        let insert =
            "INSERT INTO Jobs (id, job_type, job, status, attempts, max_attempts, run_at, priority, metadata, idempotency_key)
            SELECT value ->> 0, ?1, substr(?2, value ->> 1, value ->> 2), 'Pending', 0, ?3, coalesce(?4, unixepoch()), ?5, ?6, ?7
            FROM json_each(?8) WHERE true ON CONFLICT (job_type, idempotency_key) DO NOTHING";
        let insert = sqlx::query(insert).bind(order.queue).bind(&all).bind(Order::ATTEMPTS).bind(order.due);
        let insert = insert.bind(order.priority).bind(&metadata).bind(&order.key).bind(&parts);
        if insert.execute(&mut *conn).await?.rows_affected() > 0 {
            return Ok(ids);
        }
        let there = sqlx::query_scalar::<_, String>("SELECT id FROM Jobs WHERE job_type = ?1 AND idempotency_key = ?2");
        // Between the two it can be dropped, as done long ago.
        if let Some(there) = there.bind(order.queue).bind(&order.key).fetch_optional(&mut *conn).await? {
            return Ok(vec![ulid(&there)?]);
        }
    }
}

fn ulid(text: &str) -> Told<Ulid> {
    text.parse().map_err(|_| Error::Schema(format!("{text} is no identifier of a job")))
}

fn info(row: &SqliteRow) -> Told<Info> {
    let metadata: Option<String> = row.try_get("metadata")?;
    let metadata: serde_json::Value = metadata.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    Ok(Info::new(
        ulid(row.try_get("id")?)?,
        row.try_get("status")?,
        row.try_get("attempts")?,
        row.try_get("max_attempts")?,
        row.try_get("run_at")?,
        metadata[super::VERSION].as_str(),
        row.try_get::<Option<String>, _>("last_result")?.as_deref(),
        row.try_get("job")?,
    ))
}

/// Its clock has whole seconds.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))).unwrap_or(i64::MAX)
}

/// The next whole second, so that nothing comes too early.
fn due(after: Duration) -> i64 {
    let due = (SystemTime::now() + after).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let next = !after.is_zero() && due.subsec_nanos() > 0;
    i64::try_from(due.as_secs()).map_or(i64::MAX, |due| due + i64::from(next))
}

fn json(ids: &[String]) -> String {
    serde_json::to_string(ids).expect("strings")
}

impl Store for Sqlite {
    fn is_there(&self) -> Told {
        self.file.is_there()
    }

    fn push(&self, order: Order, payloads: Vec<Vec<u8>>) -> BoxFuture<'_, Told<Vec<Ulid>>> {
        async move {
            self.file.is_there()?;
            push(&mut *self.writer.acquire().await?, &order, &payloads).await
        }
        .boxed()
    }

    /// What it asked for comes before all that is asked after it: there is one connection.
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
        let storage = SqliteStorage::<Vec<u8>>::new(&self.writer).with_config(config);
        async move { signal.run_until_shutdown(engine(storage, name, polls, start)).await }.boxed()
    }

    fn settle<'a>(&'a self, worker: &'a str, batch: &'a Batch) -> BoxFuture<'a, Told> {
        async move {
            self.file.is_there()?;
            let mut tx = self.writer.begin_with("BEGIN IMMEDIATE").await?;
            if !batch.started.is_empty() {
                let start = "UPDATE Jobs SET status = 'Running' WHERE id IN (SELECT value FROM json_each(?1)) AND lock_by = ?2 AND status = 'Queued'";
                sqlx::query(start).bind(json(&batch.started)).bind(worker).execute(&mut *tx).await?;
            }
            // Before its outcome, which makes it to be had again.
            for (id, after) in &batch.again {
                let again = "UPDATE Jobs SET run_at = ?3 WHERE id = ?1 AND lock_by = ?2";
                sqlx::query(again).bind(id).bind(worker).bind(due(*after)).execute(&mut *tx).await?;
            }
            if !batch.ended.is_empty() {
                queries::ack_tasks(&mut *tx, &batch.ended.iter().collect::<Vec<_>>(), worker).await?;
            }
            if !batch.returned.is_empty() {
                let back = "UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                    WHERE id IN (SELECT value FROM json_each(?1)) AND lock_by = ?2 AND status IN ('Queued', 'Running')";
                sqlx::query(back).bind(json(&batch.returned)).bind(worker).execute(&mut *tx).await?;
            }
            for (id, after, why) in &batch.deferred {
                let defer = "UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_at = ?3,
                    last_result = json_object('Err', ?4) WHERE id = ?1 AND lock_by = ?2";
                sqlx::query(defer).bind(id).bind(worker).bind(due(*after)).bind(why).execute(&mut *tx).await?;
            }
            Ok(tx.commit().await?)
        }
        .boxed()
    }

    fn beat<'a>(&'a self, workers: &'a [String]) -> BoxFuture<'a, Told> {
        async move {
            self.file.is_there()?;
            let beat = "UPDATE Workers SET last_seen = unixepoch() WHERE id IN (SELECT value FROM json_each(?1))";
            sqlx::query(beat).bind(json(workers)).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn give_back<'a>(&'a self, worker: &'a str, but: &'a [String]) -> BoxFuture<'a, Told> {
        async move {
            // Not by the index of `lock_by`, in which all that the worker has done stands too.
            let back = "UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL
                WHERE +lock_by = ?1 AND status IN ('Queued', 'Running') AND id NOT IN (SELECT value FROM json_each(?2))";
            sqlx::query(back).bind(worker).bind(json(but)).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn sign_off<'a>(&'a self, worker: &'a str) -> BoxFuture<'a, Told> {
        async move {
            self.give_back(worker, &[]).await?;
            sqlx::query("UPDATE Workers SET last_seen = 0 WHERE id = ?1").bind(worker).execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn info<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<Option<Info>>> {
        async move {
            self.file.is_there()?;
            let asked = sqlx::query("SELECT * FROM Jobs WHERE id = ?1 AND job_type = ?2").bind(id.to_string()).bind(queue);
            asked.fetch_optional(&self.pool).await?.map(|row| info(&row)).transpose()
        }
        .boxed()
    }

    fn dead<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told<Vec<Info>>> {
        async move {
            self.file.is_there()?;
            let asked = format!("SELECT * FROM Jobs WHERE job_type = ?1 AND {DEAD} ORDER BY done_at, id");
            let asked = sqlx::query(sqlx::AssertSqlSafe(asked)).bind(queue);
            asked.fetch_all(&self.pool).await?.iter().map(info).collect()
        }
        .boxed()
    }

    fn retry<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<bool>> {
        async move {
            self.file.is_there()?;
            let again = format!(
                "UPDATE Jobs SET status = 'Pending', attempts = 0, run_at = unixepoch(), lock_by = NULL, lock_at = NULL, done_at = NULL
                WHERE id = ?1 AND job_type = ?2 AND {DEAD}"
            );
            let done = sqlx::query(sqlx::AssertSqlSafe(again)).bind(id.to_string()).bind(queue).execute(&self.writer).await?;
            Ok(done.rows_affected() == 1)
        }
        .boxed()
    }

    fn discard<'a>(&'a self, queue: &'a str, id: Ulid) -> BoxFuture<'a, Told<bool>> {
        async move {
            self.file.is_there()?;
            let discard = "DELETE FROM Jobs WHERE id = ?1 AND job_type = ?2 AND status IN ('Pending', 'Failed', 'Killed')";
            let done = sqlx::query(discard).bind(id.to_string()).bind(queue).execute(&self.writer).await?;
            Ok(done.rows_affected() == 1)
        }
        .boxed()
    }

    fn counts<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told<Counts>> {
        async move {
            self.file.is_there()?;
            // What did not fail is counted in an index alone.
            let asked = "SELECT status, 0 AS over, count(*) AS jobs FROM Jobs WHERE job_type = ?1 AND status <> 'Failed' GROUP BY 1
                UNION ALL SELECT status, attempts >= max_attempts, count(*) FROM Jobs
                WHERE job_type = ?1 AND status = 'Failed' GROUP BY 1, 2";
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
            self.file.is_there()?;
            let prune = "DELETE FROM Jobs WHERE id IN
                (SELECT id FROM Jobs WHERE job_type = ?1 AND status = 'Done' AND done_at <= unixepoch() - ?2
                AND (done_at <= unixepoch() - ?3 OR idempotency_key IS NULL OR idempotency_key NOT LIKE 'cron %') LIMIT 500)";
            let prune = sqlx::query(prune).bind(queue).bind(seconds(retain)).bind(seconds(TICKS));
            Ok(prune.execute(&self.writer).await?.rows_affected())
        }
        .boxed()
    }

    fn tidy<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Told> {
        async move {
            self.file.is_there()?;
            let gone = "DELETE FROM Workers WHERE last_seen < unixepoch() - 86400 AND worker_type = ?1
                AND NOT EXISTS (SELECT 1 FROM Jobs WHERE lock_by = Workers.id)";
            sqlx::query(gone).bind(queue).execute(&self.writer).await?;
            // Its planner goes by what was counted, and takes a large queue for a small one until it is counted again.
            sqlx::query("ANALYZE Jobs").execute(&self.writer).await?;
            Ok(())
        }
        .boxed()
    }

    fn sqlite(&self) -> Option<&SqlitePool> {
        Some(&self.pool)
    }
}
