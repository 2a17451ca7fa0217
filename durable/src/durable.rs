use crate::engine::Engine;
use crate::error::Error;
use crate::runtime::Runtime;
use crate::store::Store;
#[cfg(feature = "postgres")]
use crate::store::postgres::{Postgres, SCHEMA};
#[cfg(feature = "sqlite")]
use crate::store::sqlite::Sqlite;
use std::fmt;
#[cfg(feature = "sqlite")]
use std::path::Path;
use std::sync::Arc;

/// A handle to a store of jobs, which is a SQLite file or a Postgres database. All clones of a handle use the same store.
///
/// Create the handle within a tokio runtime, because the database driver needs one. The handle keeps a reference to this runtime. Any
/// executor can therefore poll the futures of the handle and of its queues. Drop the handle before you drop the runtime, because the driver
/// panics after the runtime has shut down.
///
/// Jobs run on the executor of the registry that was passed to [`serve`](crate::Queue::serve). A spawner such as `TokioSpawner` spawns on
/// the current tokio runtime. With such a spawner, jobs run on the runtime of the handle.
#[derive(Clone)]
pub struct Durable {
    pub(crate) engine: Arc<Engine>,
    pub(crate) runtime: Runtime,
}

impl Durable {
    fn new(store: impl Store, runtime: Runtime) -> Self {
        Self { engine: Engine::new(Arc::new(store), runtime.clone()), runtime }
    }

    /// Opens the store at this address. A path or `sqlite://PATH` needs the feature `sqlite`. `postgres://…` needs the feature `postgres`.
    ///
    /// # Errors
    ///
    /// Returns the errors of `Durable::sqlite` or `Durable::postgres`. Returns [`Error::Address`] for any other address, or if the Cargo
    /// feature for this database is disabled.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        match sqlite_path(address)? {
            #[cfg(feature = "postgres")]
            None => Self::postgres(address).await,
            #[cfg(feature = "sqlite")]
            Some(path) => Self::sqlite(path).await,
            #[allow(unreachable_patterns, reason = "depends on the features")]
            _ => unreachable!("the feature of the store is enabled"),
        }
    }

    /// Opens an existing store, for tools that operate the queues of other programs. The addresses are the same as for
    /// [`connect`](Self::connect). Unlike `connect`, this call creates no file, schema or tables, and migrates nothing.
    ///
    /// `schema` names the Postgres schema that contains the tables. Default: `background_tasks`.
    ///
    /// # Errors
    ///
    /// Returns the errors of `connect`. Returns [`Error::Schema`] if the database does not contain the tables of this version of the crate.
    /// Returns [`Error::Address`] if `schema` is set for SQLite, which has no schemas.
    pub async fn open_existing(address: &str, schema: Option<&str>) -> Result<Self, Error> {
        match sqlite_path(address)? {
            #[cfg(feature = "postgres")]
            None => Self::open_postgres(address, schema.unwrap_or(SCHEMA), true).await,
            #[cfg(feature = "sqlite")]
            Some(_) if schema.is_some() => Err(Error::Address("SQLite has no schemas".to_owned())),
            #[cfg(feature = "sqlite")]
            Some(path) => Self::open_sqlite(Path::new(path), true).await,
            #[allow(unreachable_patterns, reason = "depends on the features")]
            _ => unreachable!("the feature of the store is enabled"),
        }
    }

    /// Opens a SQLite file, and creates the file if it does not exist. The folder of the file must exist.
    ///
    /// Any number of processes on one machine can open the file at the same time. The file must not be on a network file system. Committed
    /// jobs survive a power failure, because the file has a write-ahead log and `synchronous = FULL`. The names of the tables start with
    /// `background_tasks_`.
    ///
    /// Earlier versions of this crate stored jobs in the tables `Jobs` and `Workers`. The first process that opens the file with this
    /// version moves these jobs to the new tables. Before you start this process, stop the workers of the earlier version. If such a worker
    /// still runs a job, the job runs a second time.
    ///
    /// # Errors
    ///
    /// - [`Error::NoRuntime`] if the caller is not in a tokio runtime.
    /// - [`Error::Unavailable`] if the file cannot be opened.
    /// - [`Error::Schema`] if the file is not a database, or if a newer version of this crate has changed its tables.
    /// - [`Error::Locked`] if another process locks the file for more than 10 seconds.
    /// - [`Error::Address`] if the path is empty or `:memory:`. For tests, use [`in_memory`](Self::in_memory).
    /// - [`Error::Denied`] if the process has no permission to open or write the file, and [`Error::Full`] if the disk is full.
    #[cfg(feature = "sqlite")]
    pub async fn sqlite(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_sqlite(path.as_ref(), false).await
    }

    #[cfg(feature = "sqlite")]
    async fn open_sqlite(path: &Path, is_existing: bool) -> Result<Self, Error> {
        if path.as_os_str().is_empty() || path.to_string_lossy().contains(":memory:") {
            return Err(Error::Address(format!("{:?}", path.display().to_string())));
        }
        let runtime = Runtime::current()?;
        Ok(Self::new(Sqlite::open(path, is_existing).await?, runtime))
    }

    /// Creates a SQLite database in the memory of this process, for [tests](crate::testing).
    ///
    /// Each call creates a new database. The database is deleted when the last clone of this handle and the last worker are dropped. The
    /// database behaves like a database file, with one exception: while one connection writes, other connections wait before they read.
    ///
    /// # Errors
    ///
    /// [`Error::NoRuntime`] if the caller is not in a tokio runtime.
    #[cfg(feature = "sqlite")]
    pub async fn in_memory() -> Result<Self, Error> {
        let runtime = Runtime::current()?;
        Ok(Self::new(Sqlite::in_memory().await?, runtime))
    }

    /// Connects to the Postgres database at a URL such as `postgres://user:password@host:port/database`. If a part, such as the password,
    /// is not in the URL, its value comes from an environment variable, such as `PGPASSWORD`.
    ///
    /// # Tables and privileges
    ///
    /// The tables are in the schema `background_tasks`. To use another schema, call [`postgres_in`](Self::postgres_in). The first process
    /// that connects creates the schema and the tables. This process must connect as the owner of the database, or as a user with the
    /// privilege `CREATE` on the database. If your program connects as a user without this privilege, run another program first. This other
    /// program must connect as the owner, with the same version of this crate. Run it again after each update of this crate that changes
    /// the tables. When the tables exist, a user needs only `USAGE` on the schema, and `SELECT`, `INSERT`, `UPDATE` and `DELETE` on its
    /// tables.
    ///
    /// Earlier versions of this crate stored jobs in the schema `apalis`. The first process that connects with this version moves these
    /// jobs to the new tables. Before you start this process, stop the workers of the earlier version. If such a worker still runs a job,
    /// the job runs a second time.
    ///
    /// # Connections
    ///
    /// A process opens up to 10 connections for calls of the handle, such as `enqueue`, and for [transactions of the
    /// program](Self::postgres_pool). All workers of the process together open up to 10 further connections, to fetch jobs and to commit
    /// their outcomes. Heartbeats and notifications together use one more connection. While all queues are idle, a process has about three
    /// open connections. During a deploy, the server must accept the connections of the old and the new processes at the same time.
    ///
    /// If a connection does not respond in time, a worker repeats the call on another connection. The worker also reports the outage to the
    /// registry's observers. The time limit of a heartbeat is two fifths of the shortest lease, and at least 2 seconds. For other calls of
    /// a worker, the time limit is the [response timeout](crate::WorkerOptions::response_timeout). Calls of your program, such as
    /// `enqueue`, have no such time limit, so wrap these calls in a timeout.
    ///
    /// Connect to the server directly, or through a pooler in session mode. In transaction mode, `PgBouncer` does not forward
    /// notifications. Versions of `PgBouncer` before 1.21 do not forward prepared statements in this mode either.
    ///
    /// # Clocks
    ///
    /// The clock of the database server determines when jobs are due and when leases expire. The clock of the process determines when the
    /// ticks of a schedule are due.
    ///
    /// # Errors
    ///
    /// - [`Error::NoRuntime`] if the caller is not in a tokio runtime.
    /// - [`Error::Unavailable`] if the database does not exist, or its server accepts no connection within about 10 seconds.
    /// - [`Error::Denied`] if the user has no access to the database.
    /// - [`Error::Schema`] in three cases. A newer version of this crate has changed the tables. The schema contains a table `jobs` of
    ///   another program. The encoding of the database is not UTF8.
    /// - [`Error::Address`] if the URL is invalid.
    #[cfg(feature = "postgres")]
    pub async fn postgres(url: &str) -> Result<Self, Error> {
        Self::postgres_in(url, SCHEMA).await
    }

    /// Connects to a Postgres database like [`postgres`](Self::postgres), but uses the tables in this schema. Queues in different schemas
    /// are separate, even if they have the same name.
    ///
    /// # Errors
    ///
    /// Returns the errors of `postgres`. Returns [`Error::Address`] if the name of the schema is empty, longer than 63 bytes, or contains
    /// NUL or `@`.
    #[cfg(feature = "postgres")]
    pub async fn postgres_in(url: &str, schema: &str) -> Result<Self, Error> {
        Self::open_postgres(url, schema, false).await
    }

    #[cfg(feature = "postgres")]
    async fn open_postgres(url: &str, schema: &str, is_existing: bool) -> Result<Self, Error> {
        let runtime = Runtime::current()?;
        if schema.is_empty() || schema.len() > 63 || schema.contains(['\0', '@']) {
            return Err(Error::Address(format!("invalid schema {schema:?}")));
        }
        Ok(Self::new(Postgres::connect(url, schema, is_existing).await?, runtime))
    }

    /// Returns the connection pool of the SQLite database, for transactions of the program. The pool has up to 8 connections. Returns
    /// `None` for Postgres.
    #[cfg(feature = "sqlite")]
    pub fn sqlite_pool(&self) -> Option<&sqlx::SqlitePool> {
        self.engine.store.sqlite()
    }

    /// Returns the connection pool of the Postgres database, for transactions of the program. The pool has up to 10 connections. Calls of
    /// this handle use the same pool. Returns `None` for SQLite.
    #[cfg(feature = "postgres")]
    pub fn postgres_pool(&self) -> Option<&sqlx::PgPool> {
        self.engine.store.postgres()
    }
}

/// Returns the path if the address names a SQLite file. Returns `None` if the address names a Postgres database. Fails if the
/// Cargo feature for this database is disabled.
fn sqlite_path(address: &str) -> Result<Option<&str>, Error> {
    let scheme = address.split_once(':').map_or("", |(scheme, _)| scheme);
    let is_postgres = matches!(scheme, "postgres" | "postgresql");
    #[cfg(feature = "postgres")]
    if is_postgres && address[scheme.len()..].starts_with("://") {
        return Ok(None);
    }
    #[cfg(feature = "sqlite")]
    {
        let url = address.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
        let path = url.unwrap_or(address);
        // Parameters after `?` are rejected, because they would become part of the file name.
        if !is_postgres && !path.contains("://") && !url.is_some_and(|path| path.contains('?')) {
            return Ok(Some(path));
        }
    }
    // The error shows only the scheme, because the rest of the address can contain a password.
    Err(Error::Address(if scheme.is_empty() { "no scheme".to_owned() } else { format!("{scheme}:…") }))
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").finish_non_exhaustive()
    }
}
