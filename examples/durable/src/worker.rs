//! Sends the mails. If this process dies, another worker sends its remaining mails.

use crate::mail::{Mailer, Refusal};
use crate::options::Options;
use crate::signups::{self, Welcome};
use crate::{Tasks, together};
use background_tasks_durable::{self as durable, Durable, Failure, Job};
use std::sync::Arc;
use std::time::Duration;
use tracing::info;

/// Sends mails until shutdown starts or, with `--until-eof`, until the standard input ends. When shutdown has started, the drain waits
/// for the mails in flight.
pub(crate) async fn run(tasks: Tasks, jobs: Durable, options: &Options) -> Result<(), String> {
    let mailer = Arc::new(Mailer::new(&options.outbox, options.smtp.as_ref())?);
    let limits = durable::WorkerOptions::default().concurrency(4).lease(options.lease);
    let send = move |mail: Job<Welcome>| {
        let mailer = mailer.clone();
        async move { send(&mailer, &mail).await }
    };
    signups::queue(&jobs).serve(&tasks, limits, send).await.map_err(|error| error.to_string())?;
    info!("the worker is ready");
    together::until_stopped(&tasks, options.until_eof).await
}

/// Sends a mail at least once. If a worker is killed after it has sent a mail and before the outcome is committed, another worker
/// sends the mail a second time. Both mails contain the same job ID, so a mail server can recognize the duplicate.
async fn send(mailer: &Mailer, mail: &Job<Welcome>) -> Result<(), Failure> {
    // These two test domains show a failure and a retry without a mail server.
    match mail.to.rsplit_once('@') {
        Some((_, "bounce.example")) => return Err(Failure::dead("the mailbox does not exist")),
        Some((_, "flaky.example")) if mail.attempt() == 1 => {
            return Err(Failure::retry_after("the mailbox is busy", Duration::from_secs(2)));
        }
        _ => {}
    }
    mailer.send(&mail.id().to_string(), mail.attempt(), &mail.to).await.map_err(|refusal| match refusal {
        Refusal::Temporary(reason) => Failure::retry(reason),
        Refusal::Permanent(reason) => Failure::dead(reason),
    })
}
