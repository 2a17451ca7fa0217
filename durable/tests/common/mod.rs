//! A store of each kind for each test, and ways to know what happened without sleeping.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub(crate) mod postgres;

use self::postgres::Postgres;
use background_tasks::{Observer, Registry, TaskInfo, TokioSpawner};
use background_tasks_durable::{Durable, sqlx};
use serde::{Deserialize, Serialize};
use std::io::{Write, stderr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Long enough that only a hang gets there.
pub(crate) const HANG: Duration = Duration::from_mins(2);

/// The server of this test binary, whose shell removes it when the process ends.
static SERVER: LazyLock<Option<Mutex<Postgres>>> = LazyLock::new(|| {
    let settings = [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")];
    match Postgres::start_with(&settings) {
        Ok(server) => Some(Mutex::new(server)),
        Err(why) => {
            // Past the capture of a test that passes.
            let _ = writeln!(stderr(), "skipped: Postgres: {why}");
            None
        }
    }
});

fn server() -> Option<MutexGuard<'static, Postgres>> {
    SERVER.as_ref().map(|server| server.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A database that no other test has.
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) is_postgres: bool,
    folder: Option<TempDir>,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let folder = TempDir::new().unwrap();
        let address = folder.path().join("jobs.db").to_str().unwrap().to_owned();
        Self { address, is_postgres: false, folder: Some(folder) }
    }

    /// `None` where Postgres cannot be had.
    pub(crate) fn postgres() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Some(Self { address: server()?.database(&name), is_postgres: true, folder: None })
    }

    /// As another process would: nothing is shared with the other handles but the database.
    pub(crate) async fn open(&self) -> Durable {
        Durable::connect(&self.address).await.unwrap()
    }
}

/// Runs a test on a SQLite file, and on Postgres where it can be had; each time with a handle that is fresh.
pub(crate) async fn each(test: impl AsyncFn(Durable)) {
    each_place(async |place| test(place.open().await).await).await;
}

/// As [`each`], for tests that open it more than once.
pub(crate) async fn each_place(test: impl AsyncFn(&Place)) {
    for place in [Some(Place::sqlite()), Place::postgres()].into_iter().flatten() {
        let store = if place.is_postgres { "Postgres" } else { "SQLite" };
        eprintln!("on {store}"); // which of the two, if it fails
        tokio::time::timeout(HANG, test(&place)).await.unwrap_or_else(|_| panic!("it hangs on {store}"));
    }
}

/// Does what SQL says: `{jobs}` and `{workers}` are the tables. Returns how many rows were changed.
pub(crate) async fn sql(jobs: &Durable, text: &str) -> u64 {
    let text = |jobs, workers| sqlx::AssertSqlSafe(text.replace("{jobs}", jobs).replace("{workers}", workers));
    match (jobs.sqlite_pool(), jobs.postgres_pool()) {
        (Some(pool), _) => sqlx::query(text("Jobs", "Workers")).execute(pool).await.unwrap().rows_affected(),
        (_, Some(pool)) => sqlx::query(text("apalis.jobs", "apalis.workers")).execute(pool).await.unwrap().rows_affected(),
        _ => unreachable!(),
    }
}

/// The first column of what SQL answers, as numbers (a boolean is one on SQLite; on Postgres it wants `::int::bigint`, so use CASE).
pub(crate) async fn numbers(jobs: &Durable, text: &str) -> Vec<i64> {
    let text = |jobs, workers| sqlx::AssertSqlSafe(text.replace("{jobs}", jobs).replace("{workers}", workers));
    match (jobs.sqlite_pool(), jobs.postgres_pool()) {
        (Some(pool), _) => sqlx::query_scalar(text("Jobs", "Workers")).fetch_all(pool).await.unwrap(),
        (_, Some(pool)) => sqlx::query_scalar(text("apalis.jobs", "apalis.workers")).fetch_all(pool).await.unwrap(),
        _ => unreachable!(),
    }
}

/// Looks until it is so, which a test that fails never sees.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(HANG / 2, seen).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// What most tests enqueue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mail {
    pub(crate) to: String,
}

pub(crate) fn mail(to: &str) -> Mail {
    Mail { to: to.to_owned() }
}

/// What a loss was, the task's name, and the text.
type Loss = (&'static str, &'static str, String);

/// What the registry told of its losses.
#[derive(Clone, Default)]
pub(crate) struct Losses(Arc<Mutex<Vec<Loss>>>);

impl Losses {
    pub(crate) fn all(&self) -> Vec<Loss> {
        self.0.lock().unwrap().clone()
    }

    fn add(&self, what: &'static str, task: &TaskInfo, text: &str) {
        self.0.lock().unwrap().push((what, task.name().unwrap_or_default(), text.to_owned()));
    }
}

impl Observer for Losses {
    fn failed(&self, task: &TaskInfo, error: &str) {
        self.add("failed", task, error);
    }

    fn panicked(&self, task: &TaskInfo, message: &str) {
        self.add("panicked", task, message);
    }

    fn aborted(&self, task: &TaskInfo) {
        self.add("aborted", task, "");
    }

    fn abandoned(&self, task: &TaskInfo) {
        self.add("abandoned", task, "");
    }
}

/// An inspected registry on this runtime, and what it tells.
pub(crate) fn registry() -> (Registry<TokioSpawner>, Losses) {
    let losses = Losses::default();
    (Registry::builder(TokioSpawner).inspect().observer(losses.clone()).build(), losses)
}

/// Panics past the hook, which would print each.
pub(crate) fn panic_quietly(message: &'static str) -> ! {
    std::panic::resume_unwind(Box::new(message))
}
