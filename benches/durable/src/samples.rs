//! Calculates medians, and formats the lines of the tables.

use crate::Server;
use crate::bare::Bare;
use crate::contender::Contender as _;
use crate::durable::Durable;
use crate::graphile::Graphile;
use std::time::Duration;

pub struct Sample {
    pub value: f64,
    /// The CPU time of this process for each job, in microseconds. It does not include other processes of the machine.
    pub cpu: f64,
    /// The latency of each operation. Empty if the benchmark did not measure latencies.
    pub latencies: Vec<Duration>,
}

impl From<f64> for Sample {
    fn from(value: f64) -> Self {
        Self { value, cpu: 0.0, latencies: Vec::new() }
    }
}

#[derive(Default)]
pub struct Samples {
    values: Vec<f64>,
    cpu: Vec<f64>,
    latencies: Vec<Duration>,
}

impl Samples {
    pub fn push(&mut self, sample: Sample) {
        self.values.push(sample.value);
        self.cpu.push(sample.cpu);
        self.latencies.extend(sample.latencies);
    }

    fn spread(&self) -> String {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.values.iter().copied().fold(0.0, f64::max);
        format!("{} to {}", number(least), number(most))
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// Returns a percentile of the latencies, in microseconds.
pub fn percentile(latencies: &[Duration], percent: usize) -> f64 {
    let mut latencies = latencies.to_vec();
    latencies.sort();
    latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)].as_secs_f64() * 1e6
}

/// Returns the header of the table of the rows `speed`.
pub fn head(server: &Server) -> String {
    let graphile = if let Server::Sqlite = server { String::new() } else { format!(" {} | |", Graphile::NAME) };
    let columns = if let Server::Sqlite = server { 5 } else { 7 };
    let line = format!("| {} | {} | | {} | |{graphile} ratio |", server.name(), Durable::NAME, Bare::NAME);
    format!("{line}\n| --- |{}", " ---: |".repeat(columns))
}

/// Returns a line with the medians and their ranges. If the benchmark measured CPU time or latencies, more lines show the CPU time and
/// percentiles of the latencies.
///
/// The ratio compares durable jobs with the best other engine. If the ratio is above 1, durable jobs are better.
pub fn lines(server: &Server, name: &str, durable: &Samples, others: &[&Samples]) -> Vec<String> {
    let others = if let Server::Sqlite = server { &others[..1] } else { others };
    let line = |name: &str, less: bool, value: &dyn Fn(&Samples) -> f64, spread: bool| {
        let cell = |samples: &Samples| match samples.values.is_empty() {
            true => " never | |".to_owned(),
            false => format!(" {} | {} |", number(value(samples)), if spread { samples.spread() } else { String::new() }),
        };
        let rivals = others.iter().filter(|samples| !samples.values.is_empty()).map(|samples| value(samples));
        let ratio = match (less, value(durable)) {
            (true, ours) => rivals.reduce(f64::min).map(|best| best / ours),
            (false, ours) => rivals.reduce(f64::max).map(|best| ours / best),
        };
        let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let cells: String = [durable].iter().chain(others).map(|samples| cell(samples)).collect();
        format!("| {name} |{cells} {ratio} |")
    };
    let mut lines = vec![line(name, name.ends_with("ms"), &|samples| median(&samples.values), true)];
    if durable.cpu.iter().any(|&cpu| cpu > 0.0) {
        lines.push(line("CPU time per job, µs", true, &|samples| median(&samples.cpu), false));
    }
    if !durable.latencies.is_empty() {
        for percent in [50, 99] {
            lines.push(line(&format!("latency p{percent}, µs"), true, &|samples| percentile(&samples.latencies, percent), false));
        }
    }
    lines
}

pub fn number(number: f64) -> String {
    if number < 100.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let (head, tail) = digits.split_at(digits.len() % 3);
    let groups = tail.as_bytes().chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let groups: Vec<_> = (!head.is_empty()).then(|| head.to_owned()).into_iter().chain(groups).collect();
    groups.join(",")
}
