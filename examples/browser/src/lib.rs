//! Drafts that are saved and sent after the click has been answered. When the user leaves, what can be done in time is done at once, and
//! what cannot is told at the next visit.
#![cfg(all(target_family = "wasm", target_os = "unknown"))]

mod browser;
mod left;

use background_tasks::{Observer, Registry, TaskInfo, WasmSpawner};
use std::cell::RefCell;
use wasm_bindgen::prelude::wasm_bindgen;

// One visit has one registry: what has been shut down stays so, and who comes back gets a new one.
thread_local!(static VISIT: RefCell<Visit> = RefCell::new(Visit::begin()));

struct Visit {
    tasks: Registry<WasmSpawner>,
    /// When it began, which tells it from others, of other pages too.
    began: f64,
}

impl Visit {
    fn begin() -> Self {
        Self { tasks: Registry::builder(WasmSpawner).inspect().observer(ToConsole).build(), began: browser::now() }
    }
}

fn tasks() -> Registry<WasmSpawner> {
    VISIT.with_borrow(|visit| visit.tasks.clone())
}

struct ToConsole;

impl Observer for ToConsole {
    fn failed(&self, task: &TaskInfo, error: &str) {
        web_sys::console::warn_1(&format!("{task} failed: {error}").into());
    }
}

/// A panic traps and says nothing by itself.
#[wasm_bindgen(start)]
fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| web_sys::console::error_1(&panic.to_string().into())));
}

/// Saves a draft in the background.
#[wasm_bindgen]
pub fn save(text: String) {
    let tasks = tasks();
    tasks.named("save").run_local(save_slowly(text, tasks.clone()));
}

/// A piece at a time, as work does that leaves the page responsive; all that is left at once when the user leaves. Has the time noted by
/// a task of its own, which is accepted then too, as this one is still in flight.
async fn save_slowly(text: String, tasks: Registry<WasmSpawner>) -> Result<(), String> {
    let leaving = tasks.signal();
    for (end, _) in text.char_indices() {
        browser::store("draft", &text[..end])?;
        if leaving.run_until_shutdown(browser::sleep(50)).await.is_none() {
            break;
        }
    }
    browser::store("draft", &text)?;
    tasks.named("note").run_local(async { browser::store("saved at", &browser::now().to_string()) });
    Ok(())
}

/// Sends a draft in the background. Its server may see it twice, as leaving cuts the first request off wherever it is.
#[wasm_bindgen]
pub fn send(text: String) {
    let tasks = tasks();
    let leaving = tasks.signal();
    tasks.named("send").run_local(async move {
        match leaving.run_until_shutdown(browser::post("drafts", &text)).await {
            Some(answer) => answer,
            None => browser::post_beyond_the_page("drafts", &text),
        }
    });
}

/// Builds an index in the background, which takes its time and minds nobody.
#[wasm_bindgen]
pub fn index() {
    tasks().named("index").run_local(browser::sleep(60_000));
}

/// Runs into a bug in the background.
#[wasm_bindgen]
#[expect(clippy::missing_panics_doc, reason = "its task does")]
pub fn bug() {
    tasks().named("bug").run_local(async { panic!("a bug, as planned") });
}

/// Lists what is in flight.
#[wasm_bindgen]
#[must_use]
pub fn in_flight() -> Vec<String> {
    let age = |task: &TaskInfo| task.age().unwrap_or_default().as_secs_f64();
    tasks().tasks().iter().map(|task| format!("{} for {:.1} s", task.name().unwrap_or("task"), age(task))).collect()
}

/// Ends what is in flight where it waits.
#[wasm_bindgen]
pub fn abort() {
    tasks().abort();
}

/// Begins a visit, if the last one is over; returns what became of those before it.
#[wasm_bindgen]
#[must_use]
pub fn arrive() -> Vec<String> {
    if tasks().is_shutting_down() {
        VISIT.set(Visit::begin());
    }
    left::take_reports()
}

/// Ends the visit: tells the tasks to finish at once. They do so when this has returned, in the microtasks that come before the next
/// listener of the same event.
#[wasm_bindgen]
pub fn leave() {
    tasks().shutdown();
}

/// Leaves a report of the visit for the next one; to be called by a listener after that of [`leave`].
#[wasm_bindgen]
pub fn report() {
    VISIT.with_borrow(|visit| left::report(&visit.tasks, visit.began));
}
