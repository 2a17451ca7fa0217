//! Medians, and the lines of a table.

use std::time::Duration;

pub struct Sample {
    pub figure: f64,
    /// What this process took of its processors for each job, in microseconds: others on the machine do not touch it.
    pub cpu: f64,
    /// Of each operation, where that was measured.
    pub latencies: Vec<Duration>,
}

impl From<f64> for Sample {
    fn from(figure: f64) -> Self {
        Self { figure, cpu: 0.0, latencies: Vec::new() }
    }
}

#[derive(Default)]
pub struct Samples {
    figures: Vec<f64>,
    cpu: Vec<f64>,
    latencies: Vec<Duration>,
}

impl Samples {
    pub fn push(&mut self, sample: Sample) {
        self.figures.push(sample.figure);
        self.cpu.push(sample.cpu);
        self.latencies.extend(sample.latencies);
    }

    /// Of all operations in all rounds, in microseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let mut latencies = self.latencies.clone();
        latencies.sort();
        latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)].as_secs_f64() * 1e6
    }

    fn spread(&self) -> String {
        let least = self.figures.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.figures.iter().copied().fold(0.0, f64::max);
        format!("{} to {}", number(least), number(most))
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.len() % 2 == 1 { figures[middle] } else { f64::midpoint(figures[middle - 1], figures[middle]) }
}

pub fn head(engine: &str) -> String {
    format!("| {engine} | bare engine | | durable | | of the bare |\n| --- | ---: | ---: | ---: | ---: | ---: |")
}

/// One for the medians, with what they lie between, and one for each percentile of the latencies, if there are any.
pub fn lines(name: &str, bare: &Samples, ours: &Samples) -> Vec<String> {
    if bare.figures.is_empty() {
        return vec![format!("| {name} | never | | {} | {} | |", number(median(&ours.figures)), ours.spread())];
    }
    // What is left of the bare engine's speed.
    let of = median(&ours.figures) / median(&bare.figures);
    let [theirs, own] = [bare, ours].map(|side| format!("{} | {}", number(median(&side.figures)), side.spread()));
    let mut lines = vec![format!("| {name} | {theirs} | {own} | {of:.2} |")];
    let [theirs, own] = [bare, ours].map(|side| median(&side.cpu));
    lines.push(format!("| its processor time for each, µs | {} | | {} | | {:.2} |", number(theirs), number(own), theirs / own));
    if !bare.latencies.is_empty() {
        lines.extend([50, 99].map(|percent| {
            let [theirs, own] = [bare, ours].map(|side| side.percentile(percent));
            format!("| latency of one, p{percent}, µs | {} | | {} | | {:.2} |", number(theirs), number(own), theirs / own)
        }));
    }
    lines
}

fn number(number: f64) -> String {
    if number < 100.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let (head, tail) = digits.split_at(digits.len() % 3);
    let groups = tail.as_bytes().chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let groups: Vec<_> = (!head.is_empty()).then(|| head.to_owned()).into_iter().chain(groups).collect();
    groups.join(",")
}
