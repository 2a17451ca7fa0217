//! Lists the sections. Each section has its own module.

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

/// The result of a section. An error contains the reason why the section is skipped.
type Measured = Result<Vec<Table>, String>;

pub struct Plan {
    pub name: &'static str,
    pub title: &'static str,
    pub run: fn(Pace) -> Measured,
}

pub const PLANS: [Plan; 12] = [
    Plan { name: "tokens", title: "created and dropped on the same thread", run: |pace| Ok(tokens::run(pace)) },
    Plan { name: "handed-over", title: "tokens that another thread drops", run: |pace| Ok(handed_over::run(pace)) },
    Plan { name: "signals", title: "polled once and dropped", run: |pace| Ok(signals::run(pace)) },
    Plan { name: "triggered", title: "checks whether shutdown has started", run: |pace| Ok(triggered::run(pace)) },
    Plan { name: "tasks", title: "ready when first polled", run: |pace| Ok(tasks::run(pace)) },
    Plan { name: "handles", title: "tasks whose output is awaited", run: |pace| Ok(handles::run(pace)) },
    Plan { name: "fan-out", title: "tasks that wait for the shutdown signal", run: |pace| Ok(fan_out::run(pace)) },
    Plan { name: "children", title: "created, used, shut down and drained", run: |pace| Ok(children::run(pace)) },
    Plan { name: "drain", title: "many tasks that end at the same time", run: |pace| Ok(drain::run(pace)) },
    Plan { name: "memory", title: "allocations and bytes, counted by Valgrind's dhat", run: memory::run },
    Plan { name: "instructions", title: "instructions, counted by Valgrind's callgrind", run: instructions::run },
    Plan { name: "build", title: "a program with one dependency", run: build::run },
];

/// Runs one scenario in this process. To measure a scenario, the program starts itself under Valgrind with the name of the scenario.
pub fn scenario(name: &str, count: u32) -> Result<(), String> {
    let load = Load { threads: 1, operations: count };
    let on = On { runtime: Runtime::CurrentThread, tasks: count };
    let (group, contender) = name.split_once('/').unwrap_or((name, ""));
    match group {
        tokens::GROUP => only(&tokens::contenders(), contender, load),
        signals::GROUP => only(&signals::contenders(), contender, load),
        tasks::GROUP => only(&tasks::contenders(), contender, on),
        memory::GROUP => memory::wait(contender, count),
        memory::CHILDREN => memory::open_children(contender, count),
        _ => None,
    }
    .ok_or_else(|| format!("unknown scenario: {name}"))
}

fn only<C>(contenders: &[Contender<C>], name: &str, column: C) -> Option<()> {
    let contender = contenders.iter().find(|contender| contender.name == name)?;
    (contender.run)(column).map(drop)
}

fn headers(threads: &[u32]) -> Vec<String> {
    threads.iter().map(|&threads| format!("{threads} thread{}", if threads == 1 { "" } else { "s" })).collect()
}

struct NoopObserver;

impl Observer for NoopObserver {}
