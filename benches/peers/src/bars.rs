//! What a registry must reach.

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
    bar: f64,
    aim: Option<f64>,
}

impl Goal {
    pub fn at_least(bar: f64) -> Self {
        Self { sense: Sense::AtLeast, bar, aim: None }
    }

    pub fn at_most(bar: f64) -> Self {
        Self { sense: Sense::AtMost, bar, aim: None }
    }

    pub fn below(bar: f64) -> Self {
        Self { sense: Sense::Below, bar, aim: None }
    }

    pub fn aim(self, aim: f64) -> Self {
        Self { aim: Some(aim), ..self }
    }
}

pub struct Bar {
    pub what: String,
    pub measured: f64,
    pub goal: Goal,
}

impl Bar {
    pub fn is_met(&self) -> bool {
        match self.goal.sense {
            Sense::AtLeast => self.measured >= self.goal.bar,
            Sense::AtMost => self.measured <= self.goal.bar,
            Sense::Below => self.measured < self.goal.bar,
        }
    }

    pub fn json(&self) -> Value {
        let sense = match self.goal.sense {
            Sense::AtLeast => "at least",
            Sense::AtMost => "at most",
            Sense::Below => "below",
        };
        json!({
            "what": self.what,
            "measured": self.measured,
            "sense": sense,
            "bar": self.goal.bar,
            "aim": self.goal.aim,
            "met": self.is_met(),
        })
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sense = match self.goal.sense {
            Sense::AtLeast => "",
            Sense::AtMost => "at most ",
            Sense::Below => "below ",
        };
        write!(f, "{}: {:.2} (bar {sense}{}", self.what, self.measured, self.goal.bar)?;
        if let Some(aim) = self.goal.aim {
            write!(f, ", aim {aim}")?;
        }
        write!(f, "): {}", if self.is_met() { "met" } else { "missed" })
    }
}
