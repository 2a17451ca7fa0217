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

/// Installs a hook that logs panics. Without this hook, a panic would end the call from JavaScript without a message.
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
/// Returns an error if JavaScript cannot construct the URL or the response. The runtime then answers with status 500.
#[wasm_bindgen]
pub fn handle(request: &Request, env: &Env, context: &Context) -> Result<Response, JsValue> {
    let url = Url::new(&request.url())?;
    let path = url.pathname();
    let order = path.strip_prefix("/orders/").filter(|order| !order.is_empty() && request.method() == "POST");
    let Some(order) = order else { return worker::respond(404, "post to /orders/<name>\n") };

    // Each request has its own registry, so that its drain waits only for the tasks of this request.
    let tasks = Registry::builder(WasmSpawner).inspect().observer(ConsoleObserver).build();
    for recipient in ["customer", "accounting"] {
        tasks.named("receipt").run_local(send_receipt(env.mail(), format!("{order} to {recipient}")));
    }
    // Without this call to `wait_until`, the runtime cancels the tasks when it has sent the response. A test posts an order with `?forget`
    // to show that its receipts are lost.
    if url.search() != "?forget" {
        context.wait_until(&drain(&tasks, Duration::from_secs_f64(env.grace().parse().unwrap_or(25.0))));
    }
    worker::respond(202, &format!("{order} is accepted\n"))
}

/// Shuts the registry down. Returns a promise that resolves when all tasks have ended. When the grace period expires, the registry aborts
/// the tasks in flight. One second later, the promise resolves in any case, and the log lists the tasks that are still in flight.
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
