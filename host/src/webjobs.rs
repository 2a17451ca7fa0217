//! Watches for the file that Azure WebJobs creates to stop a job.

use crate::program::HostState;
use crate::signals;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{env, io, thread};

/// The time between two checks. This time is much shorter than the time that WebJobs waits before it kills a job.
const INTERVAL: Duration = Duration::from_millis(100);

/// Starts a thread that asks the process to stop as soon as the file exists. The thread ends after this request, or when the host's `run`
/// is dropped.
pub(crate) fn watch(state: &Arc<HostState>) -> io::Result<()> {
    let Some(file) = env::var_os("WEBJOBS_SHUTDOWN_FILE").filter(|file| !file.is_empty()).map(PathBuf::from) else { return Ok(()) };
    let state = Arc::downgrade(state);
    let watch = move || {
        while state.upgrade().is_some_and(|state| state.is_awaited()) {
            if file.exists() {
                return signals::request_stop();
            }
            thread::sleep(INTERVAL);
        }
    };
    thread::Builder::new().name("webjobs".into()).spawn(watch).map(drop)
}
