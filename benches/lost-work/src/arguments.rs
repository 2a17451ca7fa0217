//! Parses the command line.

use crate::variants::{self, Variant};
use lexopt::prelude::*;
use std::path::PathBuf;

pub const USAGE: &str = "\
usage: lost-work [--stops N] [--seed N] [--doc FILE]

  --stops N   stops each variant N times. Default: 20. Minimum: 1
  --seed N    the seed of the load and of the times of the stops. Default: random
  --doc FILE  writes the results to this Markdown file, between the lines
              <!-- measured: begin --> and <!-- measured: end -->

Exit status: 0, 1 if background-tasks lost work silently, 2 after an error.
";

pub enum Task {
    Compare(Options),
    /// Runs the service of a variant. The benchmark starts its own program again with this task.
    Serve(&'static Variant),
    Help,
}

pub struct Options {
    pub stops: u32,
    pub seed: u64,
    pub doc: Option<PathBuf>,
}

pub fn parse() -> Result<Task, lexopt::Error> {
    let mut options = Options { stops: 20, seed: fastrand::u64(..1_000_000), doc: None };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("stops") => options.stops = parser.value()?.parse()?,
            Long("seed") => options.seed = parser.value()?.parse()?,
            Long("doc") => options.doc = Some(parser.value()?.into()),
            Long("serve") => {
                let name = parser.value()?.string()?;
                return variants::find(&name).map(Task::Serve).ok_or_else(|| format!("unknown variant: {name}").into());
            }
            Long("help") | Short('h') => return Ok(Task::Help),
            _ => return Err(argument.unexpected()),
        }
    }
    if options.stops == 0 { Err("--stops must be at least 1".into()) } else { Ok(Task::Compare(options)) }
}
