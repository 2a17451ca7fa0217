//! Watches for the file that Azure WebJobs creates to stop a job.

use crate::program::HostState;
use crate::signals::{self, HookKey};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{env, io, thread};

/// The time between two checks. This time is much shorter than the time that WebJobs waits before it kills a job.
const INTERVAL: Duration = Duration::from_millis(100);

/// Starts a thread that asks the process to stop as soon as the file exists. The thread ends after this request, when the host's `run` is
/// dropped, or when the host has ended and another host has not. Until then, the file limits `main` as a signal does.
pub(crate) fn watch(state: &Arc<HostState>, hook: HookKey) -> io::Result<()> {
    let Some(file) = env::var_os("WEBJOBS_SHUTDOWN_FILE").filter(|file| !file.is_empty()).map(PathBuf::from) else { return Ok(()) };
    let state = Arc::downgrade(state);
    let watch = move || {
        let is_needed = |state: Arc<HostState>| state.is_awaited() && (!state.is_finished() || hook.limits_main());
        let is_needed = || state.upgrade().is_some_and(is_needed);
        while is_needed() {
            // The host may have ended since the check above.
            if file.exists() && is_needed() {
                return signals::request_stop_by("the file of WebJobs");
            }
            thread::sleep(INTERVAL);
        }
    };
    thread::Builder::new().name("webjobs".into()).spawn(watch).map(drop)
}
