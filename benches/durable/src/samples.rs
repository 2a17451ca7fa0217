//! Medians, and the lines of a table.

use std::time::Duration;

pub struct Sample {
    pub value: f64,
    /// The CPU time of this process for each job, in microseconds. Other processes on the machine do not affect it.
    pub cpu: f64,
    /// The latency of each operation, if measured.
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

    /// Returns a percentile of the latencies in all rounds, in microseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let mut latencies = self.latencies.clone();
        latencies.sort();
        latencies[(latencies.len() * percent / 100).min(latencies.len() - 1)].as_secs_f64() * 1e6
    }

    fn spread(&self) -> String {
        let least = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.values.iter().copied().fold(0.0, f64::max);
        format!("{} to {}", number(least), number(most))
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

pub fn head(engine: &str) -> String {
    format!("| {engine} | bare engine | | durable | | ratio |\n| --- | ---: | ---: | ---: | ---: | ---: |")
}

/// Returns a line with the medians and their range, and a line for each percentile of the latencies, if measured.
pub fn lines(name: &str, bare: &Samples, durable: &Samples) -> Vec<String> {
    if bare.values.is_empty() {
        return vec![format!("| {name} | never | | {} | {} | |", number(median(&durable.values)), durable.spread())];
    }
    // The speed relative to the bare engine.
    let ratio = median(&durable.values) / median(&bare.values);
    let [bare_cells, durable_cells] = [bare, durable].map(|side| format!("{} | {}", number(median(&side.values)), side.spread()));
    let mut lines = vec![format!("| {name} | {bare_cells} | {durable_cells} | {ratio:.2} |")];
    let [bare_cpu, durable_cpu] = [bare, durable].map(|side| median(&side.cpu));
    lines.push(format!(
        "| CPU time per job, µs | {} | | {} | | {:.2} |",
        number(bare_cpu),
        number(durable_cpu),
        bare_cpu / durable_cpu
    ));
    if !bare.latencies.is_empty() {
        lines.extend([50, 99].map(|percent| {
            let [bare, durable] = [bare, durable].map(|side| side.percentile(percent));
            format!("| latency p{percent}, µs | {} | | {} | | {:.2} |", number(bare), number(durable), bare / durable)
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
