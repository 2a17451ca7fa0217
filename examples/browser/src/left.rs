//! What one visit leaves for the next to tell.

use crate::browser;
use background_tasks::{Registry, Summary, WasmSpawner};
use std::future::ready;
use wasm_bindgen_futures::spawn_local;

const PREFIX: &str = "left/";

/// Writes down what became of a visit's tasks: the stragglers now, and the summary once they have finished after all. They do if
/// the page lives on: it was only hidden, or the user comes back to it.
pub(crate) fn report(tasks: &Registry<WasmSpawner>, began: f64) {
    let key = format!("{PREFIX}{began}");
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

/// Takes what earlier visits have left.
pub(crate) fn take_reports() -> Vec<String> {
    let mut keys = browser::stored();
    keys.retain(|key| key.starts_with(PREFIX));
    keys.sort();
    keys.iter().filter_map(|key| browser::take(key)).collect()
}
