//! A worker as a process of its own, which this one starts, and starts again when it dies.

use crate::options::Options;
use std::io::{IsTerminal, Write};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::{info, warn};

/// Keeps a worker running until it is told to end it; then waits until the worker has drained.
///
/// The worker lives as long as its input, which this process holds: so it drains even if this process is killed.
pub(crate) async fn keep_a_worker(options: &Options, mut end: oneshot::Receiver<()>) -> Result<(), String> {
    loop {
        let mut worker = start(options).map_err(|error| format!("cannot start a worker: {error}"))?;
        // Waiting would close it.
        let input = worker.stdin.take();
        let told = tokio::spawn(tell(worker.stderr.take()));
        info!("the worker is process {}", worker.id().unwrap_or_default());
        tokio::select! {
            status = worker.wait() => gone(status.map_err(|error| error.to_string())?)?,
            _ = &mut end => {
                drop(input);
                let status = worker.wait().await.map_err(|error| error.to_string())?;
                let _ = told.await;
                return if status.success() { Ok(()) } else { Err(format!("the worker has ended with {status}")) };
            }
        }
        // One that dies at once must not keep the machine busy.
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            _ = &mut end => return Ok(()),
        }
    }
}

/// One that says that it cannot work would say it again.
fn gone(status: ExitStatus) -> Result<(), String> {
    if status.code() == Some(2) {
        return Err("the worker cannot work".into());
    }
    warn!("the worker is gone ({status}): another one takes its place, and gets its mails");
    Ok(())
}

fn start(options: &Options) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(options.of_worker()).stdin(Stdio::piped());
    // Ctrl-C goes to all processes of a terminal's group; the worker's turn is after the server's.
    #[cfg(unix)]
    command.process_group(0);
    // A terminal has room for one drain's bar.
    if std::io::stderr().is_terminal() {
        command.stderr(Stdio::piped());
    }
    command.spawn()
}

/// Above the bar of this process.
async fn tell(said: Option<ChildStderr>) {
    let Some(said) = said else { return };
    let mut lines = BufReader::new(said).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = writeln!(background_tasks_host::stderr(), "{line}");
    }
}
