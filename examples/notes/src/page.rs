//! Builds the page at `/`. The names of notes need no escaping, because they contain no special characters of HTML.

use crate::store::{Name, Overview};
use background_tasks::Summary;
use std::fmt::Write;

pub(crate) fn page(in_flight: usize, ended: Summary, overview: &Overview) -> String {
    let Overview { waiting, next, written, recent } = overview;
    let next = list(next);
    let recent = list(recent);
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Notes</title>\n\
         <h1>Notes</h1>\n<p><a href=\"/tasks\">{in_flight} in flight</a>, including this request and its connection.</p>\n\
         <p>Ended: {ended}.</p>\n\
         <h2>Not on disk yet: {waiting}</h2>\n{next}\
         <h2>Written: {written}</h2>\n{recent}"
    )
}

fn list(names: &[Name]) -> String {
    let mut list = String::from("<ul>\n");
    for name in names {
        let _ = writeln!(list, "<li><a href=\"/notes/{name}\">{name}</a></li>");
    }
    list + "</ul>\n"
}
