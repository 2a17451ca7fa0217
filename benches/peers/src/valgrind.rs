//! Counts instructions and memory with Valgrind. Runs a scenario of this program with `count` and with `2 * count` operations, and
//! divides the difference of the two results by `count`.

use std::env::current_exe;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

/// A tool of Valgrind. To find a count in the output, `counts` contains the words before the count, and the number of other words in
/// between.
pub struct Tool {
    pub arguments: &'static [&'static str],
    pub counts: &'static [(&'static str, usize)],
}

type Counts = Vec<f64>;

impl Tool {
    /// Returns the counts for one operation of each scenario.
    pub fn differences(&self, scenarios: &[String], count: u32) -> Result<Vec<Counts>, String> {
        check_valgrind()?;
        let left = Mutex::new(scenarios.iter().enumerate());
        let next = || left.lock().ok()?.next();
        let work = || -> Result<Vec<(usize, Counts)>, String> {
            std::iter::from_fn(next).map(|(number, scenario)| Ok((number, self.difference(scenario, count)?))).collect()
        };
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let mut counts = thread::scope(|scope| {
            let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            running.into_iter().map(|worker| worker.join().expect("no worker panics")).collect::<Result<Vec<_>, _>>()
        })?
        .concat();
        counts.sort_unstable_by_key(|(number, _)| *number);
        Ok(counts.into_iter().map(|(_, counts)| counts).collect())
    }

    fn difference(&self, scenario: &str, count: u32) -> Result<Counts, String> {
        let (once, twice) = (self.counts(scenario, count)?, self.counts(scenario, 2 * count)?);
        Ok(once.iter().zip(twice).map(|(once, twice)| (twice - once) / f64::from(count)).collect())
    }

    fn counts(&self, scenario: &str, count: u32) -> Result<Counts, String> {
        let program = current_exe().map_err(|error| format!("failed to find the path of this program: {error}"))?;
        let output = Command::new("valgrind")
            .args(self.arguments)
            .arg(program)
            .args(["--scenario", scenario, &count.to_string()])
            .output()
            .map_err(|error| format!("failed to run valgrind: {error}"))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let find = |&(after, words)| number(&stderr, after, words);
        let counts: Option<Counts> = self.counts.iter().map(find).collect();
        counts.filter(|_| output.status.success()).ok_or_else(|| {
            let last = stderr.lines().last().unwrap_or_default();
            format!("valgrind with {scenario}: {}: {last}", output.status)
        })
    }
}

fn check_valgrind() -> Result<(), String> {
    let found = Command::new("valgrind").arg("--version").output();
    found.map(drop).map_err(|error| format!("failed to run valgrind: {error}"))
}

fn number(text: &str, after: &str, words: usize) -> Option<f64> {
    let (_, rest) = text.split_once(after)?;
    rest.split_whitespace().nth(words)?.replace(',', "").parse().ok()
}
