//! Checks the spelling, and finds phrases that `xtask/words.txt` lists.

use crate::context::Context;
use anyhow::{Context as _, Result, ensure};
use std::collections::HashMap;
use std::iter;
use std::path::Path;
use std::slice;
use xshell::cmd;

const LIST: &str = "xtask/words.txt";
/// The files that contain prose. In Rust files, only comments and string literals are checked.
const FILES: [&str; 11] = ["*.md", "*.rs", "*.html", "*.svg", "*.yml", "*.yaml", "*.toml", "*.mjs", "*.py", "*.sh", "*.service"];

pub(super) fn words(context: &Context) -> Result<()> {
    let list = List::parse(&context.sh.read_file(LIST)?)?;
    let mut findings = Vec::new();
    let files = cmd!(context.sh, "git ls-files --cached --others --exclude-standard -- {FILES...}").quiet().read()?;
    // Git also lists a file that was deleted if the deletion is not committed.
    for file in files.lines().filter(|file| context.sh.path_exists(file)) {
        let text = context.sh.read_file(file)?;
        findings.extend(list.check(file, &text));
    }
    for finding in &findings {
        println!("{finding}");
    }
    ensure!(findings.is_empty(), "the text contains phrases that {LIST} lists: {}", findings.len());

    let Some(bin) = context.python_package("typos", "", "1.52.0", "typos") else { return Ok(()) };
    let typos = bin.join("typos");
    Ok(cmd!(context.sh, "{typos}").run()?)
}

/// The phrases of `words.txt`, grouped by their first word.
struct List(HashMap<String, Vec<Phrase>>);

struct Phrase {
    following_words: Vec<String>,
    /// The text to write instead, or `None` if the phrase is allowed.
    advice: Option<String>,
}

/// A word in lower case, or a punctuation mark.
struct Token {
    text: String,
    line: usize,
}

/// A character that replaces code and empty lines. No phrase contains this character.
const BREAK: char = '\u{1}';

impl List {
    fn parse(text: &str) -> Result<Self> {
        let mut list = Self(HashMap::new());
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (phrases, advice) = line.split_once(" => ").with_context(|| format!("{LIST}: no ` => ` in `{line}`"))?;
            let advice = (advice != "(allowed)").then(|| advice.to_owned());
            for phrase in phrases.split(" | ") {
                let mut words = tokens(phrase).into_iter().map(|token| token.text);
                let first = words.next().with_context(|| format!("{LIST}: an empty phrase in `{line}`"))?;
                let phrase = Phrase { following_words: words.collect(), advice: advice.clone() };
                list.0.entry(first).or_default().push(phrase);
            }
        }
        Ok(list)
    }

    /// Searches the prose of a file for phrases to avoid. Returns one line of text for each phrase found.
    fn check(&self, file: &str, text: &str) -> Vec<String> {
        let is_rust = Path::new(file).extension().is_some_and(|extension| extension == "rs");
        let tokens = tokens(&if is_rust { rust_prose(text) } else { text.to_owned() });
        let mut findings = Vec::new();
        let mut rest = &tokens[..];
        while let [first, following @ ..] = rest {
            rest = following;
            let phrases = self.0.get(&first.text).map_or(&[][..], Vec::as_slice);
            let is_next = |words: &[String]| words.iter().eq(following.iter().map(|token| &token.text).take(words.len()));
            let Some(phrase) = phrases.iter().find(|phrase| is_next(&phrase.following_words)) else { continue };
            if let Some(advice) = &phrase.advice {
                let phrase = [slice::from_ref(&first.text), &phrase.following_words].concat().join(" ");
                findings.push(format!("{file}:{}: `{phrase}`: write {advice}", first.line));
            } else {
                rest = &following[phrase.following_words.len()..];
            }
        }
        findings
    }
}

/// Splits a text into words and punctuation marks. A line break separates words like a space. An empty line adds `BREAK`, which ends a
/// phrase. Comment markers are skipped.
fn tokens(text: &str) -> Vec<Token> {
    let is_part_of_word = |c: char| c.is_alphanumeric() || c == '_' || c == '\'';
    let mut tokens = Vec::new();
    for (line, text) in iter::zip(1.., text.lines()) {
        let mut text = text.trim_start().trim_start_matches(['/', '!', '#', '*', '>']).trim_start();
        if text.is_empty() {
            // This character is `BREAK`, because a phrase cannot continue in the next paragraph.
            text = "\u{1}";
        }
        while let Some(first) = text.chars().next() {
            let end = text.find(|c| !is_part_of_word(c)).unwrap_or(text.len()).max(first.len_utf8());
            let (token, rest) = text.split_at(end);
            tokens.push(Token { text: token.to_lowercase(), line });
            text = rest.trim_start();
        }
    }
    tokens
}

/// Replaces each character of the code with `BREAK`. Comments, string literals and line breaks stay, so line numbers do not change.
fn rust_prose(source: &str) -> String {
    let mut prose = String::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let (is_prose, length) = if rest.starts_with("//") {
            (true, rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            (true, rest.find("*/").map_or(rest.len(), |end| end + 2))
        } else if first == '"' {
            (true, string_length(rest))
        } else if let Some(length) = raw_string_length(rest) {
            (true, length)
        } else {
            // A quotation mark in a character literal does not start a string.
            let quote = ["'\"'", "'\\\"'"].into_iter().find(|quote| rest.starts_with(quote));
            (false, quote.map_or(first.len_utf8(), str::len))
        };
        let (text, after) = rest.split_at(length);
        rest = after;
        if is_prose {
            prose.push_str(&text.replace("\\n", "  ").replace("\\\n", " \n"));
        } else {
            prose.extend(text.chars().map(|c| if c.is_whitespace() { c } else { BREAK }));
        }
    }
    prose
}

/// Returns the length of the string literal at the start of `source`, including its quotation marks.
fn string_length(source: &str) -> usize {
    let mut is_escaped = false;
    let end = source.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == '"' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    end.map_or(source.len(), |(at, _)| at + 1)
}

/// Returns the length of the raw string literal at the start of `source`, or `None` if `source` starts with other text.
fn raw_string_length(source: &str) -> Option<usize> {
    let (start, text) = source.strip_prefix('r')?.split_once('"')?;
    let end = format!("\"{start}");
    let length = text.find(&end).map_or(text.len(), |at| at + end.len());
    start.chars().all(|c| c == '#').then_some(start.len() + 2 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHRASES: &str = "# a comment\n\nfoo bar baz => (allowed)\nfoo bar => `x`\nqux | quux => `y`\nthe quux is => (allowed)\n";

    #[track_caller]
    fn assert_lines(file: &str, text: &str, expected: &[usize]) {
        let findings = List::parse(PHRASES).unwrap().check(file, text);
        let expected: Vec<_> = expected.iter().map(|line| format!("{file}:{line}:")).collect();
        assert_eq!(findings.len(), expected.len(), "{findings:?}");
        assert!(findings.iter().zip(&expected).all(|(finding, start)| finding.starts_with(start)), "{findings:?}");
    }

    #[test]
    fn phrase_is_found_in_prose() {
        assert_lines("a.md", "# Qux\n\nIt ends (foo bar).\n", &[1, 3]);
        assert_lines("a.yml", "name: x # foo bar\n", &[1]);
    }

    #[test]
    fn phrase_is_found_across_lines_of_a_paragraph() {
        assert_lines("a.md", "It ends foo\nbar. Here foo\n\nbar", &[1]);
        assert_lines("a.rs", "    /// It ends foo\n    /// bar.\nlet x = 1; // foo\nlet bar = 1; // bar\n", &[1]);
    }

    #[test]
    fn part_of_a_word_is_ignored() {
        assert_lines("a.md", "squx, qux_it, foo bars, foo. Bar", &[]);
    }

    #[test]
    fn allowed_phrase_is_ignored() {
        assert_lines("a.md", "The quux is. A quux is. A foo bar baz. A foo bar.", &[1, 1]);
    }

    #[test]
    fn rust_code_is_ignored() {
        assert_lines("a.rs", "fn qux() { foo(bar) }\nlet qux = '\"'; // \"\nfoo!(bar);\n", &[]);
    }

    #[test]
    fn rust_strings_are_checked() {
        let text =
            "f(\"qux\");\nf(r#\"a \"qux\" b\"#); qux()\nf(\"a \\\" \\nqux\", qux);\nf(\"foo \\\n  bar\", '\\\"', qux); /* qux */\n";
        assert_lines("a.rs", text, &[1, 2, 3, 4, 5]);
    }

    #[test]
    fn job_fails_on_an_avoided_phrase() {
        let list = List::parse(include_str!("../../words.txt")).unwrap();
        assert_eq!(list.check("a.md", &"Observers are _told of each loss at _once.".replace('_', "")).len(), 2);
        assert!(list.check("a.md", "Observers are notified of each loss immediately.").is_empty());
    }
}
