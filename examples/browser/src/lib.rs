//! A page for drafts. Background tasks save and send a draft after the click handler has returned. When the user leaves the page, the
//! tasks finish immediately if they can. The next visit reports the unfinished tasks.
#![cfg(all(target_family = "wasm", target_os = "unknown"))]

mod browser;
mod reports;

use background_tasks::{Loss, Observer, Registry, TaskInfo, WasmSpawner};
use std::cell::RefCell;
use wasm_bindgen::prelude::wasm_bindgen;

// Each visit has its own registry, because a registry cannot be reopened after its shutdown.
thread_local!(static VISIT: RefCell<Visit> = RefCell::new(Visit::start()));

struct Visit {
    tasks: Registry<WasmSpawner>,
    /// The time at which the visit started. The start time is also the ID of the visit: the report of each visit is stored under it.
    started: f64,
}

impl Visit {
    fn start() -> Self {
        Self { tasks: Registry::builder(WasmSpawner).inspect().observer(ConsoleObserver).build(), started: browser::now() }
    }
}

fn tasks() -> Registry<WasmSpawner> {
    VISIT.with_borrow(|visit| visit.tasks.clone())
}

struct ConsoleObserver;

impl Observer for ConsoleObserver {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        web_sys::console::warn_1(&format!("{task} {loss}").into());
    }
}

/// Installs a hook that logs panics. Without this hook, a panic stops the program without a message.
#[wasm_bindgen(start)]
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| web_sys::console::error_1(&panic.to_string().into())));
}

/// Starts a background task that saves a draft.
#[wasm_bindgen]
pub fn save(text: String) {
    let tasks = tasks();
    tasks.named("save").run_local(save_slowly(text, tasks.clone()));
}

/// Saves a draft in small steps, so that the page stays responsive. When the user leaves, saves the rest immediately. At the end, starts
/// another task that stores the time. The registry accepts this task even during the shutdown, because the saving task is still in
/// flight.
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

/// Starts a background task that sends a draft. If the user leaves during the request, the request is aborted and the draft is sent a
/// second time. So the server may receive the draft twice.
#[wasm_bindgen]
pub fn send(text: String) {
    let tasks = tasks();
    let leaving = tasks.signal();
    tasks.named("send").run_local(async move {
        match leaving.run_until_shutdown(browser::post("drafts", &text)).await {
            Some(answer) => answer,
            None => browser::send_beacon("drafts", &text),
        }
    });
}

/// Starts a background task that simulates building an index. The task is slow and ignores the shutdown signal.
#[wasm_bindgen]
pub fn index() {
    tasks().named("index").run_local(browser::sleep(60_000));
}

/// Starts a task that panics.
#[wasm_bindgen]
#[expect(clippy::missing_panics_doc, reason = "the task panics, not the caller")]
pub fn bug() {
    tasks().named("bug").run_local(async { panic!("an intended bug") });
}

/// Lists the tasks in flight.
#[wasm_bindgen]
#[must_use]
pub fn in_flight() -> Vec<String> {
    let age = |task: &TaskInfo| task.age().unwrap_or_default().as_secs_f64();
    tasks().tasks().iter().map(|task| format!("{} for {:.1} s", task.name().unwrap_or("task"), age(task))).collect()
}

/// Aborts the tasks in flight at their next await point.
#[wasm_bindgen]
pub fn abort() {
    tasks().abort();
}

/// Starts a new visit if the previous visit has ended. Returns the reports of earlier visits.
#[wasm_bindgen]
#[must_use]
pub fn arrive() -> Vec<String> {
    if tasks().is_shutting_down() {
        VISIT.set(Visit::start());
    }
    reports::take()
}

/// Ends the visit by starting the shutdown. The tasks finish after this call, in microtasks that run before the next listener of the same
/// event.
#[wasm_bindgen]
pub fn leave() {
    tasks().start_shutdown();
}

/// Stores a report for the next visit. Call [`leave`] first, and call this function in a later listener of the same event.
#[wasm_bindgen]
pub fn report() {
    VISIT.with_borrow(|visit| reports::store(&visit.tasks, visit.started));
}
