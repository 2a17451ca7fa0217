//! Checks the host name to which a request was sent. A browser sends this name in a header that web pages cannot change.

use http::uri::Authority;
use http::{Request, header};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Returns the host and port to which the request was sent. Returns `None` if the request has no valid host, or if its headers contradict
/// each other.
pub(crate) fn authority<B>(request: &Request<B>) -> Option<Authority> {
    let mut authorities = request.headers().get_all(header::HOST).iter().map(|host| Authority::try_from(host.as_bytes()).ok());
    // HTTP/2 sends the authority in the URI, and may also send a `Host` header.
    let first = request.uri().authority().cloned().or_else(|| authorities.next()?)?;
    let agreed = authorities.all(|other| other.as_ref() == Some(&first));
    (agreed && is_host_and_port(&first)).then_some(first)
}

/// Returns whether the authority consists of a host and an optional port. Some other authorities look like a trusted host: `localhost@`
/// contains user information, and in `[::1].example`, the parser finds the host `[::1]`.
fn is_host_and_port(authority: &Authority) -> bool {
    let rest = authority.as_str().strip_prefix(authority.host());
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit())))
}

/// Returns whether the host is one of `names`, `localhost`, or an IP address. This check prevents DNS rebinding. In this attack, a web page
/// makes its own host name resolve to the address of this server, to reach the server under that name. DNS cannot change where `localhost`
/// and IP addresses lead.
pub(crate) fn is_trusted(authority: &Authority, names: &[String]) -> bool {
    let host = authority.host();
    cannot_be_rebound(host) || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

fn cannot_be_rebound(host: &str) -> bool {
    let literal = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<Ipv4Addr>().is_ok(),
    };
    literal || host.eq_ignore_ascii_case("localhost")
}
