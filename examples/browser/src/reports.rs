//! Reports of a visit, which the next visit shows.

use crate::browser;
use background_tasks::{Registry, Summary, WasmSpawner};
use std::future::ready;
use wasm_bindgen_futures::spawn_local;

const PREFIX: &str = "report/";

/// Stores a report of a visit's tasks: the stragglers now, and the summary if they end later. They end if the page was only hidden, or if
/// the user returns to it.
pub(crate) fn store(tasks: &Registry<WasmSpawner>, started: f64) {
    let key = format!("{PREFIX}{started}");
    let (drained, now) = (tasks.shutdown(), tasks.shutdown().until(ready(())));
    spawn_local(async move {
        if let Err(stragglers) = now.await {
            write(&key, &format!("{stragglers:#}"));
        }
        let summary = drained.await;
        if summary != Summary::default() {
            write(&key, &format!("drained: {summary}"));
        }
    });
}

fn write(key: &str, report: &str) {
    if let Err(error) = browser::store(key, report) {
        web_sys::console::warn_1(&error.into());
    }
}

/// Returns the reports of earlier visits, and removes them.
pub(crate) fn take() -> Vec<String> {
    let mut keys = browser::keys();
    keys.retain(|key| key.starts_with(PREFIX));
    keys.sort();
    keys.iter().filter_map(|key| browser::take(key)).collect()
}
