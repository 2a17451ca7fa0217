//! Runs a worker as a child process, and restarts it when it dies.

use crate::options::Options;
use std::io::{IsTerminal, Write};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::{info, warn};

/// Keeps a worker running until `stop` resolves, then drains it.
///
/// The worker stops when its standard input ends. This process holds the other end, so the worker drains even if this process is killed.
pub(crate) async fn keep_a_worker(options: &Options, mut stop: oneshot::Receiver<()>) -> Result<(), String> {
    loop {
        let mut worker = start(options).map_err(|error| format!("cannot start a worker: {error}"))?;
        // `wait` would close the pipe.
        let input = worker.stdin.take();
        let log = tokio::spawn(forward(worker.stderr.take()));
        info!("the worker is process {}", worker.id().unwrap_or_default());
        tokio::select! {
            status = worker.wait() => exited(status.map_err(|error| error.to_string())?)?,
            _ = &mut stop => {
                drop(input);
                let status = worker.wait().await.map_err(|error| error.to_string())?;
                let _ = log.await;
                return if status.success() { Ok(()) } else { Err(format!("the worker has not drained: {status}")) };
            }
        }
        // Limits the rate of restarts if the worker dies immediately.
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            _ = &mut stop => return Ok(()),
        }
    }
}

/// Checks whether to restart the worker. A restart cannot fix its own error, exit code 2.
fn exited(status: ExitStatus) -> Result<(), String> {
    if status.code() == Some(2) {
        return Err("the worker failed with exit code 2".into());
    }
    warn!("the worker died ({status}): starting another one, which takes over its mails");
    Ok(())
}

fn start(options: &Options) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(options.worker_args()).stdin(Stdio::piped());
    // Ctrl-C signals the whole process group of a terminal. The worker must drain after the server, so it has its own group.
    #[cfg(unix)]
    command.process_group(0);
    // A terminal shows one progress bar, so the log of the worker is forwarded.
    if std::io::stderr().is_terminal() {
        command.stderr(Stdio::piped());
    }
    command.spawn()
}

/// Forwards the log of the worker, above the progress bar of this process.
async fn forward(stderr: Option<ChildStderr>) {
    let Some(stderr) = stderr else { return };
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = writeln!(background_tasks_host::stderr(), "{line}");
    }
}
