//! Tests the move of jobs from the old tables. Earlier versions of this crate used the tables of the engine apalis. The tests run on both
//! stores.

use crate::common::{HANG, Mail, mail, numbers, on_each_database, registry};
use background_tasks_durable::{Durable, Error, Job, JobStatus, WorkerOptions, sqlx};
use sqlx::{Connection, Executor};
use std::convert::Infallible;
use std::fmt::Write;
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// Creates the old tables, with only the columns that contain data.
const SQLITE: &str = "CREATE TABLE background_tasks_migrations (version BIGINT PRIMARY KEY);
    CREATE TABLE Workers (id TEXT NOT NULL UNIQUE, worker_type TEXT NOT NULL, storage_name TEXT NOT NULL, layers TEXT, last_seen INTEGER);
    CREATE TABLE Jobs (job BLOB NOT NULL, id TEXT NOT NULL UNIQUE, job_type TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'Pending',
        attempts INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL DEFAULT 25, run_at INTEGER NOT NULL, last_result TEXT,
        lock_at INTEGER, lock_by TEXT, done_at INTEGER, priority INTEGER NOT NULL DEFAULT 0, metadata TEXT, idempotency_key TEXT,
        PRIMARY KEY (id), FOREIGN KEY (lock_by) REFERENCES Workers (id));
    INSERT INTO Workers VALUES ('old', 'mail', '', '', 0);";

const POSTGRES: &str = "CREATE EXTENSION hstore; CREATE SCHEMA apalis;
    CREATE TABLE apalis.background_tasks_migrations (version BIGINT PRIMARY KEY);
    CREATE TABLE apalis.workers (id TEXT PRIMARY KEY, worker_type TEXT NOT NULL, storage_name TEXT NOT NULL, layers TEXT, last_seen TIMESTAMPTZ);
    CREATE TABLE apalis.jobs (job BYTEA NOT NULL, id TEXT PRIMARY KEY, job_type TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'Pending',
        attempts INTEGER NOT NULL DEFAULT 0, max_attempts INTEGER NOT NULL DEFAULT 25, run_at TIMESTAMPTZ NOT NULL, last_result JSONB,
        lock_at TIMESTAMPTZ, lock_by TEXT REFERENCES apalis.workers (id), done_at TIMESTAMPTZ, priority INTEGER DEFAULT 0,
        metadata HSTORE, idempotency_key TEXT);
    CREATE FUNCTION apalis.get_jobs() RETURNS SETOF apalis.jobs AS 'SELECT * FROM apalis.jobs' LANGUAGE sql;
    INSERT INTO apalis.workers VALUES ('old', 'mail', '', '', 'epoch');";

/// The old rows. Their columns are id, status, attempts, maximum, seconds until due, result, holder, ended, priority, version and key.
const ROWS: [(&str, &str); 8] = [
    ("A", "'Pending', 0, 2147483647, 0, NULL, NULL, NULL, 7, NULL, 'key'"),
    ("B", "'Pending', 0, 2147483647, 3600, NULL, NULL, NULL, 0, NULL, NULL"),
    ("C", "'Running', 1, 2147483647, 0, NULL, 'old', NULL, 0, NULL, NULL"),
    ("D", "'Queued', 0, 2147483647, 0, NULL, 'old', NULL, 0, NULL, NULL"),
    ("E", r#"'Failed', 2, 2147483647, 3600, '{"Err":"no such address"}', NULL, NULL, 0, NULL, NULL"#),
    ("F", r#"'Done', 1, 2147483647, 0, '{"Ok":{"sent":[1,"a"]}}', 'old', 1000, 0, NULL, 'done'"#),
    ("G", r#"'Killed', 3, 2147483647, 0, '{"Err":"never"}', NULL, 2000, 0, NULL, NULL"#),
    ("H", "'Pending', 0, 2147483647, 0, NULL, NULL, NULL, 0, 2, NULL"),
];

async fn fill(address: &str, is_postgres: bool) {
    let mut script = if is_postgres { POSTGRES } else { SQLITE }.to_owned();
    for (id, columns) in ROWS {
        let mut columns: Vec<String> = columns.split(", ").map(str::to_owned).collect();
        let time = |seconds: &str| match seconds {
            "NULL" => "NULL".to_owned(),
            seconds if is_postgres => format!("to_timestamp({seconds})"),
            seconds => seconds.to_owned(),
        };
        columns[3] =
            if is_postgres { format!("now() + interval '{} s'", columns[3]) } else { format!("unixepoch() + {}", columns[3]) };
        columns[6] = time(&columns[6]);
        columns[8] = match (&*columns[8], is_postgres) {
            ("NULL", _) => "NULL".to_owned(),
            (version, true) => format!("'version=>{version}'::hstore"),
            (version, false) => format!("'{{\"version\":\"{version}\"}}'"),
        };
        let (table, payload) = if is_postgres {
            ("apalis.jobs", format!(r#"convert_to('{{"to":"{id}"}}', 'UTF8')"#))
        } else {
            ("Jobs", format!(r#"CAST('{{"to":"{id}"}}' AS BLOB)"#))
        };
        write!(
            script,
            "INSERT INTO {table} (id, job_type, job, status, attempts, max_attempts, run_at, last_result, lock_by, done_at, priority, metadata,
            idempotency_key) VALUES ('{}', 'mail', {payload}, {});",
            number(id),
            columns.join(", ")
        )
        .unwrap();
    }
    let script = sqlx::AssertSqlSafe(script);
    if is_postgres {
        sqlx::PgConnection::connect(address).await.unwrap().execute(sqlx::raw_sql(script)).await.unwrap();
    } else {
        let mut conn = sqlx::SqliteConnection::connect(&format!("sqlite://{address}?mode=rwc")).await.unwrap();
        conn.execute(sqlx::raw_sql(script)).await.unwrap();
    }
}

fn number(id: &str) -> String {
    format!("0123456789ABCDEFGHJKMNPQR{id}")
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_the_old_tables_are_moved() {
    on_each_database(async |database| {
        fill(&database.address, database.is_postgres).await;
        let jobs = database.open().await;
        let queue = jobs.queue::<Mail>("mail");
        let info = async |id: &str| queue.info(number(id).parse().unwrap()).await.unwrap().unwrap();
        let hour = SystemTime::now() + Duration::from_mins(50);
        for (id, status, attempts, error, version, is_delayed) in [
            ("A", JobStatus::Waiting, 0, None, 1, false),
            ("B", JobStatus::Waiting, 0, None, 1, true),
            ("C", JobStatus::Waiting, 1, None, 1, false),
            ("D", JobStatus::Waiting, 0, None, 1, false),
            ("E", JobStatus::Retrying, 2, Some("no such address"), 1, true),
            ("F", JobStatus::Done, 1, None, 1, false),
            ("G", JobStatus::Dead, 3, Some("never"), 1, false),
            ("H", JobStatus::Waiting, 0, None, 2, false),
        ] {
            let info = info(id).await;
            let found = (info.status(), info.attempts(), info.error(), info.version(), info.due() > hour);
            assert_eq!(found, (status, attempts, error, version, is_delayed), "{id}");
            assert_eq!(info.payload::<Mail>().unwrap(), mail(id));
        }
        let done = info("F").await;
        assert_eq!(done.result().unwrap(), Some(serde_json::json!({"sent": [1, "a"]})));
        assert_eq!(done.ended(), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)));
        assert_eq!(info("G").await.ended(), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2000)));
        let again = queue.enqueue(mail("A")).unique_key("key").await.unwrap();
        assert_eq!((again.id, again.is_new), (number("A").parse().unwrap(), false));

        // The old tables must not exist any more. A worker of the old version then cannot run, and no job is moved twice.
        let old = if database.is_postgres { "apalis.jobs" } else { "Jobs" };
        let exists = if database.is_postgres {
            format!("SELECT CASE WHEN to_regclass('{old}') IS NULL THEN 0::bigint ELSE 1 END")
        } else {
            format!("SELECT count(*) FROM sqlite_master WHERE name = '{old}'")
        };
        assert_eq!(numbers(&jobs, &exists).await, [0]);
        database.open().await;

        let (registry, _) = registry();
        let queue = queue.version(2).upgrade(1, |old: Mail| old);
        queue.serve(&registry, WorkerOptions::default(), async |job: Job<Mail>| Ok::<_, Infallible>(job.attempt())).await.unwrap();
        for id in ["A", "C", "D", "H"] {
            let info = timeout(HANG, queue.wait(number(id).parse().unwrap())).await.unwrap().unwrap().unwrap();
            assert_eq!(info.status(), JobStatus::Done, "{id}");
        }
        registry.shutdown().await;
    })
    .await;
}

/// If a program uses the old engine directly, its database has the engine's tables, but no table for the migrations of this crate.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_the_bare_engine_are_left_alone() {
    on_each_database(async |database| {
        fill(&database.address, database.is_postgres).await;
        let drop = if database.is_postgres {
            "DROP TABLE apalis.background_tasks_migrations"
        } else {
            "DROP TABLE background_tasks_migrations"
        };
        if database.is_postgres {
            sqlx::PgConnection::connect(&database.address).await.unwrap().execute(drop).await.unwrap();
        } else {
            sqlx::SqliteConnection::connect(&database.address).await.unwrap().execute(drop).await.unwrap();
        }
        let jobs = database.open().await;
        let old = if database.is_postgres { "apalis.jobs" } else { "Jobs" };
        assert_eq!(numbers(&jobs, &format!("SELECT count(*) FROM {old}")).await, [8]);
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM {jobs}").await, [0]);
    })
    .await;
}

/// If the move of one job fails, no job is moved.
#[tokio::test(flavor = "multi_thread")]
async fn failed_move_changes_nothing() {
    on_each_database(async |database| {
        fill(&database.address, database.is_postgres).await;
        let (break_it, mend) = if database.is_postgres {
            ("ALTER TABLE apalis.jobs RENAME done_at TO x", "ALTER TABLE apalis.jobs RENAME x TO done_at")
        } else {
            ("ALTER TABLE Jobs RENAME done_at TO x", "ALTER TABLE Jobs RENAME x TO done_at")
        };
        let execute = async |text: &'static str| {
            if database.is_postgres {
                sqlx::PgConnection::connect(&database.address).await.unwrap().execute(text).await.unwrap();
            } else {
                sqlx::SqliteConnection::connect(&database.address).await.unwrap().execute(text).await.unwrap();
            }
        };
        execute(break_it).await;
        assert!(matches!(Durable::connect(&database.address).await.unwrap_err(), Error::Schema(_)));
        execute(mend).await;
        let counts = database.open().await.queue::<Mail>("mail").counts().await.unwrap();
        assert_eq!((counts.waiting, counts.retrying, counts.done, counts.dead), (5, 1, 1, 1));
    })
    .await;
}
