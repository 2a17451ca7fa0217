//! Formats the results as Markdown.

use crate::arguments::Options;
use crate::cargo;
use crate::service::GRACE;
use crate::stop::{KILL_AFTER, Stop};
use crate::variants::Variant;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

const PEERS: [&str; 4] = ["axum", "swansong", "tokio", "tokio-util"];

pub struct Results {
    pub variant: &'static Variant,
    pub stops: Vec<Stop>,
}

impl Results {
    pub fn new(variant: &'static Variant) -> Self {
        Self { variant, stops: Vec::new() }
    }

    pub fn sum(&self, number: impl Fn(&Stop) -> usize) -> usize {
        self.stops.iter().map(number).sum()
    }

    fn durations(&self) -> String {
        let mut all: Vec<Duration> = self.stops.iter().map(|stop| stop.duration).collect();
        all.sort_unstable();
        let longest = all.last().copied().unwrap_or_default();
        format!("{:.1} s, {:.1} s", all[all.len() / 2].as_secs_f64(), longest.as_secs_f64())
    }

    fn codes(&self) -> String {
        let mut counts = BTreeMap::<_, usize>::new();
        for stop in &self.stops {
            *counts.entry(stop.code.map_or("killed".to_owned(), |code| code.to_string())).or_default() += 1;
        }
        let counts: Vec<_> = counts.iter().map(|(code, count)| format!("{code} ({count} ×)")).collect();
        counts.join(", ")
    }
}

/// Formats the results of a variant as a row of the table.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Variant { title, file, .. } = self.variant;
        let sum = |number: fn(&Stop) -> usize| self.sum(number);
        write!(f, "| [{title}](../benches/lost-work/src/variants/{file}) | {} | ", self.variant.lines())?;
        write!(f, "{} | {} | ", sum(|stop| stop.accepted), sum(|stop| stop.lost_silently))?;
        write!(
            f,
            "{} | {} of {} | ",
            sum(|stop| stop.lost_reported),
            sum(|stop| stop.failures_logged),
            sum(|stop| stop.must_fail)
        )?;
        write!(f, "{} | {} |", self.durations(), self.codes())
    }
}

pub fn render(options: &Options, results: &[Results]) -> Result<String, String> {
    let mut text = String::new();
    write_all(&mut text, options, results, &peers()?).map_err(|error| error.to_string())?;
    Ok(text)
}

fn write_all(text: &mut String, options: &Options, results: &[Results], peers: &str) -> fmt::Result {
    let Options { stops, seed, .. } = options;
    writeln!(
        text,
        "Each variant was stopped {stops} times. The seed of the random numbers was {seed}. The deadline was {GRACE:?} after \
         SIGTERM, and SIGKILL came {KILL_AFTER:?} after SIGTERM.\n\
         The versions of the crates are {peers}.\n"
    )?;
    writeln!(
        text,
        "| variant | lines | jobs accepted | lost silently | lost and reported | failures and panics logged | stop: median, longest | exit code |"
    )?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for each in results {
        writeln!(text, "{each}")?;
    }
    let Some(round) = typical_round(results) else { return Ok(()) };
    writeln!(text, "\nAfter SIGTERM, the variants printed the following lines in round {}:", round + 1)?;
    for each in results {
        let stop = &each.stops[round];
        let output = if stop.output.is_empty() { "(no output)" } else { stop.output.trim() };
        let code = stop.code.map_or("killed".to_owned(), |code| format!("exit code {code}"));
        writeln!(text, "\n{}, {code}:\n\n```text\n{output}\n```", each.variant.title)?;
    }
    Ok(())
}

/// Returns the first round in which the last variant reported a lost job. A short run may have no round of this kind.
fn typical_round(results: &[Results]) -> Option<usize> {
    results.last()?.stops.iter().position(|stop| stop.lost_reported > 0)
}

/// Returns the names and versions of the compared crates.
fn peers() -> Result<String, String> {
    let peers: Vec<_> = cargo::versions(&PEERS)?.iter().map(|(name, version)| format!("{name} {version}")).collect();
    if peers.is_empty() { Err("cargo tree lists no compared crate".into()) } else { Ok(peers.join(", ")) }
}
