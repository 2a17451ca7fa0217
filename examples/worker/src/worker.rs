//! Declares the functions of the Workers runtime that the example uses.

use js_sys::Promise;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{RequestInit, Response, ResponseInit};

#[wasm_bindgen]
extern "C" {
    /// The variables of the Worker's configuration.
    pub type Env;

    /// Returns the URL of the mail service.
    #[wasm_bindgen(method, getter, js_name = MAIL)]
    pub(crate) fn mail(this: &Env) -> String;

    /// Returns the grace period in seconds.
    #[wasm_bindgen(method, getter, js_name = GRACE)]
    pub(crate) fn grace(this: &Env) -> String;

    /// The context of one request.
    pub type Context;

    /// Makes the runtime wait until the promise resolves or is rejected, before it cancels the work of the request.
    #[wasm_bindgen(method, js_name = waitUntil)]
    pub(crate) fn wait_until(this: &Context, promise: &Promise);

    fn fetch(url: &str, init: &RequestInit) -> Promise;
}

pub(crate) fn respond(status: u16, text: &str) -> Result<Response, JsValue> {
    let init = ResponseInit::new();
    init.set_status(status);
    Response::new_with_opt_str_and_init(Some(text), &init)
}

/// Sends `text` with the method POST, and waits for the response.
pub(crate) async fn post(url: &str, text: &str) -> Result<(), String> {
    let init = RequestInit::new();
    init.set_method("POST");
    init.set_body(&text.into());
    let error_text = |error: JsValue| format!("{error:?}");
    let response: Response = JsFuture::from(fetch(url, &init)).await.map_err(error_text)?.dyn_into().map_err(error_text)?;
    if response.ok() { Ok(()) } else { Err(format!("the mail service responded with status {}", response.status())) }
}
