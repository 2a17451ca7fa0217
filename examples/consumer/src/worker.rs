//! Receives messages from the broker and sends their mails. If this process dies, the broker delivers its unfinished messages to another
//! worker.

use crate::Tasks;
use crate::broker::{Broker, MAILS, MAX_ATTEMPTS, NOTICES};
use crate::mail::{Mailer, Refusal};
use crate::options::Options;
use crate::signups::{Notice, Status, Welcome};
use background_tasks_consumer::{Delivery, Failure};
use std::sync::Arc;
use std::time::Duration;
use tracing::info;

/// Starts to handle the messages of the queue `mails`. When shutdown has started, the worker starts no further mail, and the drain waits
/// for the mails that it has started.
pub(crate) async fn start(tasks: &Tasks, broker: &Broker, options: &Options) -> Result<(), String> {
    let mailer = Arc::new(Mailer::new(&options.outbox, options.smtp.as_ref())?);
    let notices = broker.clone();
    let handler = move |delivery: Delivery| {
        let (mailer, notices) = (mailer.clone(), notices.clone());
        async move { handle(&mailer, &notices, &delivery).await }
    };
    broker.serve(MAILS, tasks, "mail", options.lease, handler).await?;
    info!("the worker is ready");
    Ok(())
}

/// Sends a mail. Before and after this, sends a notice with the status of the mail to the server.
///
/// The consumer acknowledges the message after this function has returned, so the broker stores the last notice before the acknowledgement.
/// If the process dies between these two steps, the next attempt sends the mail and the notices a second time. Both mails have the same
/// sign-up ID.
async fn handle(mailer: &Mailer, broker: &Broker, delivery: &Delivery) -> Result<(), Failure> {
    let mail: Welcome = delivery.json()?;
    let attempt = delivery.attempt();
    let notify = async |status, error: Option<String>| {
        let notice = Notice { id: mail.id, to: mail.to.clone(), status, attempt, error };
        let payload = serde_json::to_string(&notice).expect("a notice can be serialized as JSON");
        broker.send(NOTICES, &mail.id.to_string(), payload).await.map_err(Failure::retry)
    };
    notify(Status::Running, None).await?;
    match send(mailer, &mail, attempt).await {
        Ok(()) => notify(Status::Done, None).await,
        Err(Refusal::Temporary(reason)) if attempt < MAX_ATTEMPTS => {
            notify(Status::Retrying, Some(reason.clone())).await?;
            Err(Failure::retry_after(reason, Duration::from_secs(2)))
        }
        Err(Refusal::Temporary(reason) | Refusal::Permanent(reason)) => {
            notify(Status::Dead, Some(reason.clone())).await?;
            Err(Failure::dead(reason))
        }
    }
}

async fn send(mailer: &Mailer, mail: &Welcome, attempt: u32) -> Result<(), Refusal> {
    // These two domains show a permanent failure and a retry, without a mail server.
    match mail.to.rsplit_once('@') {
        Some((_, "bounce.example")) => return Err(Refusal::Permanent("the mailbox does not exist".into())),
        Some((_, "flaky.example")) if attempt == 1 => return Err(Refusal::Temporary("the mailbox is busy".into())),
        _ => {}
    }
    mailer.send(&mail.id.to_string(), attempt, &mail.to).await
}
