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

/// Logs panics: without a hook, a panic traps without a message.
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
/// Returns the errors of JavaScript's constructors, which the runtime answers with status 500.
#[wasm_bindgen]
pub fn handle(request: &Request, env: &Env, context: &Context) -> Result<Response, JsValue> {
    let url = Url::new(&request.url())?;
    let path = url.pathname();
    let order = path.strip_prefix("/orders/").filter(|order| !order.is_empty() && request.method() == "POST");
    let Some(order) = order else { return worker::respond(404, "post to /orders/<name>\n") };

    // A registry for each request, because its drain is the end of this request's tasks.
    let tasks = Registry::builder(WasmSpawner).inspect().observer(ConsoleObserver).build();
    for recipient in ["customer", "accounting"] {
        tasks.named("receipt").run_local(send_receipt(env.mail(), format!("{order} to {recipient}")));
    }
    // Without this call, the runtime cancels the tasks when it has sent the response. The test sends `?forget` to show this.
    if url.search() != "?forget" {
        context.wait_until(&drain(&tasks, Duration::from_secs_f64(env.grace().parse().unwrap_or(25.0))));
    }
    worker::respond(202, &format!("{order} is accepted\n"))
}

/// Returns a promise that resolves when all tasks have ended, at the latest one second after the grace period. Aborts the tasks that are in
/// flight when the grace period expires, and logs the tasks that are still in flight one second later.
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

/// Writes the receipt, which takes a while, and posts it to the mail service.
async fn send_receipt(mail: String, receipt: String) -> Result<(), String> {
    WasmSpawner.sleep(Duration::from_millis(300)).await;
    worker::post(&mail, &receipt).await
}
