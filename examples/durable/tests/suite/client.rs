//! A minimal HTTP client: each request has its own connection, which the server closes after the response.

use crate::process::STEP_TIMEOUT;
use serde_json::Value;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find_map(|(other, value)| (other == name).then_some(value))
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the path of the sign-up.
    #[track_caller]
    pub(crate) fn location(&self) -> &str {
        self.header("location").unwrap_or_else(|| panic!("no location: {self:?}"))
    }
}

pub(crate) fn try_request(to: SocketAddr, request: &str, headers: &[&str], body: &str) -> io::Result<Response> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    let headers: String = headers.iter().flat_map(|header| [header, "\r\n"]).collect();
    let len = body.len();
    stream.write_all(format!("{request} HTTP/1.0\r\n{headers}content-length: {len}\r\n\r\n{body}").as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(ErrorKind::InvalidData)?;
    Ok(Response { status, head: head.replace('\r', ""), body: body.to_owned() })
}

#[track_caller]
pub(crate) fn request(to: SocketAddr, request: &str, headers: &[&str], body: &str) -> Response {
    try_request(to, request, headers, body).unwrap_or_else(|error| panic!("{request}: {error}"))
}

#[track_caller]
pub(crate) fn get(from: SocketAddr, path: &str) -> Response {
    request(from, &format!("GET {path}"), &["host: localhost"], "")
}

/// Requests a page as a browser does.
#[track_caller]
pub(crate) fn page(from: SocketAddr, path: &str) -> Response {
    request(from, &format!("GET {path}"), &["accept: text/html,*/*;q=0.8"], "")
}

pub(crate) const FORM: &str = "content-type: application/x-www-form-urlencoded";

#[track_caller]
pub(crate) fn sign_up(at: SocketAddr, address: &str) -> Response {
    request(at, "POST /signups", &[FORM], &format!("email={address}"))
}

/// Returns all events of a sign-up, until its status is final.
#[track_caller]
pub(crate) fn events(from: SocketAddr, path: &str) -> Vec<Value> {
    let stream = get(from, &format!("{path}/events"));
    assert_eq!((stream.status, stream.header("content-type")), (200, Some("text/event-stream")), "{stream:?}");
    let data = stream.body.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}
