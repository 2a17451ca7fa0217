//! Stores for tests, and helpers to observe events without sleeping.

pub(crate) mod postgres;

use self::postgres::Postgres;
use background_tasks::{Loss, Observer, Registry, TaskInfo, TokioSpawner};
use background_tasks_durable::{Durable, sqlx};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// The time limit of a test, which only a hang exceeds.
pub(crate) const HANG: Duration = Duration::from_mins(2);

/// The server of this test binary. Its guard process removes it when this process exits.
static SERVER: LazyLock<Option<Mutex<Postgres>>> = LazyLock::new(|| {
    let settings = [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")];
    match Postgres::start_with(&settings) {
        Ok(server) => Some(Mutex::new(server)),
        Err(why) => {
            testing::skip("postgres", why);
            None
        }
    }
});

fn server() -> Option<MutexGuard<'static, Postgres>> {
    SERVER.as_ref().map(|server| server.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A database of a single test.
pub(crate) struct TestDatabase {
    pub(crate) address: String,
    pub(crate) is_postgres: bool,
    /// Deletes the file of the database when the test ends.
    _folder: Option<TempDir>,
}

impl TestDatabase {
    pub(crate) fn sqlite() -> Self {
        let folder = TempDir::new().unwrap();
        let address = folder.path().join("jobs.db").to_str().unwrap().to_owned();
        Self { address, is_postgres: false, _folder: Some(folder) }
    }

    /// Returns `None` if Postgres is not installed.
    pub(crate) fn postgres() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Some(Self { address: server()?.database(&name), is_postgres: true, _folder: None })
    }

    /// Opens the store as another process would: the handles share only the database.
    pub(crate) async fn open(&self) -> Durable {
        Durable::connect(&self.address).await.unwrap()
    }
}

/// Runs a test on SQLite and, if it is installed, on Postgres, each time with a new store.
pub(crate) async fn on_each_store(test: impl AsyncFn(Durable)) {
    on_each_database(async |database| test(database.open().await).await).await;
}

/// Like [`on_each_store`], for tests that open the store several times.
pub(crate) async fn on_each_database(test: impl AsyncFn(&TestDatabase)) {
    for database in [Some(TestDatabase::sqlite()), TestDatabase::postgres()].into_iter().flatten() {
        let store = if database.is_postgres { "Postgres" } else { "SQLite" };
        eprintln!("on {store}"); // shows which store a failed test ran on
        tokio::time::timeout(HANG, test(&database)).await.unwrap_or_else(|_| panic!("the test hangs on {store}"));
    }
}

/// Executes SQL, in which `{jobs}` and `{workers}` are the tables. Returns the number of changed rows.
pub(crate) async fn sql(jobs: &Durable, text: &str) -> u64 {
    let text = |jobs, workers| sqlx::AssertSqlSafe(text.replace("{jobs}", jobs).replace("{workers}", workers));
    match (jobs.sqlite_pool(), jobs.postgres_pool()) {
        (Some(pool), _) => {
            sqlx::query(text("background_tasks_jobs", "background_tasks_workers")).execute(pool).await.unwrap().rows_affected()
        }
        (_, Some(pool)) => {
            sqlx::query(text("background_tasks.jobs", "background_tasks.workers")).execute(pool).await.unwrap().rows_affected()
        }
        _ => unreachable!(),
    }
}

/// Returns the first column of a query's rows as numbers. Use CASE for booleans: only SQLite returns them as numbers.
pub(crate) async fn numbers(jobs: &Durable, text: &str) -> Vec<i64> {
    let text = |jobs, workers| sqlx::AssertSqlSafe(text.replace("{jobs}", jobs).replace("{workers}", workers));
    match (jobs.sqlite_pool(), jobs.postgres_pool()) {
        (Some(pool), _) => {
            sqlx::query_scalar(text("background_tasks_jobs", "background_tasks_workers")).fetch_all(pool).await.unwrap()
        }
        (_, Some(pool)) => {
            sqlx::query_scalar(text("background_tasks.jobs", "background_tasks.workers")).fetch_all(pool).await.unwrap()
        }
        _ => unreachable!(),
    }
}

/// Polls a condition until it returns a value. `what` describes the condition in the panic message.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let value = async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANG / 2, value).await.unwrap_or_else(|_| panic!("timed out waiting until: {what}"))
}

/// The payload of most tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mail {
    pub(crate) to: String,
}

pub(crate) fn mail(to: &str) -> Mail {
    Mail { to: to.to_owned() }
}

/// The outcome, the task's name and the message.
type RecordedLoss = (&'static str, &'static str, String);

/// Records the losses of accepted tasks that a registry reports.
#[derive(Clone, Default)]
pub(crate) struct Losses(Arc<Mutex<Vec<RecordedLoss>>>);

impl Losses {
    pub(crate) fn all(&self) -> Vec<RecordedLoss> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Losses {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        let message = match *loss {
            Loss::Failed(message) | Loss::Panicked(message) => message,
            Loss::Rejected(_) => return,
            _ => "",
        };
        self.0.lock().unwrap().push((loss.outcome(), task.name().unwrap_or_default(), message.to_owned()));
    }
}

/// Returns a registry with inspection on this runtime, and its losses.
pub(crate) fn registry() -> (Registry<TokioSpawner>, Losses) {
    let losses = Losses::default();
    (Registry::builder(TokioSpawner).inspect().observer(losses.clone()).build(), losses)
}

/// Panics without the panic hook, which would print a message.
pub(crate) fn panic_quietly(message: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(message))
}
