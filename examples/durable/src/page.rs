//! Builds the web page for users. The page shows a form, and the status of a mail. The page works without its script, which only adds
//! live updates.

use crate::signups::Signup;
use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use serde_json::json;
use std::convert::Infallible;

const HTML: &str = include_str!("page.html");

/// With this HTML element, a browser without scripts reloads the page every two seconds. Pages with a final status do not contain this
/// element.
const REFRESH: &str = r#"<noscript><meta http-equiv="refresh" content="2"></noscript>"#;

/// A content security policy that allows only the script and the style of this page. The policy contains their hashes. If you
/// change the script or the style, copy the new hash from the browser's console.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    script-src 'sha256-im8vFS0N5pJpjcIBk2dVfqV7lYcdLnwJOb18gj/H2tA='; \
    style-src 'sha256-UsfFXIyzM9DT1uG9+K7uKrUTtlDFYkXWzwaEr8WUqeY='; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The format of responses that the client accepts.
#[derive(Debug, PartialEq)]
pub(crate) enum Wants {
    Page,
    Data,
}

impl<S: Sync> FromRequestParts<S> for Wants {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let accepts = parts.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        Ok(if accepts.is_some_and(|accept| accept.contains("text/html")) { Self::Page } else { Self::Data })
    }
}

impl Wants {
    /// Returns an error response that contains `reason`.
    pub(crate) fn refused(&self, status: StatusCode, reason: &str) -> Response {
        match self {
            Self::Page => refused(status, reason),
            Self::Data => (status, Json(json!({ "error": reason }))).into_response(),
        }
    }
}

/// Returns the page with the empty form.
pub(crate) fn form() -> Response {
    page(StatusCode::OK, |name| match name {
        "title" => "Sign up",
        "state" => "new",
        "label" => "Your address",
        _ => "",
    })
}

/// Returns the page with the form and an error message.
fn refused(status: StatusCode, reason: &str) -> Response {
    page(status, |name| match name {
        "title" | "refusal" => reason,
        "state" => "refused",
        "label" => "Your address",
        _ => "",
    })
}

/// Returns the page that shows the status of a mail.
pub(crate) fn signup(signup: &Signup) -> Response {
    let state = signup.status.to_string();
    page(StatusCode::OK, |name| match name {
        "title" | "message" => &signup.message,
        "state" => &state,
        "address" => &signup.address,
        "refresh" if !signup.ended => REFRESH,
        "label" => "Another address",
        _ => "",
    })
}

fn page<'a>(status: StatusCode, value: impl Fn(&str) -> &'a str) -> Response {
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // Everybody who knows the URL can see the page. To keep the URL secret, the browser must not send it to other sites in the header
        // `Referer`.
        (header::REFERRER_POLICY, "no-referrer"),
        (header::VARY, "accept"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, Html(fill(value))).into_response()
}

/// Replaces each `{{name}}` in the page by its value. Escapes each value for HTML, except the refresh element.
fn fill<'a>(value: impl Fn(&str) -> &'a str) -> String {
    let mut parts = HTML.split("{{");
    let mut html = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("every placeholder is closed");
        match name {
            "refresh" => html.push_str(value(name)),
            _ => escape(value(name), &mut html),
        }
        html.push_str(rest);
    }
    html
}

fn escape(text: &str, html: &mut String) {
    for letter in text.chars() {
        match letter {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            _ => html.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In this test, the value contains another placeholder, which must not be replaced.
    #[test]
    fn user_input_is_escaped() {
        let html = fill(|name| if name == "address" { r#""<script>&{{state}}"@example.com"# } else { "" });
        assert!(html.contains("<h2 id=\"address\">&quot;&lt;script&gt;&amp;{{state}}&quot;@example.com</h2>"), "{html}");
    }
}
