//! Checks the origin of a request. A browser sends the origin in a header that web pages cannot change.

use http::HeaderValue;
use http::header::{self, HeaderMap, HeaderName};

/// Returns whether a request with these headers comes from a page of the same origin. `authority` is the host and port to which the request
/// was sent.
pub(super) fn is_same(headers: &HeaderMap, authority: &str) -> bool {
    // Browsers send the header `Sec-Fetch-Site` only over HTTPS or to the local machine. In other cases, the header `Origin` is checked.
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
