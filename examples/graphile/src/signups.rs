//! Stores sign-ups and sends their mails.

use crate::database::chain;
use crate::tasks::as_task;
use crate::worker::Service;
use graphile_worker::{IntoTaskHandlerResult, JobSpecBuilder, TaskHandler, WorkerContext, WorkerUtils};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::error::Error;
use tokio::time::sleep;
use tracing::info;

/// The database schema in which the engine creates its tables.
const SCHEMA: &str = "graphile_worker";

/// Creates the tables of the engine and of the sign-ups. Call this function in a single process, before other processes use the database.
pub(crate) async fn migrate(pool: &PgPool) -> Result<(), Box<dyn Error>> {
    WorkerUtils::new(pool.clone(), SCHEMA).migrate().await?;
    let signups = "CREATE TABLE IF NOT EXISTS signups (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        address text NOT NULL UNIQUE,
        mailed_at timestamptz
    )";
    sqlx::query(signups).execute(pool).await?;
    Ok(())
}

/// Commits a sign-up and the job of its mail in one transaction. Returns `None` if the address has already signed up.
pub(crate) async fn sign_up(pool: &PgPool, address: &str) -> Result<Option<i64>, Box<dyn Error>> {
    let mut transaction = pool.begin().await?;
    // The unique address makes repeated requests harmless, even after the job is deleted.
    let insert = "INSERT INTO signups (address) VALUES ($1) ON CONFLICT (address) DO NOTHING RETURNING id";
    let inserted: Option<i64> = sqlx::query_scalar(insert).bind(address).fetch_optional(&mut *transaction).await?;
    if let Some(signup) = inserted {
        // While the job waits, a program can replace or remove the job by this key. The engine deletes the key together with the job.
        let spec = JobSpecBuilder::new().job_key(format!("welcome-mail {signup}")).build();
        let utils = WorkerUtils::new(pool.clone(), SCHEMA);
        utils.with_executor(&mut *transaction).add_job(WelcomeMail { signup }, spec).await?;
    }
    transaction.commit().await?;
    Ok(inserted)
}

/// The payload of the job. New versions of the program must be able to read old payloads. Therefore the payload contains only the ID of
/// the sign-up. The other values of the sign-up are in the table.
#[derive(Debug, Serialize, Deserialize)]
struct WelcomeMail {
    signup: i64,
}

impl TaskHandler for WelcomeMail {
    const IDENTIFIER: &'static str = "welcome-mail";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let service = context.get_ext::<Service>().expect("the worker has the extension").clone();
        let tasks = service.tasks.clone();
        let attempt = *context.job().attempts();
        as_task(&tasks, Self::IDENTIFIER, async move { service.send(self.signup, attempt).await.map_err(|error| chain(&*error)) })
            .await
    }
}

/// Returns the definitions of the jobs that a worker handles.
pub(crate) fn jobs() -> [graphile_worker::JobDefinition; 1] {
    [WelcomeMail::definition()]
}

impl Service {
    /// Simulates sending a mail: waits as long as a mail server needs.
    ///
    /// After a crash, the engine may call this function a second time for the same sign-up. If the table says that the mail was
    /// sent, this function sends nothing. If the process crashes after it has sent the mail and before it has updated the table,
    /// the mail is sent twice. A real mail server could recognize the duplicate by its `Message-ID`, if this header contains the ID
    /// of the sign-up.
    async fn send(&self, signup: i64, attempt: i16) -> Result<(), Box<dyn Error + Send + Sync>> {
        let select = "SELECT address FROM signups WHERE id = $1 AND mailed_at IS NULL";
        let address: Option<String> = sqlx::query_scalar(select).bind(signup).fetch_optional(&self.pool).await?;
        let Some(address) = address else {
            info!("the mail of sign-up {signup} was already sent, or the sign-up was deleted");
            return Ok(());
        };
        info!("sending the mail of sign-up {signup}, attempt {attempt}");
        sleep(self.takes).await;
        if address.ends_with(".invalid") {
            return Err(format!("no mail server for {address}").into());
        }
        sqlx::query("UPDATE signups SET mailed_at = now() WHERE id = $1").bind(signup).execute(&self.pool).await?;
        info!("sent the mail of sign-up {signup}");
        Ok(())
    }
}
