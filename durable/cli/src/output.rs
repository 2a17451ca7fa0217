//! Formats the output as tables, or as JSON for programs.

use crate::{limits, number};
use background_tasks_durable::{JobId, JobInfo, JobStatus, QueueCounts, QueueInfo, QueueLimits};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// A cell of a table contains at most this many characters.
const MAX_CELL: usize = 60;

pub(crate) fn queue_table(queues: &[QueueInfo]) -> String {
    if queues.is_empty() {
        return "no queues\n".to_owned();
    }
    let mut rows = vec![
        ["QUEUE", "WAITING", "RUNNING", "RETRYING", "DONE", "DEAD", "CANCELLED", "OLDEST DUE", "WORKERS", ""].map(str::to_owned),
    ];
    for queue in queues {
        let QueueCounts { waiting, running, retrying, done, dead, cancelled, .. } = queue.counts;
        let [waiting, running, retrying, done, dead, cancelled] = [waiting, running, retrying, done, dead, cancelled].map(number);
        let oldest = queue.oldest.map_or("-".to_owned(), span);
        let paused = if queue.is_paused { "paused" } else { "" };
        let notes = format!("{paused} {}", limits::show(&queue.limits)).trim().to_owned();
        let workers = queue.workers.to_string();
        rows.push([queue.name.clone(), waiting, running, retrying, done, dead, cancelled, oldest, workers, notes]);
    }
    table(&rows, 1..9)
}

pub(crate) fn job_table(jobs: &[JobInfo]) -> String {
    if jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let mut rows = vec![["JOB", "QUEUE", "STATUS", "ATTEMPTS", "TIME", "ERROR", "PAYLOAD"].map(str::to_owned)];
    for job in jobs {
        rows.push([
            job.id().to_string(),
            job.queue().to_owned(),
            job.status().to_string(),
            job.attempts().to_string(),
            relative(job.ended().unwrap_or(job.due())),
            job.error().unwrap_or("-").to_owned(),
            job.payload_json().into_owned(),
        ]);
    }
    table(&rows, 3..4)
}

pub(crate) fn job_details(job: &JobInfo) -> String {
    let time = |time: SystemTime| format!("{} ({})", timestamp(time), relative(time));
    let crashes =
        if job.crashes() == 0 { String::new() } else { format!(", of which {} ended with the death of the worker", job.crashes()) };
    let mut lines = vec![
        ("job", job.id().to_string()),
        ("queue", job.queue().to_owned()),
        ("status", job.status().to_string()),
        ("attempts", format!("{}{crashes}", job.attempts())),
        ("version", job.version().to_string()),
        ("enqueued", time(job.enqueued())),
        ("due", time(job.due())),
    ];
    lines.extend(job.ended().map(|ended| ("ended", time(ended))));
    lines.extend(job.error().map(|error| ("error", error.to_owned())));
    lines.push(("payload", job.payload_json().into_owned()));
    lines.extend(job.result_json().map(|result| ("result", result.to_owned())));
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        // The lines after the first line of a value are indented.
        let value = value.lines().map(printable).collect::<Vec<_>>().join("\n          ");
        let _ = writeln!(text, "{name:<10}{value}");
        text
    })
}

/// Aligns the columns of a table. The columns in the range `numbers` are aligned to the right.
fn table<const N: usize>(rows: &[[String; N]], numbers: std::ops::Range<usize>) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| shortened(cell))).collect();
    let mut widths = [0; N];
    for (column, cell) in rows.iter().flat_map(|row| row.iter().enumerate()) {
        widths[column] = widths[column].max(cell.chars().count());
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if numbers.contains(&column) { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Returns the first line of a cell, shortened to `MAX_CELL` characters.
fn shortened(cell: &str) -> String {
    let (line, rest) = cell.split_once('\n').unwrap_or((cell, ""));
    let mut line = printable(line);
    if line.chars().count() > MAX_CELL || !rest.is_empty() {
        line = line.chars().take(MAX_CELL - 1).chain(['…']).collect();
    }
    line
}

/// Replaces control characters, so that the text of a job cannot control the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// Returns a time relative to now, such as `5 min ago` or `in 2 h`.
fn relative(time: SystemTime) -> String {
    match SystemTime::now().duration_since(time) {
        Ok(age) if age.as_secs() == 0 => "now".to_owned(),
        Ok(age) => format!("{} ago", span(age)),
        Err(error) => format!("in {}", span(error.duration())),
    }
}

/// Formats a duration in its largest unit, such as `5 min`.
fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86400),
    }
}

/// Returns a time in UTC in the format of RFC 3339.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86400, since.as_secs() % 86400);
    // `shifted` counts days from 0000-03-01. In years that start in March, the leap day is the last day.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[derive(Serialize)]
struct Queue<'a> {
    name: &'a str,
    paused: bool,
    counts: QueueCounts,
    /// The age of the oldest job that is due.
    oldest_seconds: Option<f64>,
    workers: u32,
    limits: Limits,
}

#[derive(Serialize)]
pub(crate) struct Limits {
    running: Option<u32>,
    running_per_key: Option<u32>,
    rate_jobs: Option<u32>,
    rate_seconds: Option<f64>,
}

impl Limits {
    pub(crate) fn of(limits: &QueueLimits) -> Self {
        let (rate_jobs, period) = limits.get_rate().unzip();
        let rate_seconds = period.map(|period| period.as_secs_f64());
        Self { running: limits.get_running(), running_per_key: limits.get_running_per_key(), rate_jobs, rate_seconds }
    }
}

#[derive(Serialize)]
struct Job<'a> {
    id: JobId,
    queue: &'a str,
    status: JobStatus,
    attempts: u32,
    crashes: u32,
    version: u32,
    enqueued: String,
    due: String,
    ended: Option<String>,
    error: Option<&'a str>,
    payload: Box<RawValue>,
    result: Option<Box<RawValue>>,
}

impl<'a> Job<'a> {
    fn of(job: &'a JobInfo) -> Self {
        Self {
            id: job.id(),
            queue: job.queue(),
            status: job.status(),
            attempts: job.attempts(),
            crashes: job.crashes(),
            version: job.version(),
            enqueued: timestamp(job.enqueued()),
            due: timestamp(job.due()),
            ended: job.ended().map(timestamp),
            error: job.error(),
            payload: raw(&job.payload_json()),
            result: job.result_json().map(raw),
        }
    }
}

/// Returns stored JSON unchanged, and any other text as a JSON string.
fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap_or_else(|_| to_raw_value(text).expect("a string is JSON"))
}

pub(crate) fn queues(queues: &[QueueInfo]) -> String {
    let queue = |queue: &QueueInfo| {
        let (counts, workers) = (queue.counts, queue.workers);
        let oldest_seconds = queue.oldest.map(|age| age.as_secs_f64());
        json(&Queue {
            name: &queue.name,
            paused: queue.is_paused,
            counts,
            oldest_seconds,
            workers,
            limits: Limits::of(&queue.limits),
        })
    };
    array(queues.iter().map(queue))
}

pub(crate) fn jobs(jobs: &[JobInfo]) -> String {
    array(jobs.iter().map(job))
}

pub(crate) fn job(job: &JobInfo) -> String {
    json(&Job::of(job))
}

/// Returns a line of JSON.
pub(crate) fn json(value: &impl Serialize) -> String {
    format!("{}\n", serde_json::to_string(value).expect("text and numbers are JSON"))
}

/// Returns a JSON array with one element on each line.
fn array(lines: impl Iterator<Item = String>) -> String {
    let lines: Vec<_> = lines.map(|line| line.trim_end().to_owned()).collect();
    format!("[{}]\n", lines.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_in_utc() {
        let at = |millis| timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_709_251_200_001), "2024-03-01T00:00:00.001Z");
        assert_eq!(at(4_107_542_399_000), "2100-02-28T23:59:59.000Z");
        assert_eq!(at(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn cells_are_one_short_line_without_control_characters() {
        assert_eq!(shortened("red \u{1b}[31m"), "red \u{fffd}[31m");
        assert_eq!(shortened("first\nsecond"), "first…");
        assert_eq!(shortened(&"é".repeat(61)).chars().count(), 60);
    }
}
