//! What was measured, as tables for people and as JSON.

use crate::bars::{Bar, Goal};
use serde_json::{Value, json};
use std::fmt;
use std::ops::Range;

/// One for each round, at least one.
pub struct Figures(Vec<f64>);

impl Figures {
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

    /// The median of what comes of comparing each round's figures: the machine is fast in one round, slow in the next.
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
    pub cells: Vec<Option<Figures>>,
}

impl Row {
    pub fn new(name: &'static str) -> Self {
        Self { name, cells: Vec::new() }
    }
}

/// Its first column is the contenders; the ratios are to the row called `ours`.
pub struct Table {
    pub title: &'static str,
    pub unit: &'static str,
    pub ours: &'static str,
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
    pub bars: Vec<Bar>,
}

impl Table {
    pub fn new(title: &'static str, unit: &'static str, ours: &'static str, columns: Vec<String>, rows: Vec<Row>) -> Self {
        Self { title, unit, ours, columns, rows, bars: Vec::new() }
    }

    fn figures(&self, row: &str, column: usize) -> Option<&Figures> {
        let row = self.rows.iter().find(|each| each.name == row)?;
        row.cells.get(column)?.as_ref()
    }

    /// Sets a bar for `upper / lower` in each of the columns where both have a figure.
    pub fn ratio(self, columns: Range<usize>, upper: &'static str, lower: &'static str, goal: Goal) -> Self {
        let what = if lower == self.ours { upper.to_owned() } else { format!("{upper} / {lower}") };
        self.compare(columns, upper, lower, &what, goal, |upper, lower| upper / lower)
    }

    /// Sets a bar for `upper - lower`.
    pub fn difference(self, column: usize, upper: &'static str, lower: &'static str, goal: Goal) -> Self {
        let what = format!("{upper} − {lower}");
        self.compare(column..column + 1, upper, lower, &what, goal, |upper, lower| upper - lower)
    }

    /// Sets a bar for the figure itself.
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
            if let (Some(upper), Some(lower)) = (self.figures(upper, column), self.figures(lower, column)) {
                let what = format!("{}, {what}", self.columns[column]);
                let measured = upper.compared(lower, &compare);
                self.bars.push(Bar { what, measured, goal });
            }
        }
        self
    }

    fn cell(&self, row: &Row, column: usize) -> String {
        let Some(figures) = &row.cells[column] else { return "–".to_owned() };
        let median = figures.median();
        let decimals = if median < 1000.0 { 2 } else { 0 };
        match self.figures(self.ours, column).map(|ours| figures.compared(ours, |one, ours| one / ours)) {
            Some(ratio) if ratio.is_finite() => format!("{median:.decimals$} ({ratio:.2})"),
            _ => format!("{median:.decimals$}"),
        }
    }

    pub fn json(&self) -> Value {
        let figures = |row: &Row| -> serde_json::Map<String, Value> {
            let cells = row.cells.iter().map(|cell| cell.as_ref().map_or(Value::Null, Figures::json));
            self.columns.iter().cloned().zip(cells).collect()
        };
        let rows: Vec<_> = self.rows.iter().map(|row| json!({ "name": row.name, "figures": figures(row) })).collect();
        let bars: Vec<_> = self.bars.iter().map(Bar::json).collect();
        json!({ "title": self.title, "unit": self.unit, "ratio_to": self.ours, "rows": rows, "bars": bars })
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
        writeln!(f, "{}:\n", self.title)?;
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
        if !self.bars.is_empty() {
            writeln!(f)?;
        }
        self.bars.iter().try_for_each(|bar| writeln!(f, "- {bar}"))
    }
}

/// A section's tables, or why there are none.
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

/// How many of the bars are met, and how many missed.
pub fn count_bars(sections: &[Section]) -> (usize, usize) {
    let bars = || sections.iter().flat_map(Section::tables).flat_map(|table| &table.bars);
    let met = bars().filter(|bar| bar.is_met()).count();
    (met, bars().count() - met)
}
