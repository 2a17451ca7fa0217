//! Replaces the part of a document that contains the measurements.

use std::fs;
use std::path::Path;

const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// Returns an error if the file does not contain the lines `BEGIN` and `END`. Call this function before the measurements.
pub fn check(file: &Path) -> Result<(), String> {
    parts(&read(file)?).map(drop).ok_or_else(|| format!("{}: missing the lines {BEGIN} and {END}", file.display()))
}

pub fn rewrite(file: &Path, measured: &str) -> Result<(), String> {
    check(file)?;
    let text = read(file)?;
    let (before, after) = parts(&text).unwrap_or_default();
    fs::write(file, format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", measured.trim()))
        .map_err(|error| format!("{}: {error}", file.display()))
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

/// Returns the part of the file before the line `BEGIN`, and the part that follows the marker `END`.
fn parts(text: &str) -> Option<(&str, &str)> {
    let begin = line_start(text, BEGIN)?;
    let rest = &text[begin..];
    let end = line_start(rest, END)?;
    Some((&text[..begin], &rest[end + END.len()..]))
}

fn line_start(text: &str, line: &str) -> Option<usize> {
    let mut start = 0;
    for each in text.split_inclusive('\n') {
        if each.trim_end() == line {
            return Some(start);
        }
        start += each.len();
    }
    None
}
