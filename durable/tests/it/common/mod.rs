//! Provides stores for the tests, and helpers that wait for a condition.

pub(crate) mod postgres;

use self::postgres::Postgres;
use background_tasks::{Loss, Observer, Registry, TaskInfo, TokioSpawner};
use background_tasks_durable::{Durable, sqlx};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;

/// The time limit of a test. A test that takes longer hangs.
pub(crate) const HANG: Duration = Duration::from_mins(2);

/// The Postgres server of this test binary. When this process exits, the guard process stops the server and removes its folder.
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

/// A database that only one test uses.
pub(crate) struct TestDatabase {
    pub(crate) address: String,
    pub(crate) is_postgres: bool,
    /// Deletes the SQLite file when the test ends.
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

    /// Opens the store in the same way as another process. Two handles from this method share only the database.
    pub(crate) async fn open(&self) -> Durable {
        Durable::connect(&self.address).await.unwrap()
    }
}

/// Runs a test with a new store on SQLite. If Postgres is installed, also runs the test with a new store on Postgres.
pub(crate) async fn on_each_store(test: impl AsyncFn(Durable)) {
    on_each_database(async |database| test(database.open().await).await).await;
}

/// Does the same as [`on_each_store`], for tests that open the store more than one time.
pub(crate) async fn on_each_database(test: impl AsyncFn(&TestDatabase)) {
    for database in [Some(TestDatabase::sqlite()), TestDatabase::postgres()].into_iter().flatten() {
        let store = if database.is_postgres { "Postgres" } else { "SQLite" };
        eprintln!("on {store}"); // shows which store a failed test ran on
        tokio::time::timeout(HANG, test(&database)).await.unwrap_or_else(|_| panic!("the test hangs on {store}"));
    }
}

/// Executes SQL. The placeholders `{jobs}` and `{workers}` stand for the names of the tables. Returns the number of changed rows.
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

/// Returns the first column of all rows of a query as numbers. To get a boolean, use CASE, because only SQLite returns booleans as
/// numbers.
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

/// Calls `condition` again and again until it returns a value. `what` describes the condition in the panic message.
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

/// The payload of the jobs in most tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mail {
    pub(crate) to: String,
}

pub(crate) fn mail(to: &str) -> Mail {
    Mail { to: to.to_owned() }
}

/// The outcome of the task, the name of the task, and the message of the loss.
type RecordedLoss = (&'static str, &'static str, String);

/// An observer that records the losses of accepted tasks.
#[derive(Clone, Default)]
pub(crate) struct Losses(Arc<Mutex<Vec<RecordedLoss>>>);

impl Losses {
    pub(crate) fn all(&self) -> Vec<RecordedLoss> {
        self.0.lock().unwrap().clone()
    }

    /// Does the same as [`all`](Self::all), but sorts the losses. An attempt may report its loss after the next attempt has.
    pub(crate) fn sorted(&self) -> Vec<RecordedLoss> {
        let mut all = self.all();
        all.sort();
        all
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

/// Returns a registry with inspection on the current runtime, and the observer that records the losses of the registry.
pub(crate) fn registry() -> (Registry<TokioSpawner>, Losses) {
    let losses = Losses::default();
    (Registry::builder(TokioSpawner).inspect().observer(losses.clone()).build(), losses)
}

/// Panics without a call to the panic hook, because the hook would print a message.
pub(crate) fn panic_quietly(message: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(message))
}
