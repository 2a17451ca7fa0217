//! Defines goals for the measured numbers, and checks whether the goals are met.

use serde_json::{Value, json};
use std::fmt;

#[derive(Clone, Copy)]
enum Sense {
    AtLeast,
    AtMost,
    Below,
}

#[derive(Clone, Copy)]
pub struct Goal {
    sense: Sense,
    limit: f64,
    stretch: Option<f64>,
}

impl Goal {
    pub fn at_least(limit: f64) -> Self {
        Self { sense: Sense::AtLeast, limit, stretch: None }
    }

    pub fn at_most(limit: f64) -> Self {
        Self { sense: Sense::AtMost, limit, stretch: None }
    }

    pub fn below(limit: f64) -> Self {
        Self { sense: Sense::Below, limit, stretch: None }
    }

    /// Adds a stretch goal, which is printed but not checked.
    pub fn stretch(self, limit: f64) -> Self {
        Self { stretch: Some(limit), ..self }
    }

    fn sense(self) -> &'static str {
        match self.sense {
            Sense::AtLeast => "at least",
            Sense::AtMost => "at most",
            Sense::Below => "below",
        }
    }
}

/// A goal and the measured number that must meet this goal.
pub struct Check {
    pub what: String,
    pub measured: f64,
    pub goal: Goal,
}

impl Check {
    pub fn is_met(&self) -> bool {
        match self.goal.sense {
            Sense::AtLeast => self.measured >= self.goal.limit,
            Sense::AtMost => self.measured <= self.goal.limit,
            Sense::Below => self.measured < self.goal.limit,
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "what": self.what,
            "measured": self.measured,
            "sense": self.goal.sense(),
            "goal": self.goal.limit,
            "stretch_goal": self.goal.stretch,
            "met": self.is_met(),
        })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.2} (goal: {} {}", self.what, self.measured, self.goal.sense(), self.goal.limit)?;
        if let Some(stretch) = self.goal.stretch {
            write!(f, "; stretch goal: {stretch}")?;
        }
        write!(f, "): {}", if self.is_met() { "met" } else { "missed" })
    }
}
