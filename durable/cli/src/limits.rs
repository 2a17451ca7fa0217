//! Reads and shows the limits of a queue on the command line.

use background_tasks_durable::QueueLimits;
use clap::Args;
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct LimitOptions {
    /// Maximum number of running jobs of the queue
    #[arg(long, value_name = "JOBS", value_parser = clap::value_parser!(u32).range(1..))]
    running: Option<u32>,
    /// Maximum number of running jobs with the same limit key
    #[arg(long, value_name = "JOBS", value_parser = clap::value_parser!(u32).range(1..))]
    running_per_key: Option<u32>,
    /// Number of jobs that can start per period, such as 100/60s or 5000/1d; units: ms, s, m, h, d
    #[arg(long, value_name = "JOBS/PERIOD", value_parser = rate)]
    rate: Option<(u32, Duration)>,
    /// Remove all limits that no other option sets
    #[arg(long)]
    none: bool,
}

impl LimitOptions {
    /// Returns the limits `old` after the changes that the options request. Returns `None` if no option is present.
    pub(crate) fn apply(&self, old: QueueLimits) -> Option<QueueLimits> {
        let mut limits = if self.none { QueueLimits::default() } else { old };
        if let Some(jobs) = self.running {
            limits = limits.running(jobs);
        }
        if let Some(jobs) = self.running_per_key {
            limits = limits.running_per_key(jobs);
        }
        if let Some((jobs, period)) = self.rate {
            limits = limits.rate(jobs, period);
        }
        let has_options = self.none || self.running.is_some() || self.running_per_key.is_some() || self.rate.is_some();
        has_options.then_some(limits)
    }
}

/// The units of a period and their lengths in milliseconds, largest first.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

fn rate(text: &str) -> Result<(u32, Duration), String> {
    let parse = || {
        let (jobs, period) = text.split_once('/')?;
        let jobs: u32 = jobs.parse().ok().filter(|jobs| *jobs > 0)?;
        let digits = period.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let count: u64 = digits.parse().ok().filter(|count| *count > 0)?;
        let (_, millis) = UNITS.into_iter().find(|(unit, _)| *unit == &period[digits.len()..])?;
        Some((jobs, Duration::from_millis(count.checked_mul(millis)?)))
    };
    parse().ok_or_else(|| "expected JOBS/PERIOD, such as 100/60s".to_owned())
}

/// Returns the options that set these limits, or an empty string if there are no limits.
pub(crate) fn show(limits: &QueueLimits) -> String {
    let mut parts = Vec::new();
    parts.extend(limits.get_running().map(|jobs| format!("--running {jobs}")));
    parts.extend(limits.get_running_per_key().map(|jobs| format!("--running-per-key {jobs}")));
    parts.extend(limits.get_rate().map(|(jobs, period)| {
        let millis = u64::try_from(period.as_millis()).unwrap_or(u64::MAX);
        let (unit, size) = UNITS.into_iter().find(|(_, size)| millis.is_multiple_of(*size)).unwrap_or(("ms", 1));
        format!("--rate {jobs}/{}{unit}", millis / size)
    }));
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_parsed_and_shown() {
        for (text, shown) in
            [("100/60s", "100/1m"), ("5/90s", "5/90s"), ("1/1ms", "1/1ms"), ("7/24h", "7/1d"), ("2/1500ms", "2/1500ms")]
        {
            let (jobs, period) = rate(text).unwrap();
            assert_eq!(show(&QueueLimits::default().rate(jobs, period)), format!("--rate {shown}"), "{text}");
        }
        for text in ["", "5", "/s", "5/", "5/s", "0/1s", "5/0s", "5/1w", "-5/1s", "5/1.5s", "5/99999999999999999d"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
