//! Sends requests to the program. Each request uses a new connection.

use serde_json::Value;
use std::io;
use std::net::SocketAddr;
use testing::{Client, Response};

pub(crate) const FORM: &str = "content-type: application/x-www-form-urlencoded";

/// Reads values from a response of the program.
pub(crate) trait SignupResponse {
    fn json(&self) -> Value;

    /// Returns the path of the sign-up, from the header `location`.
    fn location(&self) -> &str;
}

impl SignupResponse for Response {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn location(&self) -> &str {
        self.header("location").unwrap_or_else(|| panic!("no location: {self:?}"))
    }
}

/// Sends a request. Adds the header `host: localhost` if `headers` contain no host.
#[track_caller]
pub(crate) fn request(to: SocketAddr, method: &str, path: &str, headers: &[&str], body: &str) -> Response {
    let host = if headers.iter().any(|header| header.starts_with("host: ")) { &[][..] } else { &["host: localhost"] };
    let headers = [host, headers].concat();
    let response = Client::connect(to).and_then(|client| client.with_headers(&headers).request(method, path, body.as_bytes()));
    response.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

#[track_caller]
pub(crate) fn get(from: SocketAddr, path: &str) -> Response {
    request(from, "GET", path, &[], "")
}

/// Requests a page with the headers of a browser.
#[track_caller]
pub(crate) fn page(from: SocketAddr, path: &str) -> Response {
    request(from, "GET", path, &["accept: text/html,*/*;q=0.8"], "")
}

/// Sends a POST request to `/signups`.
#[track_caller]
pub(crate) fn post(to: SocketAddr, headers: &[&str], body: &str) -> Response {
    request(to, "POST", "/signups", headers, body)
}

pub(crate) fn try_sign_up(at: SocketAddr, address: &str) -> io::Result<Response> {
    Client::connect(at)?.with_headers(&["host: localhost", FORM]).request("POST", "/signups", format!("email={address}").as_bytes())
}

#[track_caller]
pub(crate) fn sign_up(at: SocketAddr, address: &str) -> Response {
    try_sign_up(at, address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// Waits until the status of a sign-up is final. Returns all its events.
#[track_caller]
pub(crate) fn events(from: SocketAddr, path: &str) -> Vec<Value> {
    events_while(from, path, || ()).0
}

/// Does the same as [`events`], but calls `then` when the response has started. Also returns the result of `then`.
#[track_caller]
pub(crate) fn events_while<T>(from: SocketAddr, path: &str, then: impl FnOnce() -> T) -> (Vec<Value>, T) {
    let mut client = Client::connect(from).unwrap();
    client.send(format!("GET {path}/events HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    client.wait_for_response().unwrap();
    let result = then();
    let stream = client.response().unwrap();
    assert_eq!((stream.status, stream.header("content-type")), (200, Some("text/event-stream")), "{stream:?}");
    let data = stream.text().lines().filter_map(|line| line.strip_prefix("data: "));
    (data.map(|data| serde_json::from_str(data).unwrap()).collect(), result)
}
