//! A Cloudflare Worker that accepts orders. Background tasks send the receipts after the response.
#![cfg(all(target_family = "wasm", target_os = "unknown"))]

mod worker;

use background_tasks::{Loss, Observer, Registry, TaskInfo, Timer, WasmSpawner};
use js_sys::Promise;
use std::time::Duration;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::future_to_promise;
use web_sys::{Request, Response, Url};
use worker::{Context, Env};

/// Installs a hook that logs panics. Without a hook, a panic stops the program without a message.
#[wasm_bindgen(start)]
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| log(&panic)));
}

fn log(line: &dyn ToString) {
    web_sys::console::error_1(&line.to_string().into());
}

struct ConsoleObserver;

impl Observer for ConsoleObserver {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        log(&format!("{task} {loss}"));
    }
}

/// Answers `POST /orders/<name>` immediately, and sends two receipts after the response.
///
/// # Errors
///
/// Returns the errors of JavaScript's constructors. The runtime answers such a request with status 500.
#[wasm_bindgen]
pub fn handle(request: &Request, env: &Env, context: &Context) -> Result<Response, JsValue> {
    let url = Url::new(&request.url())?;
    let path = url.pathname();
    let order = path.strip_prefix("/orders/").filter(|order| !order.is_empty() && request.method() == "POST");
    let Some(order) = order else { return worker::respond(404, "post to /orders/<name>\n") };

    // Each request has its own registry, because the drain of the registry must wait only for the tasks of this request.
    let tasks = Registry::builder(WasmSpawner).inspect().observer(ConsoleObserver).build();
    for recipient in ["customer", "accounting"] {
        tasks.named("receipt").run_local(send_receipt(env.mail(), format!("{order} to {recipient}")));
    }
    // Without this call, the runtime cancels the tasks after it has sent the response. A test uses `?forget` to show that the receipts are
    // lost without this call.
    if url.search() != "?forget" {
        context.wait_until(&drain(&tasks, Duration::from_secs_f64(env.grace().parse().unwrap_or(25.0))));
    }
    worker::respond(202, &format!("{order} is accepted\n"))
}

/// Returns a promise that resolves when all tasks have ended, but at the latest one second after the grace period. When the grace period
/// expires, aborts the tasks in flight. Logs the tasks that are still in flight one second later.
fn drain(tasks: &Registry<WasmSpawner>, grace: Duration) -> Promise {
    let drained = tasks.shutdown().or_abort(WasmSpawner.sleep(grace), async || WasmSpawner.sleep(Duration::from_secs(1)).await);
    future_to_promise(async move {
        match drained.await {
            Ok(summary) => log(&format!("drained: {summary}")),
            Err(stragglers) => log(&stragglers),
        }
        Ok(JsValue::UNDEFINED)
    })
}

/// Simulates writing a receipt, which takes some time, and sends it to the mail service.
async fn send_receipt(mail: String, receipt: String) -> Result<(), String> {
    WasmSpawner.sleep(Duration::from_millis(300)).await;
    worker::post(&mail, &receipt).await
}
