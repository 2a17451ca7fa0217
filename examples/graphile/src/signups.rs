//! People sign up, and each is sent a mail: what the program is for.

use crate::tasks::as_task;
use crate::worker::Service;
use graphile_worker::{IntoTaskHandlerResult, JobSpecBuilder, TaskHandler, WorkerContext, WorkerUtils};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use std::error::Error;
use tokio::time::sleep;
use tracing::info;

/// Where the engine's own tables are.
const SCHEMA: &str = "graphile_worker";

/// The engine's tables, and that of the sign-ups. It is for one process at a time, before there are others.
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

/// Signs a person up, and owes them a mail: both, or, with an error, neither. Returns `None` if they are signed up already.
pub(crate) async fn sign_up(pool: &PgPool, address: &str) -> Result<Option<i64>, Box<dyn Error>> {
    let mut transaction = pool.begin().await?;
    // The address is what makes a repeated request harmless, today and in a year.
    let insert = "INSERT INTO signups (address) VALUES ($1) ON CONFLICT (address) DO NOTHING RETURNING id";
    let inserted: Option<i64> = sqlx::query_scalar(insert).bind(address).fetch_optional(&mut *transaction).await?;
    if let Some(signup) = inserted {
        // The key makes the job one while it waits: it can be replaced and removed by it. The engine forgets it with the job.
        let spec = JobSpecBuilder::new().job_key(format!("welcome-mail {signup}")).build();
        let utils = WorkerUtils::new(pool.clone(), SCHEMA);
        utils.with_executor(&mut *transaction).add_job(WelcomeMail { signup }, spec).await?;
    }
    transaction.commit().await?;
    Ok(inserted)
}

/// A job. What it says is kept in the database over many deploys: it names the sign-up, whose table has the rest.
#[derive(Debug, Serialize, Deserialize)]
struct WelcomeMail {
    signup: i64,
}

impl TaskHandler for WelcomeMail {
    const IDENTIFIER: &'static str = "welcome-mail";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let service = context.get_ext::<Service>().expect("the worker has it").clone();
        let tasks = service.tasks.clone();
        let attempt = *context.job().attempts();
        as_task(
            &tasks,
            Self::IDENTIFIER,
            async move { service.send(self.signup, attempt).await.map_err(|error| error.to_string()) },
        )
        .await
    }
}

/// What a worker handles.
pub(crate) fn jobs() -> [graphile_worker::JobDefinition; 1] {
    [WelcomeMail::definition()]
}

impl Service {
    /// Sends a mail, as far as an example does: it waits as for a mail server.
    ///
    /// It may be called again for the same sign-up, after a crash, and then sends nothing if that came after the mail was noted as sent. A crash between
    /// the two sends it twice, if the mail server does not know it by its `Message-ID`, which would be made of the sign-up's id.
    async fn send(&self, signup: i64, attempt: i16) -> Result<(), Box<dyn Error + Send + Sync>> {
        let select = "SELECT address FROM signups WHERE id = $1 AND mailed_at IS NULL";
        let address: Option<String> = sqlx::query_scalar(select).bind(signup).fetch_optional(&self.pool).await?;
        let Some(address) = address else {
            info!("the mail of sign-up {signup} is sent already, or it is deleted");
            return Ok(());
        };
        info!("sending the mail of sign-up {signup}, attempt {attempt}");
        sleep(self.takes).await;
        if address.ends_with(".invalid") {
            return Err(format!("there is no mail server for {address}").into());
        }
        sqlx::query("UPDATE signups SET mailed_at = now() WHERE id = $1").bind(signup).execute(&self.pool).await?;
        info!("sent the mail of sign-up {signup}");
        Ok(())
    }
}
