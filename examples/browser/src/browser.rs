//! Calls the functions of the browser that the page needs.

use js_sys::Promise;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{RequestInit, Response, Storage, Window};

/// Converts an error of JavaScript to a string.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn error_text(error: JsValue) -> String {
    format!("{error:?}")
}

fn window() -> Result<Window, String> {
    web_sys::window().ok_or_else(|| "no window".into())
}

fn storage() -> Result<Storage, String> {
    window()?.local_storage().map_err(error_text)?.ok_or_else(|| "the window has no local storage".into())
}

/// Stores a value in the local storage, so that later visits can read it. The value is stored when this function returns.
pub(crate) fn store(key: &str, value: &str) -> Result<(), String> {
    storage()?.set_item(key, value).map_err(error_text)
}

/// Reads a value from the local storage and removes it.
pub(crate) fn take(key: &str) -> Option<String> {
    let storage = storage().ok()?;
    let value = storage.get_item(key).ok()?;
    storage.remove_item(key).ok()?;
    value
}

/// Returns the keys of all values in the local storage.
pub(crate) fn keys() -> Vec<String> {
    let Ok(storage) = storage() else { return Vec::new() };
    let length = storage.length().unwrap_or(0);
    (0..length).filter_map(|n| storage.key(n).ok()?).collect()
}

/// Returns the number of milliseconds since 1970, with a fraction. Returns 0 if the browser has no clock.
pub(crate) fn now() -> f64 {
    let performance = window().ok().and_then(|window| window.performance());
    performance.map_or(0.0, |performance| performance.time_origin() + performance.now())
}

pub(crate) async fn sleep(milliseconds: i32) -> Result<(), String> {
    let window = window()?;
    let mut timer = Ok(0);
    let elapsed = Promise::new(&mut |resolve, _| {
        timer = window.set_timeout_with_callback_and_timeout_and_arguments_0(&resolve, milliseconds);
    });
    timer.map_err(error_text)?;
    JsFuture::from(elapsed).await.map(drop).map_err(error_text)
}

/// Sends `text` with the method POST, and waits for the response. Returns an error if the status is not 2xx.
pub(crate) async fn post(path: &str, text: &str) -> Result<(), String> {
    let request = RequestInit::new();
    request.set_method("POST");
    request.set_body(&text.into());
    let response = window()?.fetch_with_str_and_init(path, &request);
    let response: Response = JsFuture::from(response).await.map_err(error_text)?.dyn_into().map_err(error_text)?;
    if response.ok() { Ok(()) } else { Err(format!("the server responded with status {}", response.status())) }
}

/// Queues `text` for sending. The browser sends it even after the page has been closed, and discards the response.
pub(crate) fn send_beacon(path: &str, text: &str) -> Result<(), String> {
    match window()?.navigator().send_beacon_with_opt_str(path, Some(text)) {
        Ok(true) => Ok(()),
        Ok(false) => Err("the browser does not accept another beacon".into()),
        Err(error) => Err(error_text(error)),
    }
}
