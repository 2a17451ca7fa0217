//! Runs a worker as a child process of the server. Starts another worker when this worker dies.

use crate::{Tasks, values};
use std::io::{self, IsTerminal, Read, Write};
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tracing::{info, warn};

/// Runs a server, and a worker as a child process. `grace` is the grace period of the server.
pub(crate) async fn serve(server: impl Future<Output = Result<(), String>>, grace: Duration) -> Result<(), String> {
    // The worker stops after the server, so that the worker can send the mails of the server's last requests.
    let (stop_worker, stop) = oneshot::channel();
    let server = async {
        server.await?;
        drop(stop_worker);
        Ok(())
    };
    tokio::try_join!(server, keep_a_worker(grace, stop)).map(drop)
}

/// Waits until shutdown starts. If `until_eof` is true, this function also returns when the standard input ends.
pub(crate) async fn until_stopped(tasks: &Tasks, until_eof: bool) -> Result<(), String> {
    background_tasks_host::notify_ready();
    if until_eof {
        let ended = input_ended().map_err(|error| format!("cannot watch the standard input: {error}"))?;
        tasks.signal().run_until_shutdown(ended).await;
    } else {
        tasks.signal().await;
    }
    Ok(())
}

/// Returns a future that resolves when the standard input ends. A separate thread reads the input, because a blocking read cannot
/// be cancelled.
fn input_ended() -> io::Result<impl Future<Output = ()>> {
    let (sender, ended) = oneshot::channel::<()>();
    thread::Builder::new().name("input".into()).spawn(move || {
        let mut buffer = [0; 64];
        while io::stdin().read(&mut buffer).is_ok_and(|len| len > 0) {}
        drop(sender);
    })?;
    Ok(async { drop(ended.await) })
}

/// Keeps a worker running until `stop` resolves, and then waits until the worker has drained.
///
/// The worker stops when its standard input ends. This input is a pipe from this process, and the system closes the pipe when this
/// process dies. Therefore the worker also drains if this process is killed.
async fn keep_a_worker(grace: Duration, mut stop: oneshot::Receiver<()>) -> Result<(), String> {
    loop {
        let mut worker = start(grace).map_err(|error| format!("cannot start a worker: {error}"))?;
        // Takes the pipe out of `worker`, because `wait` would close the pipe.
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
        // Waits for a second, so that the loop does not start workers all the time if each worker dies immediately.
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            _ = &mut stop => return Ok(()),
        }
    }
}

/// Returns an error if the worker exited with code 2. This code means an error that a restart does not remove, such as an invalid
/// option.
fn exited(status: ExitStatus) -> Result<(), String> {
    if status.code() == Some(2) {
        return Err("the worker failed with exit code 2".into());
    }
    warn!("the worker died ({status}): starting another one, which takes over its mails");
    Ok(())
}

fn start(grace: Duration) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(values::worker_args(grace)).stdin(Stdio::piped());
    // In a terminal, Ctrl-C sends the signal to the whole process group. The worker must drain after the server, so it gets its own
    // process group.
    #[cfg(unix)]
    command.process_group(0);
    // In a terminal, this process shows a progress bar. It reads and prints the log of the worker, so that the log does not
    // overwrite the bar.
    if io::stderr().is_terminal() {
        command.stderr(Stdio::piped());
    }
    command.spawn()
}

/// Prints the log lines of the worker above the progress bar of this process.
async fn forward(stderr: Option<ChildStderr>) {
    let Some(stderr) = stderr else { return };
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = writeln!(background_tasks_host::stderr(), "{line}");
    }
}
