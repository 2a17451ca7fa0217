//! Stores a report of each visit, which the next visit shows.

use crate::browser;
use background_tasks::{Registry, Summary, WasmSpawner};
use std::future::ready;
use wasm_bindgen_futures::spawn_local;

const PREFIX: &str = "report/";

/// Stores a report of the tasks of a visit. The report lists the stragglers. If the stragglers end later, the summary replaces the list.
/// Stragglers can end later if the page was only hidden, or if the user returns to the page.
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

/// Returns the reports of earlier visits, and removes them from the local storage.
pub(crate) fn take() -> Vec<String> {
    let mut keys = browser::keys();
    keys.retain(|key| key.starts_with(PREFIX));
    keys.sort();
    keys.iter().filter_map(|key| browser::take(key)).collect()
}
