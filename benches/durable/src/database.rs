//! Creates a new database for each contender, so that the contenders do not share tables.

use crate::postgres::Postgres;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, PgConnection};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

pub enum Database {
    /// The process that has created the file removes the folder. In other processes, this field is `None`.
    Sqlite {
        file: PathBuf,
        _folder: Option<TempDir>,
    },
    Postgres {
        url: String,
    },
}

impl Database {
    pub fn sqlite() -> Self {
        let folder = TempDir::new().expect("a temporary folder is created");
        Self::Sqlite { file: folder.path().join("jobs.db"), _folder: Some(folder) }
    }

    pub fn postgres(server: &Postgres) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self::Postgres { url: server.database(&format!("bench{}", NEXT.fetch_add(1, Ordering::Relaxed))) }
    }

    pub fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite { .. })
    }
}

/// Opens a database that another process has created.
impl From<&str> for Database {
    fn from(text: &str) -> Self {
        if text.starts_with("postgres:") {
            Self::Postgres { url: text.to_owned() }
        } else {
            Self::Sqlite { file: text.into(), _folder: None }
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { file, .. } => file.display().fmt(f),
            Self::Postgres { url } => f.write_str(url),
        }
    }
}

impl Database {
    /// Updates the statistics of the query planner. On Postgres, also vacuums the tables.
    pub async fn analyze(&self) {
        self.run("ANALYZE", "VACUUM ANALYZE").await;
    }

    /// Writes all changes from the log to the tables. Without this call, the next measurement would include this work for earlier jobs.
    pub async fn checkpoint(&self) {
        self.run("PRAGMA wal_checkpoint(TRUNCATE)", "CHECKPOINT").await;
    }

    async fn run(&self, on_sqlite: &'static str, on_postgres: &'static str) {
        let done = match self {
            Self::Sqlite { file, .. } => {
                let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(30));
                let mut conn = SqliteConnection::connect_with(&options).await.expect("the file is opened");
                sqlx::raw_sql(on_sqlite).execute(&mut conn).await.map(drop)
            }
            Self::Postgres { url } => {
                let mut conn = PgConnection::connect(url).await.expect("the server is running");
                sqlx::raw_sql(on_postgres).execute(&mut conn).await.map(drop)
            }
        };
        done.expect("the database is maintained");
    }
}
