use crate::intake::lock;
use crate::runtime::Runtime;
use crate::store::Store;
use crate::{Error, Queue};
use event_listener::Event;
use std::collections::HashMap;
use std::fmt;
#[cfg(feature = "sqlite")]
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Where jobs are kept: a SQLite file, or Postgres. All clones are one.
///
/// It is made within a tokio runtime, which the database's driver needs, and keeps its handle: from there on its futures may be polled by
/// any executor, as long as that runtime lives; the driver panics in one that is gone. Jobs run on the executor of their registry, whose
/// ambient runtime, if its spawner goes by that, is this one.
#[derive(Clone)]
pub struct Durable {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) runtime: Runtime,
    /// Of each queue, that something was enqueued in this process.
    bells: Arc<Mutex<HashMap<&'static str, Arc<Event>>>>,
    /// Something has ended in this process.
    pub(crate) settled: Arc<Event>,
}

impl Durable {
    fn over(store: impl Store, runtime: Runtime) -> Self {
        Self { store: Arc::new(store), runtime, bells: Arc::default(), settled: Arc::default() }
    }

    pub(crate) fn bell(&self, queue: &'static str) -> Arc<Event> {
        lock(&self.bells).entry(queue).or_default().clone()
    }

    /// By its address: `sqlite://PATH` or a path alone, or `postgres://…`, as far as the features go.
    ///
    /// # Errors
    ///
    /// As `sqlite` and `postgres`, and [`Error::Address`] for any other.
    pub async fn connect(address: &str) -> Result<Self, Error> {
        let scheme = address.split_once(':').map_or("", |(scheme, _)| scheme);
        let is_postgres = matches!(scheme, "postgres" | "postgresql");
        #[cfg(feature = "postgres")]
        if is_postgres && address[scheme.len()..].starts_with("://") {
            return Self::postgres(address).await;
        }
        #[cfg(feature = "sqlite")]
        {
            let url = address.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
            let path = url.unwrap_or(address);
            // What is part of others' addresses would become part of the name.
            if !is_postgres && !path.contains("://") && !url.is_some_and(|path| path.contains('?')) {
                return Self::sqlite(path).await;
            }
        }
        // Not the whole: it may have a password in it.
        Err(Error::Address(if scheme.is_empty() { "this".to_owned() } else { format!("{scheme}:…") }))
    }

    /// A file, which is made where it is missing; its folder must be there. Any number of processes of one machine may have it open.
    /// It must not be on a network's file system.
    ///
    /// A commit survives a power cut: write-ahead log, `synchronous = FULL`.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the file cannot be opened, [`Error::Schema`] if it is something else or the tables are those of a newer
    /// version, [`Error::Locked`] if another process has held it for 10 seconds, [`Error::Denied`], [`Error::Full`], and
    /// [`Error::Address`] for a database in memory, which would keep nothing.
    #[cfg(feature = "sqlite")]
    #[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
    pub async fn sqlite(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        if path.as_os_str().is_empty() || path.to_string_lossy().contains(":memory:") {
            return Err(Error::Address(format!("{:?}", path.display().to_string())));
        }
        let runtime = Runtime::current()?;
        Ok(Self::over(crate::store::sqlite::Sqlite::open(path).await?, runtime))
    }

    /// A server: `postgres://user:password@host:port/database`. Its own `PG…` variables fill in what the address leaves out. The jobs
    /// stand in a schema of their own, `apalis`; the first to come makes it, with the extensions `hstore` and `pgcrypto` and a function in
    /// `public`. The owner of the database may do so; another user needs `CREATE` on the database and on `public`, or the owner calls this
    /// once, and again after an update that brings other tables or indexes. From then on `USAGE` on the schema, and `SELECT`, `INSERT`, `UPDATE` and
    /// `DELETE` on its tables are enough. `hstore` must be in the search path of all.
    ///
    /// A process opens as many connections as it needs: up to 10 for its calls and for [its own transactions](Self::postgres_pool), 10
    /// for what its workers tell, and 1 for each worker's engine; while a deploy starts the new processes before it ends the old ones, the server
    /// needs room for both. A worker that does not get an answer on one, as when a router has forgotten it or the server's machine is gone, asks
    /// again on another, for a heartbeat after two fifths of its lease, for what became of a job after 15 seconds, for more jobs after 20 to 40, and tells
    /// the registry's observer. A call of the program's waits for as long as the system does: give it an end of your own.
    ///
    /// The clocks of the machines must agree with the server's to well within a [lease](crate::Options::lease): the engine writes down its start
    /// by its own clock, and a worker that was seen so long ago is dead, until its first heartbeat.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the server or the database is not there, [`Error::Denied`] if it does not let this user in,
    /// [`Error::Schema`] if the tables are those of a newer version or the database's encoding is not UTF8, and [`Error::Address`].
    #[cfg(feature = "postgres")]
    #[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
    pub async fn postgres(url: &str) -> Result<Self, Error> {
        let runtime = Runtime::current()?;
        Ok(Self::over(crate::store::postgres::Postgres::connect(url).await?, runtime))
    }

    /// The queue of this name, which stands in the store for as long as jobs do: another name is another queue. The jobs of one queue
    /// are of one type.
    ///
    /// Nothing is asked of the store.
    pub fn queue<T>(&self, name: &'static str) -> Queue<T> {
        Queue::new(self.clone(), name)
    }

    /// The file's connections, for transactions of the program's own and for the engine's board; `None` on Postgres.
    #[cfg(feature = "sqlite")]
    #[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
    pub fn sqlite_pool(&self) -> Option<&sqlx::SqlitePool> {
        self.store.sqlite()
    }

    /// The server's connections, for transactions of the program's own and for the engine's board; `None` on SQLite.
    #[cfg(feature = "postgres")]
    #[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
    pub fn postgres_pool(&self) -> Option<&sqlx::PgPool> {
        self.store.postgres()
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").finish_non_exhaustive()
    }
}
