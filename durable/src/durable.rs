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

/// A handle to a store of jobs: a SQLite file or a Postgres database. Clones share the store.
///
/// Create it within a tokio runtime, which the database driver needs. The handle keeps this runtime, so any executor may poll its
/// futures. The runtime must outlive the handle: the driver panics after its runtime has shut down. Jobs run on the executor of their
/// registry. If its spawner uses the runtime of the current context, that is this runtime.
#[derive(Clone)]
pub struct Durable {
    pub(crate) engine: Arc<Engine>,
    pub(crate) runtime: Runtime,
}

impl Durable {
    fn new(store: impl Store, runtime: Runtime) -> Self {
        Self { engine: Engine::new(Arc::new(store), runtime.clone()), runtime }
    }

    /// Opens the store at an address: `sqlite://PATH`, a path, or `postgres://…`. Each kind needs its feature.
    ///
    /// # Errors
    ///
    /// The errors of `sqlite` and `postgres`. [`Error::Address`] for any other address, and for a store whose feature is disabled.
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

    /// Opens a store that programs already use, for tools. Takes the addresses of [`connect`](Self::connect), creates no file, schema or
    /// tables, and migrates nothing.
    ///
    /// `schema` is the schema of the tables in Postgres. Default: `background_tasks`.
    ///
    /// # Errors
    ///
    /// The errors of `connect`. [`Error::Schema`] if the database does not contain the tables of this version of the crate.
    /// [`Error::Address`] if `schema` is set for SQLite, which has no schemas.
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

    /// Opens a SQLite file, and creates it if it is missing. Its folder must exist.
    ///
    /// Any number of processes on one machine may open the file. It must not be on a network file system. A commit survives a power
    /// failure: the file has a write-ahead log and `synchronous = FULL`. The names of the tables start with `background_tasks_`.
    ///
    /// Jobs of the tables that this crate used before, `Jobs` and `Workers`, are moved when the first process opens the file. Stop the old
    /// workers first: a job that an old worker runs is run again.
    ///
    /// # Errors
    ///
    /// - [`Error::NoRuntime`] outside a tokio runtime.
    /// - [`Error::Unavailable`] if the file cannot be opened.
    /// - [`Error::Schema`] if the file is not a database, or a newer version has changed its tables.
    /// - [`Error::Locked`] if another process has locked the file for 10 seconds.
    /// - [`Error::Address`] for an empty path and for `:memory:`, which stores nothing permanently. For tests use
    ///   [`in_memory`](Self::in_memory).
    /// - [`Error::Denied`] if the file may not be opened or written, and [`Error::Full`] if the disk is full.
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
    /// Each call creates another database. The jobs do not survive the process: the database is deleted when the last clone of this handle
    /// and the last worker are dropped. Otherwise the database behaves like a file, except that reads wait while another connection writes.
    ///
    /// # Errors
    ///
    /// [`Error::NoRuntime`] outside a tokio runtime.
    #[cfg(feature = "sqlite")]
    pub async fn in_memory() -> Result<Self, Error> {
        let runtime = Runtime::current()?;
        Ok(Self::new(Sqlite::in_memory().await?, runtime))
    }

    /// Connects to a Postgres database: `postgres://user:password@host:port/database`. The `PG…` environment variables supply missing
    /// parts.
    ///
    /// # Tables and privileges
    ///
    /// The tables are in the schema `background_tasks`, or in the schema that [`postgres_in`](Self::postgres_in) names. The first process
    /// to connect creates the schema. The owner of the database may do this. Any other user needs `CREATE` on the database, or the owner
    /// must connect once, and again after each update that changes the tables. After that, a user needs `USAGE` on the schema, and
    /// `SELECT`, `INSERT`, `UPDATE` and `DELETE` on its tables.
    ///
    /// Jobs of the tables that this crate used before, in the schema `apalis`, are moved when the first process connects. Stop the old
    /// workers first: a job that an old worker runs is run again.
    ///
    /// # Connections
    ///
    /// A process opens up to 10 connections for its calls and for [transactions of the program](Self::postgres_pool). All its workers
    /// together open up to 10 connections for jobs, and one for heartbeats and notices. A process whose queues are idle has about three
    /// connections. During a deploy the server needs room for the old and the new processes.
    ///
    /// If a connection does not respond, a worker repeats the call on another connection and reports the outage to the registry's
    /// observers. The time limit of a heartbeat is two fifths of the shortest lease, at least 2 seconds. The limit of other calls is the
    /// [response timeout](crate::WorkerOptions::response_timeout). Calls of the program have no such limit, so give them one.
    ///
    /// The connections must reach the server directly or through a pooler in session mode. In transaction mode, `PgBouncer` forwards
    /// no notices, and before version 1.21 no prepared statements.
    ///
    /// # Clocks
    ///
    /// The clock of the server decides when jobs are due and leases expire. The clock of the process decides when schedules tick.
    ///
    /// # Errors
    ///
    /// - [`Error::NoRuntime`] outside a tokio runtime.
    /// - [`Error::Unavailable`] if the database does not exist, or its server accepts no connection within about 10 seconds.
    /// - [`Error::Denied`] if the user has no access.
    /// - [`Error::Schema`] if a newer version has changed the tables, the schema has a table `jobs` of another program, or the
    ///   encoding of the database is not UTF8.
    /// - [`Error::Address`] if the URL is invalid.
    #[cfg(feature = "postgres")]
    pub async fn postgres(url: &str) -> Result<Self, Error> {
        Self::postgres_in(url, SCHEMA).await
    }

    /// Connects like [`postgres`](Self::postgres), with the tables in this schema. The queues of two schemas are separate.
    ///
    /// # Errors
    ///
    /// The errors of `postgres`. [`Error::Address`] if the name of the schema is empty, longer than 63 bytes, or contains NUL or `@`.
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

    /// Returns the pool of up to 8 connections to the SQLite file, for transactions of the program. Returns `None` for Postgres.
    #[cfg(feature = "sqlite")]
    pub fn sqlite_pool(&self) -> Option<&sqlx::SqlitePool> {
        self.engine.store.sqlite()
    }

    /// Returns the pool of up to 10 connections to the Postgres database, for transactions of the program and calls of this handle.
    /// Returns `None` for SQLite.
    #[cfg(feature = "postgres")]
    pub fn postgres_pool(&self) -> Option<&sqlx::PgPool> {
        self.engine.store.postgres()
    }
}

/// Returns the path if the address names a SQLite file, or `None` if it names a Postgres database. Fails if the feature of the store is
/// disabled.
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
        // The parameters of a URL would become part of the file name.
        if !is_postgres && !path.contains("://") && !url.is_some_and(|path| path.contains('?')) {
            return Ok(Some(path));
        }
    }
    // The rest of the address may contain a password.
    Err(Error::Address(if scheme.is_empty() { "no scheme".to_owned() } else { format!("{scheme}:…") }))
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").finish_non_exhaustive()
    }
}
