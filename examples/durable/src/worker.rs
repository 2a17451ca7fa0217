//! Sends the mails: what this process does not finish, another one does.

use crate::Tasks;
use crate::mail::{Mailer, Refusal};
use crate::options::Options;
use crate::signups::{self, Welcome};
use background_tasks_durable::{self as durable, Durable, Failure, Job};
use std::io::{self, Read};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;
use tracing::info;

/// Sends mails until the shutdown has begun, or the input has ended if that is to end it. Those in flight then are the registry's.
pub(crate) async fn run(tasks: Tasks, jobs: Durable, options: &Options) -> Result<(), String> {
    let mailer = Arc::new(Mailer::new(&options.outbox, options.smtp.as_ref())?);
    let limits = durable::Options::default().concurrency(4).lease(options.lease);
    let send = move |mail: Job<Welcome>| {
        let mailer = mailer.clone();
        async move { send(&mailer, &mail).await }
    };
    signups::queue(&jobs).serve(&tasks, limits, send).await.map_err(|error| error.to_string())?;
    info!("the worker waits for mails");
    background_tasks_host::notify_ready();
    if options.until_eof {
        let ended = input_ended().map_err(|error| format!("cannot wait for the end of the input: {error}"))?;
        tasks.signal().run_until_shutdown(ended).await;
    } else {
        tasks.signal().await;
    }
    Ok(())
}

/// At least once: a worker that is killed between the mail and the note that it is sent leaves it to the next one. The id of the job is
/// what tells the two apart.
async fn send(mailer: &Mailer, mail: &Job<Welcome>) -> Result<(), Failure> {
    // Two domains whose mail server need not be there to see each end.
    match mail.to.rsplit_once('@') {
        Some((_, "bounce.example")) => return Err(Failure::dead("there is no such mailbox")),
        Some((_, "flaky.example")) if mail.attempt() == 1 => {
            return Err(Failure::retry_after("the mailbox is busy", Duration::from_secs(2)));
        }
        _ => {}
    }
    mailer.send(&mail.id().to_string(), mail.attempt(), &mail.to).await.map_err(|refusal| match refusal {
        Refusal::NotNow(why) => Failure::retry(why),
        Refusal::Never(why) => Failure::dead(why),
    })
}

/// A thread's wait: a read cannot be given up.
fn input_ended() -> io::Result<impl Future<Output = ()>> {
    let (tell, told) = oneshot::channel::<()>();
    thread::Builder::new().name("input".into()).spawn(move || {
        let mut some = [0; 64];
        while io::stdin().read(&mut some).is_ok_and(|len| len > 0) {}
        drop(tell);
    })?;
    Ok(async { drop(told.await) })
}
