use super::{BARE, Measured, REGISTRY, TRACKER, children, tasks};
use crate::goals::Goal;
use crate::measure::{Contender, Pace};
use crate::report::{Numbers, Row, Table};
use crate::valgrind::Tool;
use crate::waiting::{Waiting, contender, counted};
use background_tasks::{Registry, TokioSpawner};
use std::future::pending;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const GROUP: &str = "waiting";
pub const CHILDREN: &str = "open-child";

/// This number is a power of two. A collection that doubles its size then has no unused capacity.
const COUNT: u32 = 1 << 14;
const QUICK_COUNT: u32 = 1 << 10;

const SIGNAL: &str = "registry, signal";
const UNTIL: &str = "registry, run_until_shutdown";
const PAIR: &str = "CancellationToken + TaskTracker";

const READY: [&str; 3] = [BARE, REGISTRY, TRACKER];
const WAITING: [&str; 6] = [BARE, REGISTRY, SIGNAL, UNTIL, TRACKER, PAIR];

const DHAT: Tool =
    Tool { arguments: &["--tool=dhat", "--dhat-out-file=/dev/null"], counts: &[(" Total: ", 3), (" At t-gmax: ", 0)] };

pub fn run(pace: Pace) -> Measured {
    let (ready, waiting, children) = (pace.few(&READY), pace.few(&WAITING), pace.few(&[REGISTRY, children::PAIR]));
    let count = if pace.quick { QUICK_COUNT } else { COUNT };
    let mut counts = DHAT.differences(&scenarios(ready, waiting, children), count)?.into_iter();
    let mut rows = |names: &[&'static str], kinds: usize| -> Vec<Row> {
        let row = |(&name, counts): (_, Vec<f64>)| Row {
            name,
            cells: counts.into_iter().take(kinds).map(|count| Numbers::of(vec![count])).collect(),
        };
        names.iter().zip(counts.by_ref()).map(row).collect()
    };
    let (ready, waiting, children) = (rows(ready, 1), rows(waiting, 2), rows(children, 2));
    let table = |title, rows: Vec<Row>| {
        let columns = ["allocations", "bytes at the peak"].map(str::to_owned);
        let kinds = rows.first().map_or(0, |row| row.cells.len());
        Table::new(title, "", REGISTRY, columns[..kinds].into(), rows)
    };
    Ok(vec![
        table("Memory of a ready task on tokio's current-thread runtime", ready).difference(0, REGISTRY, BARE, Goal::at_most(0.0)),
        table(
            "Memory of a task that waits for shutdown (rows with signal, run_until_shutdown, CancellationToken) or forever",
            waiting,
        )
        .difference(0, UNTIL, BARE, Goal::below(0.01))
        .difference(1, REGISTRY, TRACKER, Goal::at_most(8.0)),
        table("Memory of an open child without tasks, with its handle", children).value(1, REGISTRY, Goal::at_most(512.0)),
    ])
}

fn scenarios(ready: &[&str], waiting: &[&str], children: &[&str]) -> Vec<String> {
    let groups = [(tasks::GROUP, ready), (GROUP, waiting), (CHILDREN, children)];
    groups.into_iter().flat_map(|(group, names)| names.iter().map(move |name| format!("{group}/{name}"))).collect()
}

/// Starts tasks that wait, and drops these tasks.
pub fn wait(name: &str, tasks: u32) -> Option<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("tokio starts");
    super::only(&contenders(), name, Waiting { runtime: &runtime, tasks })
}

/// Creates children of one registry, and drops these children.
pub fn open_children(name: &str, count: u32) -> Option<()> {
    super::only(&children::open(), name, count)
}

fn contenders<'a>() -> Vec<Contender<Waiting<'a>>> {
    fn registry() -> Registry<TokioSpawner> {
        Registry::new(TokioSpawner)
    }
    vec![
        contender(BARE, || (), |()| drop(tokio::spawn(counted(pending::<()>()))), async |()| ()),
        contender(REGISTRY, registry, |registry| registry.run(counted(pending::<()>())), async |_| ()),
        contender(SIGNAL, registry, |registry| registry.run(counted(registry.signal())), async |_| ()),
        contender(
            UNTIL,
            registry,
            |registry| {
                let signal = registry.signal();
                registry.run(async move { counted(signal.run_until_shutdown(pending::<()>())).await });
            },
            async |_| (),
        ),
        contender(TRACKER, TaskTracker::new, |tracker| drop(tracker.spawn(counted(pending::<()>()))), async |_| ()),
        contender(
            PAIR,
            || (CancellationToken::new(), TaskTracker::new()),
            |(token, tracker)| drop(tracker.spawn(counted(token.clone().cancelled_owned()))),
            async |_| (),
        ),
    ]
}

#[test]
fn each_scenario_runs() {
    for name in scenarios(&READY, &WAITING, &[REGISTRY, children::PAIR]) {
        super::scenario(&name, 1).unwrap();
    }
}
