//! Parses the command line.

use crate::cargo::MANIFEST_DIR;
use crate::sections::PLANS;
use lexopt::prelude::*;
use std::path::{Path, PathBuf};

const USAGE: &str = "\
usage: peers [--quick] [--out DIR] [--doc FILE] [SECTION...]

  --quick     checks that all sections run; the numbers have no meaning
  --out DIR   writes the numbers (JSON) and the plots (SVG) to this folder
              Default: target/peers
  --doc FILE  writes the tables to this Markdown file, between the lines
              <!-- measured: begin --> and <!-- measured: end -->

SECTION is one of these names. Default: all sections.
";

pub enum Task {
    Measure(Options),
    Scenario(String, u32),
    Help,
}

pub struct Options {
    pub quick: bool,
    pub out: PathBuf,
    pub doc: Option<PathBuf>,
    sections: Vec<String>,
}

impl Options {
    pub fn has(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|each| each == section)
    }
}

pub fn parse() -> Result<Task, lexopt::Error> {
    let out = Path::new(MANIFEST_DIR).join("../../target/peers");
    let mut options = Options { quick: false, out, doc: None, sections: Vec::new() };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => options.quick = true,
            Long("out") => options.out = parser.value()?.into(),
            Long("doc") => options.doc = Some(parser.value()?.into()),
            Long("scenario") => return Ok(Task::Scenario(parser.value()?.string()?, parser.value()?.parse()?)),
            Long("help") | Short('h') => return Ok(Task::Help),
            Value(name) if PLANS.iter().any(|plan| name == plan.name) => options.sections.push(name.string()?),
            Value(name) => return Err(format!("unknown section: {}", name.to_string_lossy()).into()),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(Task::Measure(options))
}

pub fn usage() -> String {
    let names: Vec<_> = PLANS.iter().map(|plan| plan.name).collect();
    format!("{USAGE}{}", names.join(", "))
}
