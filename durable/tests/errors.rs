//! What cannot be had is told in one clear sentence, and nothing is lost or spoilt by it.

mod common;

use apalis_postgres::PostgresStorage;
use apalis_sqlite::SqliteStorage;
use background_tasks_durable::{Durable, Error, Job, JobId, Options, Queue, Status, sqlx};
use common::postgres::Postgres;
use common::{Mail, Place, each, each_place, mail, numbers, registry, sql, until};
use sqlx::{Connection, SqliteConnection};
use std::convert::Infallible;
use std::error::Error as _;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

fn skipped(why: impl std::fmt::Display) {
    let _ = writeln!(stderr(), "skipped: {why}");
}

#[test]
fn without_a_runtime_there_is_none() {
    let folder = TempDir::new().unwrap();
    let sqlite = smol::block_on(Durable::sqlite(folder.path().join("jobs.db"))).unwrap_err();
    let postgres = smol::block_on(Durable::postgres("postgres://127.0.0.1/jobs")).unwrap_err();
    for error in [sqlite, postgres] {
        assert!(matches!(error, Error::NoRuntime), "{error:?}");
        let told = "there is no tokio runtime here, which the database's driver needs: make a Durable within one";
        assert_eq!(error.to_string(), told);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_address_is_one_of_a_database_that_keeps_jobs() {
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
        let told = format!("{named} is no address of a database that keeps jobs: a path, sqlite://PATH or postgres://…");
        assert_eq!(error.to_string(), told, "{address}");
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
async fn a_place_where_no_file_can_be_is_missing() {
    let folder = TempDir::new().unwrap();
    for path in [folder.path().join("none/jobs.db"), folder.path().to_owned()] {
        let error = Durable::sqlite(&path).await.unwrap_err();
        assert!(matches!(error, Error::Missing(_)), "{error:?}");
        let told = format!("{}: the database cannot be opened: ", path.display());
        assert!(error.to_string().starts_with(&told), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_that_is_something_else_stays_so() {
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

/// A small file system of its own.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new() -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(folder.path()).output();
        match mount {
            Ok(said) if said.status.success() => return Some(Self(folder)),
            Ok(said) => skipped(format_args!("no file system of its own: {}", String::from_utf8_lossy(&said.stderr).trim())),
            Err(error) => skipped(format_args!("no file system of its own: {error}")),
        }
        None
    }

    fn remount(&self, how: &str) {
        let how = format!("remount,{how}");
        assert!(Command::new("mount").args(["-o", &how]).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // At once, whoever has a file of it open.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Root may write what nobody may, so it is the file system that is read-only.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_must_not_be_written_is_denied() {
    let Some(place) = Tmpfs::new() else { return };
    let path = place.0.path().join("jobs.db");
    let jobs = Durable::sqlite(&path).await.unwrap();
    jobs.queue("mail").enqueue(mail("ann")).await.unwrap();
    jobs.sqlite_pool().unwrap().close().await;
    drop(jobs);
    until("it is closed", async || (!path.with_extension("db-wal").exists()).then_some(())).await;
    place.remount("ro");
    for path in [&path, &path.with_file_name("new.db")] {
        let error = Durable::sqlite(path).await.unwrap_err();
        assert!(matches!(error, Error::Denied(_)), "{error:?}");
        let told = format!("the database may not be opened or written: {}: ", path.display());
        assert!(error.to_string().starts_with(&told), "{error}");
    }
    place.remount("rw");
    let jobs = Durable::sqlite(&path).await.unwrap();
    assert_eq!(jobs.queue::<Mail>("mail").counts().await.unwrap().waiting, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_is_told_and_waited_for() {
    let Some(place) = Tmpfs::new() else { return };
    let jobs = Durable::sqlite(place.0.path().join("jobs.db")).await.unwrap();
    let queue = jobs.queue::<Mail>("mail");
    let (registry, losses) = registry();
    let (go, started) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (gone, start) = (go.clone(), started.clone());
    let handler = move |_: Job<Mail>| {
        let gone = gone.clone();
        start.add_permits(1);
        async move {
            gone.acquire().await.unwrap().forget();
            Ok::<_, Infallible>("x".repeat(100_000)) // more than what may be left
        }
    };
    queue.serve(&registry, Options::default(), handler).await.unwrap();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    started.acquire().await.unwrap().forget();

    let ballast = place.0.path().join("ballast");
    let full = fs::write(&ballast, vec![1; 4 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let other = jobs.queue::<Mail>("other");
    let mut told = 0;
    let error = loop {
        match other.enqueue(mail(&"x".repeat(100_000))).await {
            Ok(_) => told += 1,
            Err(error) => break error,
        }
        assert!(told < 100, "it is not full");
    };
    assert!(matches!(error, Error::Full(_)), "{error:?}");
    assert!(error.to_string().starts_with("there is no space left for the database: "), "{error}");
    assert!(error.source().is_some());
    go.add_permits(100);
    let outage = until("the worker tells it", async || {
        losses.all().into_iter().find(|(_, _, text)| text.starts_with("there is no space left for the database: "))
    })
    .await;
    assert_eq!((outage.0, outage.1), ("failed", "mail worker"));

    fs::remove_file(ballast).unwrap();
    other.enqueue(mail("bob")).await.expect("at once, with what is there");
    told += 1;
    assert_eq!(queue.wait(id).await.unwrap().unwrap().attempts(), 1, "it was not done again");
    assert_eq!(other.counts().await.unwrap().waiting, told);
    registry.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_waited_for_ten_seconds() {
    let place = Place::sqlite();
    let jobs = place.open().await;
    let queue = jobs.queue::<Mail>("mail");
    let id = queue.enqueue(mail("ann")).await.unwrap();
    let mut other = SqliteConnection::connect(&place.address).await.unwrap();
    sqlx::query("BEGIN EXCLUSIVE").execute(&mut other).await.unwrap();
    let since = Instant::now();
    let (enqueued, opened) = tokio::join!(queue.enqueue(mail("bob")).into_future(), Durable::sqlite(&place.address));
    for error in [enqueued.unwrap_err(), opened.unwrap_err()] {
        assert!(matches!(error, Error::Locked(_)), "{error:?}");
        assert!(error.to_string().starts_with("the database is locked by somebody else: "), "{error}");
    }
    assert!(since.elapsed() > Duration::from_secs(9), "{:?}", since.elapsed());
    assert!(queue.info(id).await.unwrap().is_some(), "who reads does not wait");

    let enqueued = tokio::spawn(queue.enqueue(mail("cy")).into_future());
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    enqueued.await.unwrap().unwrap();
    assert_eq!(queue.counts().await.unwrap().waiting, 2);
}

fn strange(place: &Place, why: &str) -> String {
    let file = if place.is_postgres { String::new() } else { format!("{}: ", place.address) };
    format!("this is no database with the tables of this version: {file}{why}")
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_a_newer_version_are_left_alone() {
    each_place(async |place| {
        let jobs = place.open().await;
        let newer = if place.is_postgres {
            "INSERT INTO apalis.background_tasks_migrations VALUES (99991231235959, 'newer', now(), true, '\\x00', 0)"
        } else {
            "INSERT INTO background_tasks_migrations VALUES (99991231235959, 'newer', '2099-01-01', true, x'00', 0)"
        };
        sql(&jobs, newer).await;
        let error = Durable::connect(&place.address).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        assert_eq!(error.to_string(), strange(place, "a newer version of the engine has changed them (99991231235959)"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_somebody_else_are_left_alone() {
    for name in ["Jobs", "jobs", "Workers", "workers"] {
        let place = Place::sqlite();
        let path = Path::new(&place.address);
        let mut other = SqliteConnection::connect(&format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
        let make = format!("CREATE TABLE {name} (title TEXT); INSERT INTO {name} VALUES ('baker')");
        sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(&mut other).await.unwrap();
        let error = Durable::sqlite(path).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{name}: {error:?}");
        assert_eq!(error.to_string(), strange(&place, &format!("there is a table {name} that this crate has not made")));
        let tables: Vec<String> =
            sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table'").fetch_all(&mut other).await.unwrap();
        assert_eq!(tables, [name]);
    }
}

/// Its jobs may be in any state, its versions are not ours, and its list of migrations is the program's own.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_the_bare_engine_are_left_alone() {
    each_place(async |place| {
        if place.is_postgres {
            let pool = sqlx::PgPool::connect(&place.address).await.unwrap();
            PostgresStorage::migrations().run(&pool).await.unwrap();
        } else {
            let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}?mode=rwc", place.address)).await.unwrap();
            SqliteStorage::migrations().run(&pool).await.unwrap();
        }
        let error = Durable::connect(&place.address).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        let table = if place.is_postgres { "apalis.jobs" } else { "Jobs" };
        assert_eq!(error.to_string(), strange(place, &format!("there is a table {table} that this crate has not made")));
    })
    .await;
}

/// Those that are gone are told of by all that asks for them.
async fn all_tell<T: PartialEq + std::fmt::Debug>(queue: &Queue<Mail>, id: JobId, tell: impl Fn(Error) -> T) -> T {
    let told = tell(queue.enqueue(mail("lost")).await.unwrap_err());
    assert_eq!(tell(queue.enqueue_all([mail("lost")]).await.unwrap_err()), told);
    assert_eq!(tell(queue.info(id).await.unwrap_err()), told);
    assert_eq!(tell(queue.wait(id).await.unwrap_err()), told);
    assert_eq!(tell(queue.dead().await.unwrap_err()), told);
    assert_eq!(tell(queue.retry(id).await.unwrap_err()), told);
    assert_eq!(tell(queue.counts().await.unwrap_err()), told);
    let serve = queue.serve(&registry().0, Options::default(), async |_| Ok::<_, Infallible>(())).await;
    assert_eq!(tell(serve.unwrap_err()), told);
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_deleted_or_replaced_takes_no_more_jobs() {
    let place = Place::sqlite();
    let jobs = place.open().await;
    let queue = jobs.queue::<Mail>("mail");
    let id = queue.enqueue(mail("ann")).await.unwrap();
    // It will take what nobody will ever read.
    let mut connection = jobs.sqlite_pool().unwrap().acquire().await.unwrap();
    let aside = format!("{}.aside", place.address);
    fs::rename(&place.address, &aside).unwrap();
    let missing = |error| match error {
        Error::Missing(text) => text,
        other => panic!("{other:?}"),
    };
    let told = format!("{} was deleted or replaced while it was open", place.address);
    assert_eq!(all_tell(&queue, id, missing).await, told);
    assert_eq!(missing(queue.enqueue(mail("lost")).within(&mut *connection).await.unwrap_err()), told);
    assert!(jobs.sqlite_pool().unwrap().acquire().await.is_err());
    assert!(!Path::new(&place.address).exists(), "nobody has made another");
    let other = TempDir::new().unwrap();
    let fresh = other.path().join("fresh.db");
    drop(Durable::sqlite(&fresh).await.unwrap());
    fs::copy(&fresh, &place.address).unwrap();
    assert_eq!(all_tell(&queue, id, missing).await, told);
    fs::rename(&aside, &place.address).unwrap();
    queue.enqueue(mail("bob")).await.unwrap();
    assert_eq!(queue.counts().await.unwrap().waiting, 2);
}

/// What a process of [`processes_that_start_together`] does.
const FRESH: &str = "DURABLE_TEST_FRESH";

#[test]
fn a_process_of_those_that_start_together() {
    let Some(path) = env::var_os(FRESH) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let jobs = Durable::sqlite(PathBuf::from(path)).await.unwrap();
        jobs.queue("mail").enqueue(mail("ann")).unique("one of all").await.unwrap();
        jobs.queue("mail").enqueue(mail("bob")).await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_together_make_the_tables_once() {
    let place = Place::sqlite();
    let mut one = Command::new(env::current_exe().unwrap());
    one.args(["--exact", "a_process_of_those_that_start_together"]).env(FRESH, &place.address);
    let all: Vec<_> = (0..8).map(|_| one.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).collect();
    for process in all {
        let said = process.wait_with_output().unwrap();
        assert!(said.status.success(), "{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    }
    assert_eq!(place.open().await.queue::<Mail>("mail").counts().await.unwrap().waiting, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_that_start_together_make_the_tables_once() {
    each_place(async |place| {
        let start = Arc::new(Barrier::new(8));
        let all: Vec<_> = (0..8)
            .map(|_| {
                let (start, address) = (start.clone(), place.address.clone());
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
        assert_eq!(place.open().await.queue::<Mail>("mail").counts().await.unwrap().waiting, 8);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_missing() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let error = Durable::postgres(&format!("postgres://postgres@127.0.0.1:{port}/postgres")).await.unwrap_err();
    assert!(matches!(error, Error::Missing(_)), "{error:?}");
    let told = format!("127.0.0.1:{port}: the server of the database is not there: Connection refused");
    assert!(error.to_string().starts_with(&told), "{error}");
    let folder = TempDir::new().unwrap();
    let socket = folder.path().to_str().unwrap();
    let error = Durable::postgres(&format!("postgres://postgres@{}/postgres", socket.replace('/', "%2F"))).await.unwrap_err();
    assert!(matches!(error, Error::Missing(_)), "{error:?}");
    assert_eq!(error.to_string(), format!("{socket}: No such file or directory (os error 2)"));
}

/// It could not store what some of the jobs come to, and would not store that of the others with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_take_every_job_is_refused() {
    let Some(place) = Place::postgres() else { return };
    let pool = sqlx::PgPool::connect(&place.address).await.unwrap();
    let (server, _) = place.address.rsplit_once('/').unwrap();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = encoding.to_lowercase();
        let create = format!("CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&pool).await.unwrap();
        let error = Durable::postgres(&format!("{server}/{name}")).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        let told = format!("its encoding is {encoding}, which cannot take every job: it must be UTF8");
        assert!(error.to_string().ends_with(&told), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_or_not_for_this_user_is_told() {
    let Some(place) = Place::postgres() else { return };
    let (server, database) = place.address.rsplit_once('/').unwrap();
    let error = Durable::postgres(&format!("{server}/none")).await.unwrap_err();
    assert!(matches!(error, Error::Missing(_)), "{error:?}");
    let address = server.rsplit_once('@').unwrap().1;
    assert_eq!(error.to_string(), format!("{address}: database \"none\" does not exist"));

    let of = |user: &str| place.address.replacen("postgres@", &format!("{user}@"), 1);
    let error = Durable::postgres(&of("nobody")).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("role \"nobody\" does not exist"), "{error}");

    let admin = sqlx::PgPool::connect(&place.address).await.unwrap();
    let guest = format!("guest_{database}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE ROLE {guest} LOGIN"))).execute(&admin).await.unwrap();
    let error = Durable::postgres(&of(&guest)).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("permission denied"), "{error}");
    // As far as the list of what was done, but not further.
    let public = format!("GRANT CREATE ON SCHEMA public TO {guest}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(public)).execute(&admin).await.unwrap();
    let error = Durable::postgres(&of(&guest)).await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("permission denied"), "{error}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("GRANT CREATE ON DATABASE {database} TO {guest}"))).execute(&admin).await.unwrap();
    let jobs = Durable::postgres(&of(&guest)).await.unwrap();
    jobs.queue("mail").enqueue(mail("ann")).await.unwrap();
    drop(jobs);

    // Once the tables are there, who uses them needs no more than that.
    let worker = format!("worker_{database}");
    let grant = format!(
        "REVOKE CREATE ON SCHEMA public FROM {guest}; REVOKE CREATE ON DATABASE {database} FROM {guest}; CREATE ROLE {worker} LOGIN;
        GRANT USAGE ON SCHEMA apalis TO {worker}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA apalis TO {worker}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant)).execute(&admin).await.unwrap();
    for user in [guest, worker] {
        let jobs = Durable::postgres(&of(&user)).await.unwrap();
        let (registry, losses) = registry();
        let queue = jobs.queue::<Mail>("mail");
        queue.serve(&registry, Options::default(), async |_| Ok::<_, Infallible>(())).await.unwrap();
        let id = queue.enqueue(mail("bob")).await.unwrap();
        assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), Status::Done);
        registry.shutdown().await;
        assert!(losses.all().is_empty(), "{:?}", losses.all());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_used_again() {
    let mut server = match Postgres::start() {
        Ok(server) => server,
        Err(why) => return skipped(format_args!("Postgres: {why}")),
    };
    let jobs = Durable::postgres(&server.url()).await.unwrap();
    let queue = jobs.queue::<Mail>("mail");
    let (registry, losses) = registry();
    let (go, started) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (gone, start) = (go.clone(), started.clone());
    let handler = move |_: Job<Mail>| {
        let gone = gone.clone();
        start.add_permits(1);
        async move {
            gone.acquire().await.unwrap().forget();
            Ok::<_, Infallible>(())
        }
    };
    queue.serve(&registry, Options::default().lease(common::HANG), handler).await.unwrap();
    let id = queue.enqueue(mail("ann")).await.unwrap();
    started.acquire().await.unwrap().forget();
    server.kill();
    let told = queue.enqueue(mail("lost")).await.unwrap_err();
    assert!(matches!(told, Error::Missing(_)), "{told:?}");
    let told = queue.info(id).await.unwrap_err();
    assert!(matches!(told, Error::Missing(_)), "{told:?}");
    // It ends while nobody can be told.
    go.add_permits(100);
    until("the worker tells it", async || losses.all().iter().any(|(_, name, _)| *name == "mail worker").then_some(())).await;
    tokio::task::block_in_place(|| server.restart());
    let info = until("it is done", async || queue.info(id).await.ok()??.status().is_final().then_some(id)).await;
    let info = queue.info(info).await.unwrap().unwrap();
    assert_eq!((info.status(), info.attempts()), (Status::Done, 1), "it was not done again");
    let id = until("it takes jobs", async || queue.enqueue(mail("bob")).await.ok()).await;
    assert_eq!(queue.wait(id).await.unwrap().unwrap().status(), Status::Done);
    assert_eq!(queue.counts().await.unwrap().done, 2);
    registry.shutdown().await;
    for (what, name, text) in losses.all() {
        assert_eq!((what, name), ("failed", "mail worker"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_can_be_sent_and_has_its_source() {
    fn sent<T: Send + Sync + 'static>(error: T) -> T {
        error
    }
    each(async |jobs| {
        sql(&jobs, "ALTER TABLE {jobs} RENAME TO elsewhere").await;
        let error = sent(jobs.queue::<Mail>("mail").counts().await.unwrap_err());
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        assert!(error.to_string().starts_with("this is no database with the tables of this version: "), "{error}");
        let error = jobs.queue::<Mail>("mail").enqueue(mail("lost")).await.unwrap_err();
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        assert!(numbers(&jobs, "SELECT count(*) FROM {workers}").await == [0]);
    })
    .await;
}
