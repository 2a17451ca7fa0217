//! The host name and the origin of a request. A browser sends both, and does not let other web pages change them.

use http::header::{self, HeaderMap, HeaderName};
use http::uri::Authority;
use http::{HeaderValue, Request};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Returns the host and port that the request was sent to, unless its headers contradict each other.
pub(super) fn authority<B>(request: &Request<B>) -> Option<Authority> {
    let mut authorities = request.headers().get_all(header::HOST).iter().map(|host| Authority::try_from(host.as_bytes()).ok());
    // HTTP/2 sends the authority in the URI, and may also send a `Host` header.
    let first = request.uri().authority().cloned().or_else(|| authorities.next()?)?;
    let agreed = authorities.all(|other| other.as_ref() == Some(&first));
    (agreed && is_host_and_port(&first)).then_some(first)
}

/// Rejects authorities that only look like a trusted host: user information (`localhost@`), and `[::1].example`, whose host the parser takes to be
/// `[::1]`.
fn is_host_and_port(authority: &Authority) -> bool {
    let rest = authority.as_str().strip_prefix(authority.host());
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit())))
}

/// Returns whether DNS cannot change the address of this host. With DNS rebinding, another web page could reach this server under its own name.
pub(super) fn cannot_be_rebound(host: &str) -> bool {
    let literal = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    };
    literal || host.eq_ignore_ascii_case("localhost")
}

/// Returns whether a request with these headers, sent to `authority`, came from a page of the same origin.
pub(super) fn is_same(headers: &HeaderMap, authority: &str) -> bool {
    // Browsers send this header only to trustworthy origins: HTTPS, or the local machine.
    let site = HeaderName::from_static("sec-fetch-site");
    if headers.contains_key(&site) {
        return only(headers, &site) == Some("same-origin");
    }
    let origin = only(headers, &header::ORIGIN);
    let origin = origin.and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")));
    origin.is_some_and(|origin| origin.eq_ignore_ascii_case(authority))
}

/// Returns the value of a header that occurs exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(HeaderValue::to_str)?.ok()?;
    values.next().is_none().then_some(value)
}
