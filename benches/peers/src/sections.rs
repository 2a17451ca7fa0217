//! What is measured: one module a section.

mod build;
mod children;
mod drain;
mod fan_out;
mod handed_over;
mod handles;
mod instructions;
mod memory;
mod signals;
mod tasks;
mod tokens;
mod triggered;

use crate::measure::{Contender, Load, Pace};
use crate::report::Table;
use background_tasks::Observer;
use tasks::{On, Runtime};

pub const REGISTRY: &str = "registry";
const INSPECTED: &str = if cfg!(feature = "coarse-clock") { "inspected, coarse clock" } else { "inspected" };
const TRACKER: &str = "TaskTracker";
const CANCELLATION: &str = "CancellationToken";
const SWANSONG: &str = "swansong";
const ASYNC_SHUTDOWN: &str = "async-shutdown";
const GRACEFUL: &str = "tokio-graceful";
const BARE: &str = "bare";

/// An error says why the section is skipped.
type Measured = Result<Vec<Table>, String>;

pub struct Plan {
    pub name: &'static str,
    pub title: &'static str,
    pub run: fn(Pace) -> Measured,
}

pub const PLANS: [Plan; 12] = [
    Plan { name: "tokens", title: "made and dropped on the same thread", run: |pace| Ok(tokens::run(pace)) },
    Plan { name: "handed-over", title: "tokens made on one thread and dropped on another", run: |pace| Ok(handed_over::run(pace)) },
    Plan { name: "signals", title: "waited on once, and dropped", run: |pace| Ok(signals::run(pace)) },
    Plan { name: "triggered", title: "asking whether the shutdown has begun", run: |pace| Ok(triggered::run(pace)) },
    Plan { name: "tasks", title: "ready at once, from start to end", run: |pace| Ok(tasks::run(pace)) },
    Plan { name: "handles", title: "tasks whose output is awaited, from start to output", run: |pace| Ok(handles::run(pace)) },
    Plan { name: "fan-out", title: "tasks that wait on the signal, from trigger to drained", run: |pace| Ok(fan_out::run(pace)) },
    Plan { name: "children", title: "children of a registry", run: |pace| Ok(children::run(pace)) },
    Plan { name: "drain", title: "tasks in flight, from letting them go to drained", run: |pace| Ok(drain::run(pace)) },
    Plan { name: "memory", title: "by valgrind's dhat", run: memory::run },
    Plan { name: "instructions", title: "by valgrind's callgrind", run: instructions::run },
    Plan { name: "build", title: "a program with one dependency", run: build::run },
];

/// What the program runs itself as, under valgrind.
pub fn scenario(name: &str, count: u32) -> Result<(), String> {
    let load = Load { threads: 1, operations: count };
    let on = On { runtime: Runtime::CurrentThread, tasks: count };
    let (group, contender) = name.split_once('/').unwrap_or((name, ""));
    match group {
        tokens::GROUP => only(&tokens::contenders(), contender, load),
        signals::GROUP => only(&signals::contenders(), contender, load),
        children::GROUP => only(&children::lives(), contender, load),
        tasks::GROUP => only(&tasks::contenders(), contender, on),
        memory::GROUP => memory::wait(contender, count),
        _ => None,
    }
    .ok_or_else(|| format!("there is no scenario {name}"))
}

fn only<C>(contenders: &[Contender<C>], name: &str, column: C) -> Option<()> {
    let contender = contenders.iter().find(|contender| contender.name == name)?;
    (contender.run)(column).map(drop)
}

fn headers(threads: &[u32]) -> Vec<String> {
    threads.iter().map(|&threads| format!("{threads} thread{}", if threads == 1 { "" } else { "s" })).collect()
}

struct Nobody;

impl Observer for Nobody {}
