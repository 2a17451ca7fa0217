//! A new database for each measurement. Both contenders use the tables that this crate creates.

use crate::postgres::Postgres;
use background_tasks_durable::Durable;
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{PgPool, SqlitePool};
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// For the bare engine.
pub enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

pub struct Database {
    pub durable: Durable,
    pub pool: Pool,
    _folder: Option<TempDir>,
}

impl Database {
    pub async fn sqlite() -> Self {
        let folder = TempDir::new().expect("a temporary folder is created");
        let durable = Durable::sqlite(folder.path().join("jobs.db")).await.expect("the file is created");
        let durable_pool = durable.sqlite_pool().expect("the store is SQLite");
        // A separate pool with the same connection settings.
        let options = durable_pool.connect_options().as_ref().clone();
        let max_connections = durable_pool.options().get_max_connections();
        let pool = SqlitePoolOptions::new().max_connections(max_connections).connect_lazy_with(options);
        Self { durable, pool: Pool::Sqlite(pool), _folder: Some(folder) }
    }

    pub async fn postgres(server: &Postgres) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let url = server.database(&format!("bench{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let durable = Durable::postgres(&url).await.expect("the server is running");
        let durable_pool = durable.postgres_pool().expect("the store is Postgres");
        let options = durable_pool.connect_options().as_ref().clone();
        let max_connections = durable_pool.options().get_max_connections();
        let pool = PgPoolOptions::new().max_connections(max_connections).connect_lazy_with(options);
        Self { durable, pool: Pool::Postgres(pool), _folder: None }
    }

    pub async fn analyze(&self) {
        let done = match &self.pool {
            Pool::Sqlite(pool) => sqlx::raw_sql("ANALYZE").execute(pool).await.map(drop),
            Pool::Postgres(pool) => sqlx::raw_sql("ANALYZE").execute(pool).await.map(drop),
        };
        done.expect("the tables are analyzed");
    }

    /// Returns the number of finished jobs.
    pub async fn done(&self) -> usize {
        let count: i64 = match &self.pool {
            Pool::Sqlite(pool) => sqlx::query_scalar("SELECT COUNT(*) FROM Jobs WHERE status = 'Done'").fetch_one(pool).await,
            Pool::Postgres(pool) => {
                sqlx::query_scalar("SELECT COUNT(*) FROM apalis.jobs WHERE status = 'Done'").fetch_one(pool).await
            }
        }
        .expect("the jobs are counted");
        usize::try_from(count).expect("a count is not negative")
    }
}
