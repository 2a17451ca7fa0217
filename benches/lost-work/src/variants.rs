//! Lists the variants of the service. Each variant is written as a user of its crate would write the service.

mod background_tasks;
mod join_set;
mod swansong;
mod task_tracker;
mod task_tracker_deadline;
mod tokio_spawn;

use std::process::ExitCode;

pub struct Variant {
    pub name: &'static str,
    pub title: &'static str,
    pub file: &'static str,
    source: &'static str,
    /// The words that directly follow the number of unfinished jobs in the output of the variant.
    pub unfinished: &'static str,
    pub main: fn() -> ExitCode,
}

macro_rules! variant {
    ($module:ident, $title:literal, $unfinished:literal) => {
        Variant {
            name: stringify!($module),
            title: $title,
            file: concat!(stringify!($module), ".rs"),
            source: include_str!(concat!("variants/", stringify!($module), ".rs")),
            unfinished: $unfinished,
            main: $module::main,
        }
    };
}

pub const VARIANTS: &[Variant] = &[
    variant!(tokio_spawn, "`tokio::spawn`", " jobs are late"),
    variant!(task_tracker, "`TaskTracker`, no deadline", " jobs are late"),
    variant!(task_tracker_deadline, "`TaskTracker`, deadline", " jobs are late"),
    variant!(join_set, "`JoinSet`, deadline", " jobs are late"),
    variant!(swansong, "swansong, deadline", " outstanding guard"),
    variant!(background_tasks, "background-tasks", " aborted"),
];

pub fn find(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.name == name)
}

impl Variant {
    /// Returns the number of source lines, without blank lines and comments.
    pub fn lines(&self) -> usize {
        self.source.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")).count()
    }
}
