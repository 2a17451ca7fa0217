//! Stores sign-ups and their mails. One transaction commits the row of a sign-up and the job of its mail.

use background_tasks_durable::sqlx::{self, PgPool, SqlitePool};
use background_tasks_durable::{Durable, JobId, JobInfo, JobStatus, Queue};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The name of the queue. Never change this name: jobs that wait in the database have the old name, and a new version of the
/// program would not find them.
pub(crate) const QUEUE: &str = "mail";

/// A request waits at most this long until its transaction starts, or until its queries return.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(5);

/// The payload of the job: the mail to a new user.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) to: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Signups {
    pub(crate) jobs: Durable,
    mails: Queue<Welcome>,
    /// SQLite allows only one writer at a time. A request that writes takes this lock before it takes a connection. Requests that
    /// wait for the lock therefore do not occupy connections that readers need.
    writer: Arc<Mutex<()>>,
}

/// A sign-up and the status of its mail.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Signup {
    pub(crate) id: JobId,
    pub(crate) address: String,
    pub(crate) status: JobStatus,
    /// Whether the status is final.
    pub(crate) ended: bool,
    /// The number of attempts that have finished.
    pub(crate) attempts: u32,
    /// Describes the status to the user in one sentence.
    pub(crate) message: String,
}

/// An error of the database.
#[derive(Debug)]
pub(crate) struct StoreError {
    text: String,
    /// `true` if certainly nothing was committed. `false` if the connection was lost during a commit: the server may have committed
    /// the transaction.
    pub(crate) is_rolled_back: bool,
}

impl StoreError {
    fn of(error: impl fmt::Display) -> Self {
        Self { text: error.to_string(), is_rolled_back: true }
    }

    fn in_commit(error: impl fmt::Display) -> Self {
        Self { is_rolled_back: false, ..Self::of(error) }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

pub(crate) fn queue(jobs: &Durable) -> Queue<Welcome> {
    jobs.queue(QUEUE)
}

impl Signups {
    /// Creates the table of the sign-ups if it is missing.
    pub(crate) async fn new(jobs: Durable) -> Result<Self, StoreError> {
        let table = "CREATE TABLE IF NOT EXISTS signups (address TEXT PRIMARY KEY, job TEXT NOT NULL UNIQUE)";
        match pool(&jobs) {
            Pool::Sqlite(pool) => {
                sqlx::query(table).execute(pool).await.map_err(StoreError::of)?;
            }
            Pool::Postgres(pool) => {
                let mut tx = pool.begin().await.map_err(StoreError::of)?;
                // This lock prevents two processes from creating the table at the same time.
                sqlx::query("SELECT pg_advisory_xact_lock(7479)").execute(&mut *tx).await.map_err(StoreError::of)?;
                sqlx::query(table).execute(&mut *tx).await.map_err(StoreError::of)?;
                tx.commit().await.map_err(StoreError::of)?;
            }
        }
        let mails = queue(&jobs);
        Ok(Self { jobs, mails, writer: Arc::default() })
    }

    /// Commits a sign-up and its mail. Returns the ID of the job, and whether the sign-up is new. If the address has already signed up,
    /// no second mail is sent.
    pub(crate) async fn add(&self, address: &str) -> Result<(JobId, bool), StoreError> {
        let insert = "INSERT INTO signups (address, job) VALUES ($1, $2) ON CONFLICT (address) DO NOTHING";
        let mail = Welcome { to: address.to_owned() };
        match pool(&self.jobs) {
            Pool::Sqlite(pool) => {
                let begin = async { Ok::<_, sqlx::Error>((self.writer.lock().await, pool.begin_with("BEGIN IMMEDIATE").await?)) };
                let (_writer, mut tx) = in_time(begin).await?;
                let id = self.mails.enqueue(mail).unique_key(address).in_transaction(&mut *tx).await.map_err(StoreError::of)?.id;
                let row = sqlx::query(insert).bind(address).bind(id.to_string());
                if row.execute(&mut *tx).await.map_err(StoreError::of)?.rows_affected() == 1 {
                    // If the database file was deleted, SQLite would still commit to the open file, and the sign-up would be lost.
                    // In this case, the following query returns an error.
                    self.mails.info(id).await.map_err(StoreError::of)?;
                    tx.commit().await.map_err(StoreError::in_commit)?;
                    return Ok((id, true));
                }
            }
            Pool::Postgres(pool) => {
                let mut tx = in_time(pool.begin()).await?;
                let id = self.mails.enqueue(mail).unique_key(address).in_transaction(&mut *tx).await.map_err(StoreError::of)?.id;
                let row = sqlx::query(insert).bind(address).bind(id.to_string());
                if row.execute(&mut *tx).await.map_err(StoreError::of)?.rows_affected() == 1 {
                    tx.commit().await.map_err(StoreError::in_commit)?;
                    return Ok((id, true));
                }
            }
        }
        // The address has already signed up, so the transaction is not committed. If the old job was deleted after its retention,
        // `enqueue` has added a new job to the transaction, which would send a second mail.
        let id: String = self
            .one("SELECT job FROM signups WHERE address = $1", address)
            .await?
            .ok_or_else(|| StoreError::of("the sign-up was deleted"))?;
        Ok((id.parse().map_err(StoreError::of)?, false))
    }

    /// Returns the status of a mail, or `None` if the sign-up does not exist.
    pub(crate) async fn find(&self, id: JobId) -> Result<Option<Signup>, StoreError> {
        in_time(async {
            let address = self.one("SELECT address FROM signups WHERE job = $1", &id.to_string()).await?;
            let Some(address) = address else { return Ok(None) };
            let info = self.mails.info(id).await.map_err(StoreError::of)?;
            Ok::<_, StoreError>(Some(Signup::new(id, address, info.as_ref())))
        })
        .await
    }

    async fn one(&self, query: &'static str, value: &str) -> Result<Option<String>, StoreError> {
        let found = match pool(&self.jobs) {
            Pool::Sqlite(pool) => sqlx::query_scalar(query).bind(value).fetch_optional(pool).await,
            Pool::Postgres(pool) => sqlx::query_scalar(query).bind(value).fetch_optional(pool).await,
        };
        found.map_err(StoreError::of)
    }
}

impl Signup {
    /// Returns a sign-up that has just been committed.
    pub(crate) fn committed(id: JobId, address: String) -> Self {
        let message = "The mail is about to be sent.".into();
        Self { id, address, status: JobStatus::Waiting, ended: false, attempts: 0, message }
    }

    /// Returns a sign-up with the status of its job. If there is no job, the mail has been sent: the job of a sent mail is deleted
    /// after its retention, but the row of the sign-up stays.
    fn new(id: JobId, address: String, info: Option<&JobInfo>) -> Self {
        let (status, attempts) = info.map_or((JobStatus::Done, 1), |info| (info.status(), info.attempts()));
        let error = info.and_then(JobInfo::error).unwrap_or("the process of the worker died");
        let message = match (status, attempts) {
            (JobStatus::Done, 0 | 1) => "The mail has been sent.".into(),
            (JobStatus::Done, _) => format!("The mail has been sent, at attempt {attempts}."),
            (JobStatus::Dead, _) => format!("The mail could not be sent: {error}."),
            (JobStatus::Retrying, _) => format!("The mail could not be sent yet: {error}. It will be retried."),
            (JobStatus::Running, _) => "The mail is being sent.".into(),
            _ => return Self::committed(id, address),
        };
        Self { id, address, status, ended: status.is_final(), attempts, message }
    }
}

enum Pool<'a> {
    Sqlite(&'a SqlitePool),
    Postgres(&'a PgPool),
}

fn pool(jobs: &Durable) -> Pool<'_> {
    match (jobs.sqlite_pool(), jobs.postgres_pool()) {
        (Some(pool), _) => Pool::Sqlite(pool),
        (_, Some(pool)) => Pool::Postgres(pool),
        _ => unreachable!("a store is SQLite or Postgres"),
    }
}

/// Limits the time that `work` may wait for the database. Do not use this function for a commit: if a commit is dropped before it
/// has ended, its result is unknown.
async fn in_time<T, E: fmt::Display>(work: impl Future<Output = Result<T, E>>) -> Result<T, StoreError> {
    match timeout(DATABASE_TIMEOUT, work).await {
        Ok(result) => result.map_err(StoreError::of),
        Err(_) => Err(StoreError::of("the database did not respond in time")),
    }
}
