//! Tests that errors name the problem, and that no job is lost or changed after an error.

use crate::common::postgres::Postgres;
use crate::common::{self, Mail, TestDatabase, mail, numbers, on_each_database, on_each_store, registry, sql, until};
use background_tasks_durable::{Durable, Error, Job, JobId, JobStatus, Queue, WorkerOptions, sqlx};
use futures_util::future::join;
use sqlx::{Connection, SqliteConnection};
use std::convert::Infallible;
use std::error::Error as _;
use std::future::IntoFuture;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use tempfile::TempDir;
use testing::Tmpfs;
use tokio::sync::Semaphore;

#[test]
fn opening_without_a_runtime_fails() {
    let folder = TempDir::new().unwrap();
    let sqlite = smol::block_on(Durable::sqlite(folder.path().join("jobs.db"))).unwrap_err();
    let postgres = smol::block_on(Durable::postgres("postgres://127.0.0.1/jobs")).unwrap_err();
    for error in [sqlite, postgres] {
        assert!(matches!(error, Error::NoRuntime), "{error:?}");
        let text = "no tokio runtime: the database driver needs one, so create a Durable within a tokio runtime";
        assert_eq!(error.to_string(), text);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn only_permanent_databases_are_valid_addresses() {
    for (address, named) in [
        ("", "\"\""),
        (":memory:", "\":memory:\""),
        ("sqlite::memory:", "\":memory:\""),
        ("sqlite://:memory:", "\":memory:\""),
        ("sqlite:", "\"\""),
        ("sqlite://jobs.db?mode=rwc", "sqlite:…"),
        ("mysql://ann:secret@localhost/jobs", "mysql:…"),
        ("postgre://ann:secret@localhost/jobs", "postgre:…"),
        ("postgres:ann:secret@localhost/jobs", "postgres:…"),
    ] {
        let error = Durable::connect(address).await.unwrap_err();
        assert!(matches!(error, Error::Address(_)), "{address}: {error:?}");
        let text = format!("invalid database address: {named}; expected a path, sqlite://PATH or postgres://…");
        assert_eq!(error.to_string(), text, "{address}");
    }
    for path in ["", ":memory:", "file::memory:?cache=shared"] {
        assert!(matches!(Durable::sqlite(path).await.unwrap_err(), Error::Address(_)), "{path}");
    }
    let error = Durable::connect("postgres://ann:secret@localhost:port/jobs").await.unwrap_err();
    assert!(matches!(error, Error::Address(_)), "{error:?}");
    assert!(!error.to_string().contains("secret"), "{error}");

    let folder = TempDir::new().unwrap();
    for (number, scheme) in ["", "sqlite:", "sqlite://"].iter().enumerate() {
        let path = folder.path().join(format!("{number}%20?.db"));
        if scheme.is_empty() {
            Durable::connect(path.to_str().unwrap()).await.unwrap();
            assert!(path.is_file());
        }
        let path = folder.path().join(format!("{number} plain.db"));
        Durable::connect(&format!("{scheme}{}", path.display())).await.unwrap();
        assert!(path.is_file());
    }
}

#[tokio::test]
async fn path_without_a_folder_is_unavailable() {
    let folder = TempDir::new().unwrap();
    for path in [folder.path().join("none/jobs.db"), folder.path().to_owned()] {
        let error = Durable::sqlite(&path).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        let start = format!("{}: cannot open the database: ", path.display());
        assert!(error.to_string().starts_with(&start), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn file_of_another_format_is_rejected_unchanged() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("letter.txt");
    let text = "Dear Sir or Madam, ".repeat(1000);
    fs::write(&path, &text).unwrap();
    let error = Durable::sqlite(&path).await.unwrap_err();
    assert!(matches!(error, Error::Schema(_)), "{error:?}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert!(error.to_string().ends_with("file is not a database"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

/// Root can write to read-only files, so the test makes the whole file system read-only.
#[tokio::test(flavor = "multi_thread")]
async fn read_only_file_is_denied() {
    let Some(disk) = Tmpfs::mount(2 << 20) else { return };
    let path = disk.path().join("jobs.db");
    let jobs = Durable::sqlite(&path).await.unwrap();
    jobs.queue("mail").enqueue(mail("ann")).await.unwrap();
    jobs.sqlite_pool().unwrap().close().await;
    drop(jobs);
    until("the file is closed", async || (!path.with_extension("db-wal").exists()).then_some(())).await;
    disk.remount("ro");
    for path in [&path, &path.with_file_name("new.db")] {
        let error = Durable::sqlite(path).await.unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{error:?}");
        let start = format!("no permission to open or write the database: {}: ", path.display());
        assert!(error.to_string().starts_with(&start), "{error}");
    }
    disk.remount("rw");
    let jobs = Durable::sqlite(&path).await.unwrap();
    assert_eq!(jobs.queue::<Mail>("mail").counts().await.unwrap().waiting, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_reported_and_retried() {
    let Some(disk) = Tmpfs::mount(2 << 20) else { return };
    let jobs = Durable::sqlite(disk.path().join("jobs.db")).await.unwrap();
    let queue = jobs.queue::<Mail>("mail");
    let (registry, losses) = registry();
    let (go, started) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (permits, start) = (go.clone(), started.clone());
    let handler = move |_: Job<Mail>| {
        let permits = permits.clone();
        start.add_permits(1);
        async move {
            permits.acquire().await.unwrap().forget();
            Ok::<_, Infallible>("x".repeat(100_000)) // more than the disk space that may be left
        }
    };
    queue.serve(&registry, WorkerOptions::default(), handler).await.unwrap();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    started.acquire().await.unwrap().forget();

    let ballast = disk.path().join("ballast");
    let full = fs::write(&ballast, vec![1; 4 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let other = jobs.queue::<Mail>("other");
    let mut enqueued = 0;
    let error = loop {
        match other.enqueue(mail(&"x".repeat(100_000))).await {
            Ok(_) => enqueued += 1,
            Err(error) => break error,
        }
        assert!(enqueued < 100, "the disk is not full");
    };
    assert!(matches!(error, Error::Full(_)), "{error:?}");
    assert!(error.to_string().starts_with("no space left for the database: "), "{error}");
    assert!(error.source().is_some());
    go.add_permits(100);
    let outage = until("the worker reports the outage", async || {
        let start =
            format!("the worker cannot store the outcomes of these jobs, and retries: {id}: no space left for the database: ");
        losses.all().into_iter().find(|(_, _, text)| text.starts_with(&start))
    })
    .await;
    assert_eq!((outage.0, outage.1), ("failed", "mail worker"));

    fs::remove_file(ballast).unwrap();
    other.enqueue(mail("bob")).await.expect("enqueueing works immediately");
    enqueued += 1;
    assert_eq!(queue.wait(id).await.unwrap().unwrap().attempts(), 1, "the job runs once");
    assert_eq!(other.counts().await.unwrap().waiting, enqueued);
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_fails_after_ten_seconds() {
    let database = TestDatabase::sqlite();
    let jobs = database.open().await;
    let queue = jobs.queue::<Mail>("mail");
    let id = queue.enqueue(mail("ann")).await.unwrap();
    let mut other = SqliteConnection::connect(&database.address).await.unwrap();
    sqlx::query("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
    let since = Instant::now();
    let (enqueued, opened) = tokio::join!(queue.enqueue(mail("bob")).into_future(), Durable::sqlite(&database.address));
    for error in [enqueued.unwrap_err(), opened.unwrap_err()] {
        assert!(matches!(error, Error::Locked(_)), "{error:?}");
        assert!(error.to_string().starts_with("the database is locked by another connection: "), "{error}");
    }
    assert!(since.elapsed() > Duration::from_secs(9), "{:?}", since.elapsed());
    assert!(queue.info(id).await.unwrap().is_some(), "a reader does not wait");

    let enqueued = tokio::spawn(queue.enqueue(mail("cy")).into_future());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    enqueued.await.unwrap().unwrap();
    assert_eq!(queue.counts().await.unwrap().waiting, 2);
}

fn incompatible(database: &TestDatabase, reason: &str) -> String {
    let file = if database.is_postgres { String::new() } else { format!("{}: ", database.address) };
    format!("incompatible database: {file}{reason}")
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_a_newer_version_are_rejected() {
    on_each_database(async |database| {
        let jobs = database.open().await;
        let newer = if database.is_postgres {
            "INSERT INTO background_tasks.versions VALUES (999)"
        } else {
            "INSERT INTO background_tasks_versions VALUES (999)"
        };
        sql(&jobs, newer).await;
        let error = Durable::connect(&database.address).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        assert_eq!(error.to_string(), incompatible(database, "a newer version of this crate has migrated the tables (999)"));
    })
    .await;
}

/// In SQLite, the names of tables are not case-sensitive.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_program_are_left_alone() {
    on_each_database(async |database| {
        let make = "CREATE TABLE Jobs (title TEXT); INSERT INTO Jobs VALUES ('baker'); CREATE TABLE workers (title TEXT)";
        if database.is_postgres {
            let pool = sqlx::PgPool::connect(&database.address).await.unwrap();
            sqlx::raw_sql(make).execute(&pool).await.unwrap();
        } else {
            let url = format!("sqlite://{}?mode=rwc", database.address);
            sqlx::raw_sql(make).execute(&mut SqliteConnection::connect(&url).await.unwrap()).await.unwrap();
        }
        let jobs = database.open().await;
        jobs.queue("mail").enqueue(mail("ann")).await.unwrap();
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM jobs WHERE title = 'baker'").await, [1]);
        assert_eq!(numbers(&jobs, "SELECT count(*) FROM {jobs}").await, [1]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn table_with_the_name_of_this_crate_is_rejected() {
    on_each_database(async |database| {
        let name = if database.is_postgres {
            let pool = sqlx::PgPool::connect(&database.address).await.unwrap();
            let make = "CREATE SCHEMA background_tasks; CREATE TABLE background_tasks.jobs (title TEXT)";
            sqlx::raw_sql(make).execute(&pool).await.unwrap();
            "background_tasks.jobs"
        } else {
            let url = format!("sqlite://{}?mode=rwc", database.address);
            let make = "CREATE TABLE Background_Tasks_Jobs (title TEXT)";
            sqlx::raw_sql(make).execute(&mut SqliteConnection::connect(&url).await.unwrap()).await.unwrap();
            "background_tasks_jobs"
        };
        let error = Durable::connect(&database.address).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        assert_eq!(error.to_string(), incompatible(database, &format!("table {name} exists but was not created by this crate")));
    })
    .await;
}

/// Checks that all calls fail with the same error, and returns this error.
async fn every_call_fails<T: PartialEq + std::fmt::Debug>(queue: &Queue<Mail>, id: JobId, convert: impl Fn(Error) -> T) -> T {
    let error = convert(queue.enqueue(mail("lost")).await.unwrap_err());
    assert_eq!(convert(queue.enqueue_all([mail("lost")]).await.unwrap_err()), error);
    assert_eq!(convert(queue.info(id).await.unwrap_err()), error);
    assert_eq!(convert(queue.wait(id).await.unwrap_err()), error);
    assert_eq!(convert(queue.dead().await.unwrap_err()), error);
    assert_eq!(convert(queue.retry(id).await.unwrap_err()), error);
    assert_eq!(convert(queue.counts().await.unwrap_err()), error);
    let serve = queue.serve(&registry().0, WorkerOptions::default(), async |_| Ok::<_, Infallible>(())).await;
    assert_eq!(convert(serve.unwrap_err()), error);
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_or_replaced_file_accepts_no_jobs() {
    let database = TestDatabase::sqlite();
    let jobs = database.open().await;
    let queue = jobs.queue::<Mail>("mail");
    let id = queue.enqueue(mail("ann")).await.unwrap();
    // This connection stays open on the deleted file. Changes through this connection would be lost.
    let mut connection = jobs.sqlite_pool().unwrap().acquire().await.unwrap();
    let aside = format!("{}.aside", database.address);
    fs::rename(&database.address, &aside).unwrap();
    let unavailable = |error| match error {
        Error::Unavailable(text) => text,
        other => panic!("{other:?}"),
    };
    let text = format!("{} was deleted or replaced while it was open", database.address);
    assert_eq!(every_call_fails(&queue, id, unavailable).await, text);
    assert_eq!(unavailable(queue.enqueue(mail("lost")).in_transaction(&mut *connection).await.unwrap_err()), text);
    assert!(jobs.sqlite_pool().unwrap().acquire().await.is_err());
    assert!(!Path::new(&database.address).exists(), "no call has created another file");
    let other = TempDir::new().unwrap();
    let fresh = other.path().join("fresh.db");
    drop(Durable::sqlite(&fresh).await.unwrap());
    fs::copy(&fresh, &database.address).unwrap();
    assert_eq!(every_call_fails(&queue, id, unavailable).await, text);
    fs::rename(&aside, &database.address).unwrap();
    queue.enqueue(mail("bob")).await.unwrap();
    assert_eq!(queue.counts().await.unwrap().waiting, 2);
}

/// The environment variable that passes the path of the database to the child processes of
/// [`concurrent_processes_create_the_tables_once`].
const FRESH: &str = "DURABLE_TEST_FRESH";

#[test]
fn child_of_the_concurrent_start_test() {
    let Some(path) = env::var_os(FRESH) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let jobs = Durable::sqlite(PathBuf::from(path)).await.unwrap();
        jobs.queue("mail").enqueue(mail("ann")).unique_key("one of all").await.unwrap();
        jobs.queue("mail").enqueue(mail("bob")).await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_processes_create_the_tables_once() {
    let database = TestDatabase::sqlite();
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "errors::child_of_the_concurrent_start_test"]).env(FRESH, &database.address);
    let all: Vec<_> = (0..8).map(|_| child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).collect();
    for process in all {
        let output = process.wait_with_output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{stdout}{stderr}");
    }
    assert_eq!(database.open().await.queue::<Mail>("mail").counts().await.unwrap().waiting, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_threads_create_the_tables_once() {
    on_each_database(async |database| {
        let start = Arc::new(Barrier::new(8));
        let all: Vec<_> = (0..8)
            .map(|_| {
                let (start, address) = (start.clone(), database.address.clone());
                thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    start.wait();
                    runtime.block_on(async {
                        let jobs = Durable::connect(&address).await.unwrap();
                        jobs.queue("mail").enqueue(mail("ann")).await.unwrap();
                    });
                })
            })
            .collect();
        for thread in all {
            thread.join().unwrap();
        }
        assert_eq!(database.open().await.queue::<Mail>("mail").counts().await.unwrap().waiting, 8);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_server_is_unavailable() {
    let port = testing::free_port();
    let error = Durable::postgres(&format!("postgres://postgres@127.0.0.1:{port}/postgres")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    let start = format!("127.0.0.1:{port}: the database server is unavailable: Connection refused");
    assert!(error.to_string().starts_with(&start), "{error}");
    let folder = TempDir::new().unwrap();
    let socket = folder.path().to_str().unwrap();
    let error = Durable::postgres(&format!("postgres://postgres@{}/postgres", socket.replace('/', "%2F"))).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    assert_eq!(error.to_string(), format!("{socket}: No such file or directory (os error 2)"));
}

/// A database with another encoding cannot store each outcome. An outcome that cannot be stored would block all other outcomes.
#[tokio::test(flavor = "multi_thread")]
async fn database_with_another_encoding_is_rejected() {
    let Some(database) = TestDatabase::postgres() else { return };
    let pool = sqlx::PgPool::connect(&database.address).await.unwrap();
    let (server, _) = database.address.rsplit_once('/').unwrap();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = encoding.to_lowercase();
        let create = format!("CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&pool).await.unwrap();
        let error = Durable::postgres(&format!("{server}/{name}")).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        let end = format!("the encoding is {encoding}, but must be UTF8 to store every job");
        assert!(error.to_string().ends_with(&end), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_database_and_missing_privileges_are_reported() {
    let Some(test_database) = TestDatabase::postgres() else { return };
    let (server, database) = test_database.address.rsplit_once('/').unwrap();
    let error = Durable::postgres(&format!("{server}/none")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    let address = server.rsplit_once('@').unwrap().1;
    assert_eq!(error.to_string(), format!("{address}: database \"none\" does not exist"));

    let of = |user: &str| test_database.address.replacen("postgres@", &format!("{user}@"), 1);
    let error = Durable::postgres(&of("nobody")).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("role \"nobody\" does not exist"), "{error}");

    let admin = sqlx::PgPool::connect(&test_database.address).await.unwrap();
    let guest = format!("guest_{database}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE ROLE {guest} LOGIN"))).execute(&admin).await.unwrap();
    let error = Durable::postgres(&of(&guest)).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("permission denied"), "{error}");
    // With this privilege, the user can create the table of migrations, but cannot create the tables for jobs.
    let public = format!("GRANT CREATE ON SCHEMA public TO {guest}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(public)).execute(&admin).await.unwrap();
    let error = Durable::postgres(&of(&guest)).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("permission denied"), "{error}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("GRANT CREATE ON DATABASE {database} TO {guest}"))).execute(&admin).await.unwrap();
    let jobs = Durable::postgres(&of(&guest)).await.unwrap();
    jobs.queue("mail").enqueue(mail("ann")).await.unwrap();
    drop(jobs);

    // When the tables exist, users need only these privileges.
    let worker = format!("worker_{database}");
    let grant = format!(
        "REVOKE CREATE ON SCHEMA public FROM {guest}; REVOKE CREATE ON DATABASE {database} FROM {guest}; CREATE ROLE {worker} LOGIN;
        GRANT USAGE ON SCHEMA background_tasks TO {worker}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA background_tasks TO {worker}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(&admin).await.unwrap();
    for user in [guest, worker] {
        let jobs = Durable::postgres(&of(&user)).await.unwrap();
        let (registry, losses) = registry();
        let queue = jobs.queue::<Mail>("mail");
        queue.serve(&registry, WorkerOptions::default(), async |_| Ok::<_, Infallible>(())).await.unwrap();
        let id = queue.enqueue(mail("bob")).await.unwrap();
        assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), JobStatus::Done);
        registry.shutdown().await;
        assert!(losses.all().is_empty(), "{:?}", losses.all());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_server_is_used_again() {
    let mut server = match Postgres::start() {
        Ok(server) => server,
        Err(reason) => return testing::skip("postgres", reason),
    };
    let jobs = Durable::postgres(&server.url()).await.unwrap();
    let other = Durable::postgres(&server.url()).await.unwrap();
    assert_eq!(other.queue::<Mail>("mail").counts().await.unwrap().done, 0);
    let queue = jobs.queue::<Mail>("mail");
    let (registry, losses) = registry();
    let (go, started) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (permits, start) = (go.clone(), started.clone());
    let handler = move |_: Job<Mail>| {
        let permits = permits.clone();
        start.add_permits(1);
        async move {
            permits.acquire().await.unwrap().forget();
            Ok::<_, Infallible>(())
        }
    };
    queue.serve(&registry, WorkerOptions::default().lease(common::HANG), handler).await.unwrap();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    started.acquire().await.unwrap().forget();
    server.kill();
    // The test runs both calls simultaneously, because each call waits ten seconds for a connection.
    let (enqueued, info) = join(queue.enqueue(mail("lost")).into_future(), queue.info(id)).await;
    for error in [enqueued.unwrap_err(), info.unwrap_err()] {
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    }
    // The job ends now, while the worker cannot commit its outcome.
    go.add_permits(100);
    until("the worker reports the outage", async || losses.all().iter().any(|(_, name, _)| *name == "mail worker").then_some(()))
        .await;
    tokio::task::block_in_place(|| server.restart());
    let info = until("the job is done", async || queue.info(id).await.ok()??.status().is_final().then_some(id)).await;
    let info = queue.info(info).await.unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (JobStatus::Done, 1), "the job runs once");
    let id = until("the server accepts jobs", async || queue.enqueue(mail("bob")).await.ok()).await;
    assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), JobStatus::Done);
    assert_eq!(other.queue::<Mail>("mail").counts().await.expect("the first call uses a new connection").done, 2);
    registry.shutdown().await;
    for (outcome, name, text) in losses.all() {
        assert_eq!((outcome, name), ("failed", "mail worker"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_the_server_closes_means_that_it_is_unavailable() {
    let Some(database) = TestDatabase::postgres() else { return };
    let jobs = database.open().await;
    let close = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())").execute(jobs.postgres_pool().unwrap());
    let error = Error::from(close.await.unwrap_err());
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn error_is_send_and_names_its_cause() {
    fn sent<T: Send + Sync + 'static>(error: T) -> T {
        error
    }
    on_each_store(async |jobs| {
        sql(&jobs, "ALTER TABLE {jobs} RENAME TO elsewhere").await;
        let error = sent(jobs.queue::<Mail>("mail").counts().await.unwrap_err());
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        assert!(error.to_string().starts_with("incompatible database: "), "{error}");
        let error = jobs.queue::<Mail>("mail").enqueue(mail("lost")).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        assert!(numbers(&jobs, "SELECT count(*) FROM {workers}").await == [0]);
    })
    .await;
}
