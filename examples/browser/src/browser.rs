//! What the page asks of the browser.

use js_sys::Promise;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::{RequestInit, Response, Storage, Window};

/// What JavaScript threw, as text.
#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn told(error: JsValue) -> String {
    format!("{error:?}")
}

fn window() -> Result<Window, String> {
    web_sys::window().ok_or_else(|| "this is no page".into())
}

fn storage() -> Result<Storage, String> {
    window()?.local_storage().map_err(told)?.ok_or_else(|| "this page has no storage".into())
}

/// Writes at once: what has been written is there at the next visit.
pub(crate) fn store(key: &str, value: &str) -> Result<(), String> {
    storage()?.set_item(key, value).map_err(told)
}

/// Reads a value and removes it.
pub(crate) fn take(key: &str) -> Option<String> {
    let storage = storage().ok()?;
    let value = storage.get_item(key).ok()?;
    storage.remove_item(key).ok()?;
    value
}

/// The keys of what is stored.
pub(crate) fn stored() -> Vec<String> {
    let Ok(storage) = storage() else { return Vec::new() };
    let length = storage.length().unwrap_or(0);
    (0..length).filter_map(|n| storage.key(n).ok()?).collect()
}

/// Milliseconds since 1970, with fractions.
pub(crate) fn now() -> f64 {
    let performance = window().ok().and_then(|window| window.performance());
    performance.map_or(0.0, |performance| performance.time_origin() + performance.now())
}

pub(crate) async fn sleep(milliseconds: i32) -> Result<(), String> {
    let window = window()?;
    let mut refused = Ok(0);
    let elapsed = Promise::new(&mut |resolve, _| {
        refused = window.set_timeout_with_callback_and_timeout_and_arguments_0(&resolve, milliseconds);
    });
    refused.map_err(told)?;
    JsFuture::from(elapsed).await.map(drop).map_err(told)
}

/// Posts a text and waits for the answer.
pub(crate) async fn post(path: &str, text: &str) -> Result<(), String> {
    let request = RequestInit::new();
    request.set_method("POST");
    request.set_body(&text.into());
    let answer = window()?.fetch_with_str_and_init(path, &request);
    let answer: Response = JsFuture::from(answer).await.map_err(told)?.dyn_into().map_err(told)?;
    if answer.ok() { Ok(()) } else { Err(format!("the server said {}", answer.status())) }
}

/// Posts a text by the browser itself, which does so when the page is gone too; nobody hears the answer.
pub(crate) fn post_beyond_the_page(path: &str, text: &str) -> Result<(), String> {
    match window()?.navigator().send_beacon_with_opt_str(path, Some(text)) {
        Ok(true) => Ok(()),
        Ok(false) => Err("the browser takes no more of it".into()),
        Err(error) => Err(told(error)),
    }
}
