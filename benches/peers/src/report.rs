//! Formats the results as tables and as JSON.

use crate::goals::{Check, Goal};
use serde_json::{Value, json};
use std::fmt;
use std::ops::Range;

/// The measured numbers of all rounds. There is at least one round.
pub struct Numbers(Vec<f64>);

impl Numbers {
    pub fn of(rounds: Vec<f64>) -> Option<Self> {
        (!rounds.is_empty()).then_some(Self(rounds))
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted
    }

    pub fn median(&self) -> f64 {
        self.sorted()[self.0.len() / 2]
    }

    /// Compares the two numbers of each round, and returns the median of the results. The machine may be slower in some rounds, which
    /// affects both numbers of the round.
    fn compared(&self, other: &Self, compare: impl Fn(f64, f64) -> f64) -> f64 {
        Self(self.0.iter().zip(&other.0).map(|(&one, &other)| compare(one, other)).collect()).median()
    }

    fn json(&self) -> Value {
        let sorted = self.sorted();
        json!({ "median": self.median(), "min": sorted.first(), "max": sorted.last() })
    }
}

pub struct Row {
    pub name: &'static str,
    pub cells: Vec<Option<Numbers>>,
}

impl Row {
    pub fn new(name: &'static str) -> Self {
        Self { name, cells: Vec::new() }
    }
}

/// A table whose first column contains the names of the contenders. The ratios are relative to the row with the name `ours`.
pub struct Table {
    pub title: &'static str,
    /// The unit of all numbers. Empty if the columns have different units.
    pub unit: &'static str,
    pub ours: &'static str,
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
    pub checks: Vec<Check>,
}

impl Table {
    pub fn new(title: &'static str, unit: &'static str, ours: &'static str, columns: Vec<String>, rows: Vec<Row>) -> Self {
        Self { title, unit, ours, columns, rows, checks: Vec::new() }
    }

    /// Returns the line above the table, which says what the numbers mean. The title does not say this, because the plot with the
    /// same title may show a rate.
    fn caption(&self) -> String {
        let title = self.title.to_lowercase();
        match self.unit {
            "" => self.title.to_owned(),
            "instructions" => format!("Instructions to {title}"),
            unit if title.starts_with("from ") => format!("Time {title}, in {unit}"),
            unit => format!("Time to {title}, in {unit}"),
        }
    }

    fn numbers(&self, row: &str, column: usize) -> Option<&Numbers> {
        let row = self.rows.iter().find(|each| each.name == row)?;
        row.cells.get(column)?.as_ref()
    }

    /// Sets a goal for `upper / lower` in each of these columns, if both rows have a number in the column.
    pub fn ratio(self, columns: Range<usize>, upper: &'static str, lower: &'static str, goal: Goal) -> Self {
        let what = format!("{upper} / {lower}");
        self.compare(columns, upper, lower, &what, goal, |upper, lower| upper / lower)
    }

    /// Sets a goal for `upper - lower`.
    pub fn difference(self, column: usize, upper: &'static str, lower: &'static str, goal: Goal) -> Self {
        let what = format!("{upper} − {lower}");
        self.compare(column..column + 1, upper, lower, &what, goal, |upper, lower| upper - lower)
    }

    /// Sets a goal for the number in one row and column.
    pub fn value(self, column: usize, row: &'static str, goal: Goal) -> Self {
        self.compare(column..column + 1, row, row, row, goal, |value, _| value)
    }

    fn compare(
        mut self,
        columns: Range<usize>,
        upper: &str,
        lower: &str,
        what: &str,
        goal: Goal,
        compare: impl Fn(f64, f64) -> f64,
    ) -> Self {
        for column in columns {
            if let (Some(upper), Some(lower)) = (self.numbers(upper, column), self.numbers(lower, column)) {
                let what = format!("{}, {what}", self.columns[column]);
                let measured = upper.compared(lower, &compare);
                self.checks.push(Check { what, measured, goal });
            }
        }
        self
    }

    fn cell(&self, row: &Row, column: usize) -> String {
        let Some(numbers) = &row.cells[column] else { return "–".to_owned() };
        let median = numbers.median();
        let decimals = if median < 1000.0 { 2 } else { 0 };
        match self.numbers(self.ours, column).map(|ours| numbers.compared(ours, |one, ours| one / ours)) {
            Some(ratio) if ratio.is_finite() => format!("{median:.decimals$} ({ratio:.2})"),
            _ => format!("{median:.decimals$}"),
        }
    }

    pub fn json(&self) -> Value {
        let numbers = |row: &Row| -> serde_json::Map<String, Value> {
            let cells = row.cells.iter().map(|cell| cell.as_ref().map_or(Value::Null, Numbers::json));
            self.columns.iter().cloned().zip(cells).collect()
        };
        let rows: Vec<_> = self.rows.iter().map(|row| json!({ "name": row.name, "numbers": numbers(row) })).collect();
        let goals: Vec<_> = self.checks.iter().map(Check::json).collect();
        json!({ "title": self.title, "unit": self.unit, "ratio_to": self.ours, "rows": rows, "goals": goals })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = [self.unit.to_owned()].into_iter().chain(self.columns.iter().cloned()).collect();
        let body = self.rows.iter().map(|row| {
            let cells = (0..self.columns.len()).map(|column| self.cell(row, column));
            [row.name.to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
        });
        let lines: Vec<Vec<String>> = [head].into_iter().chain(body).collect();
        let widths: Vec<_> = (0..=self.columns.len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default())
            .collect();
        writeln!(f, "{}. In parentheses: the ratio to the row `{}`:\n", self.caption(), self.ours)?;
        for (number, line) in lines.iter().enumerate() {
            write!(f, "| {:<width$} |", line[0], width = widths[0])?;
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                write!(f, " {cell:>width$} |")?;
            }
            writeln!(f)?;
            if number == 0 {
                write!(f, "| {} |", "-".repeat(widths[0]))?;
                widths.iter().skip(1).try_for_each(|width| write!(f, " {}: |", "-".repeat(width - 1)))?;
                writeln!(f)?;
            }
        }
        if !self.checks.is_empty() {
            writeln!(f)?;
        }
        self.checks.iter().try_for_each(|check| writeln!(f, "- {check}"))
    }
}

/// The tables of a section, or the reason why the section was skipped.
pub struct Section {
    pub name: &'static str,
    pub title: &'static str,
    pub outcome: Result<Vec<Table>, String>,
}

impl Section {
    pub fn tables(&self) -> &[Table] {
        self.outcome.as_deref().unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        let tables: Vec<_> = self.tables().iter().map(Table::json).collect();
        json!({ "name": self.name, "title": self.title, "skipped": self.outcome.as_ref().err(), "tables": tables })
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}: {}\n", self.name, self.title)?;
        match &self.outcome {
            Ok(tables) => tables.iter().try_for_each(|table| writeln!(f, "{table}")),
            Err(why) => writeln!(f, "skipped: {why}\n"),
        }
    }
}

/// Returns the number of goals that are met, and the number of goals that are missed.
pub fn count_goals(sections: &[Section]) -> (usize, usize) {
    let checks = || sections.iter().flat_map(Section::tables).flat_map(|table| &table.checks);
    let met = checks().filter(|check| check.is_met()).count();
    (met, checks().count() - met)
}
