//! The page for the end-user: a form, and what became of a mail. It is whole without its script, which only makes it live.

use crate::signups::Signup;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

const HTML: &str = include_str!("page.html");

/// For a browser that runs no script: it asks again until there is nothing more to tell.
const REFRESH: &str = r#"<noscript><meta http-equiv="refresh" content="2"></noscript>"#;

/// Lets the page's own script and style run and nothing else; a browser's console says the hashes when they have changed.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    script-src 'sha256-43NCTFzVxo/0RRcCFSXUZGjV6vRFweKv+0gZwagLVe0='; \
    style-src 'sha256-UsfFXIyzM9DT1uG9+K7uKrUTtlDFYkXWzwaEr8WUqeY='; \
    base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// The form.
pub(crate) fn form() -> Response {
    page(StatusCode::OK, |name| match name {
        "title" => "Sign up",
        "state" => "new",
        "label" => "Your address",
        _ => "",
    })
}

/// The form, under what was wrong with what it had sent.
pub(crate) fn refused(status: StatusCode, why: &str) -> Response {
    page(status, |name| match name {
        "title" | "refusal" => why,
        "state" => "refused",
        "label" => "Your address",
        _ => "",
    })
}

/// What became of a mail.
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
        // Who has the page's address can see it.
        (header::REFERRER_POLICY, "no-referrer"),
        (header::VARY, "accept"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, Html(fill(value))).into_response()
}

/// Puts a value in the place of each `{{name}}`, as text but for the refresh.
fn fill<'a>(value: impl Fn(&str) -> &'a str) -> String {
    let mut parts = HTML.split("{{");
    let mut html = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("the page closes what it opens");
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

    /// Nor is what stands in a value taken for a name.
    #[test]
    fn what_the_user_wrote_is_text() {
        let html = fill(|name| if name == "address" { r#""<script>&{{state}}"@example.com"# } else { "" });
        assert!(html.contains("<h2 id=\"address\">&quot;&lt;script&gt;&amp;{{state}}&quot;@example.com</h2>"), "{html}");
    }
}
