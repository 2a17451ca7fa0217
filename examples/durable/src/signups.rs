//! The sign-ups and their mails: a row and a job, which are committed together or not at all.

use background_tasks_durable::sqlx::{self, PgPool, SqlitePool};
use background_tasks_durable::{Durable, Info, JobId, Queue, Status};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The name of the queue. It is data: jobs of it wait in the database while another version of the program is deployed.
pub(crate) const QUEUE: &str = "mail";

/// How long a sign-up waits for its turn to write.
const PATIENCE: Duration = Duration::from_secs(5);

/// The job: the mail that is sent to who has signed up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) to: String,
}

#[derive(Clone, Debug)]
pub(crate) struct Signups {
    pub(crate) jobs: Durable,
    mails: Queue<Welcome>,
    /// SQLite has one writer at a time: here they wait in line, and leave the pool's other connections to those who read.
    line: Arc<Mutex<()>>,
}

/// A sign-up, and what became of its mail.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Signup {
    pub(crate) id: JobId,
    pub(crate) address: String,
    pub(crate) status: Status,
    /// Nothing more is going to happen.
    pub(crate) ended: bool,
    /// How many attempts are over.
    pub(crate) attempts: u32,
    /// All of it, for a person.
    pub(crate) message: String,
}

/// Why the database did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failed {
    why: String,
    /// Nothing was committed: whoever is asked to commit and then goes away may have done so.
    pub(crate) surely: bool,
}

impl Failed {
    fn of(error: impl fmt::Display) -> Self {
        Self { why: error.to_string(), surely: true }
    }

    fn in_commit(error: impl fmt::Display) -> Self {
        Self { surely: false, ..Self::of(error) }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

pub(crate) fn queue(jobs: &Durable) -> Queue<Welcome> {
    jobs.queue(QUEUE)
}

impl Signups {
    /// Makes the table unless it is there.
    pub(crate) async fn new(jobs: Durable) -> Result<Self, Failed> {
        let table = "CREATE TABLE IF NOT EXISTS signups (address TEXT PRIMARY KEY, job TEXT NOT NULL UNIQUE)";
        match pool(&jobs) {
            Pool::Sqlite(pool) => {
                sqlx::query(table).execute(pool).await.map_err(Failed::of)?;
            }
            Pool::Postgres(pool) => {
                let mut tx = pool.begin().await.map_err(Failed::of)?;
                // Two that make it at once would both find that it is not there.
                sqlx::query("SELECT pg_advisory_xact_lock(7479)").execute(&mut *tx).await.map_err(Failed::of)?;
                sqlx::query(table).execute(&mut *tx).await.map_err(Failed::of)?;
                tx.commit().await.map_err(Failed::of)?;
            }
        }
        let mails = queue(&jobs);
        Ok(Self { jobs, mails, line: Arc::default() })
    }

    /// Commits a sign-up and its mail. Returns which, and whether it is a new one: an address has one mail, however often it signs up.
    pub(crate) async fn add(&self, address: &str) -> Result<(JobId, bool), Failed> {
        let insert = "INSERT INTO signups (address, job) VALUES ($1, $2) ON CONFLICT (address) DO NOTHING";
        let mail = Welcome { to: address.to_owned() };
        match pool(&self.jobs) {
            Pool::Sqlite(pool) => {
                let begin = async { Ok::<_, sqlx::Error>((self.line.lock().await, pool.begin_with("BEGIN IMMEDIATE").await?)) };
                let (_turn, mut tx) = in_time(begin).await?;
                let id = self.mails.enqueue(mail).unique(address).within(&mut *tx).await.map_err(Failed::of)?;
                let row = sqlx::query(insert).bind(address).bind(id.to_string());
                if row.execute(&mut *tx).await.map_err(Failed::of)?.rows_affected() == 1 {
                    // A file that was deleted takes commits as long as it is open. The queue looks, the connection does not.
                    self.mails.info(id).await.map_err(Failed::of)?;
                    tx.commit().await.map_err(Failed::in_commit)?;
                    return Ok((id, true));
                }
            }
            Pool::Postgres(pool) => {
                let mut tx = in_time(pool.begin()).await?;
                let id = self.mails.enqueue(mail).unique(address).within(&mut *tx).await.map_err(Failed::of)?;
                let row = sqlx::query(insert).bind(address).bind(id.to_string());
                if row.execute(&mut *tx).await.map_err(Failed::of)?.rows_affected() == 1 {
                    tx.commit().await.map_err(Failed::in_commit)?;
                    return Ok((id, true));
                }
            }
        }
        // Without a commit: the job that is done may be gone from the queue by now, and would have been a new one.
        let id: String = self
            .one("SELECT job FROM signups WHERE address = $1", address)
            .await?
            .ok_or_else(|| Failed::of("the sign-up is gone"))?;
        Ok((id.parse().map_err(Failed::of)?, false))
    }

    /// Returns what became of a mail, `None` if there never was one.
    pub(crate) async fn look(&self, id: JobId) -> Result<Option<Signup>, Failed> {
        let address = self.one("SELECT address FROM signups WHERE job = $1", &id.to_string()).await?;
        let Some(address) = address else { return Ok(None) };
        let info = self.mails.info(id).await.map_err(Failed::of)?;
        Ok(Some(Signup::new(id, address, info.as_ref())))
    }

    async fn one(&self, query: &'static str, value: &str) -> Result<Option<String>, Failed> {
        let found = match pool(&self.jobs) {
            Pool::Sqlite(pool) => sqlx::query_scalar(query).bind(value).fetch_optional(pool).await,
            Pool::Postgres(pool) => sqlx::query_scalar(query).bind(value).fetch_optional(pool).await,
        };
        found.map_err(Failed::of)
    }
}

impl Signup {
    /// As it is when it has just been committed.
    pub(crate) fn begun(id: JobId, address: String) -> Self {
        let message = "The mail is about to be sent.".into();
        Self { id, address, status: Status::Waiting, ended: false, attempts: 0, message }
    }

    /// A job that was done is dropped from its queue after some days; the row stays.
    fn new(id: JobId, address: String, info: Option<&Info>) -> Self {
        let (status, attempts) = info.map_or((Status::Done, 1), |info| (info.status(), info.attempts()));
        let error = info.and_then(Info::error).unwrap_or("its process was ended");
        let message = match (status, attempts) {
            (Status::Done, 0 | 1) => "The mail has been sent.".into(),
            (Status::Done, _) => format!("The mail has been sent, at attempt {attempts}."),
            (Status::Dead, _) => format!("The mail could not be sent: {error}."),
            (Status::Retrying, _) => format!("The mail could not be sent yet: {error}. It is tried again."),
            (Status::Running, _) => "The mail is being sent.".into(),
            _ => return Self::begun(id, address),
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
        _ => unreachable!("a store is one of the two"),
    }
}

/// Those in line do not wait for as long as all those before them. Not for a commit, which nobody may give up half-way.
async fn in_time<T>(turn: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Failed> {
    match timeout(PATIENCE, turn).await {
        Ok(taken) => taken.map_err(Failed::of),
        Err(_) => Err(Failed::of("the database did not answer in time")),
    }
}
