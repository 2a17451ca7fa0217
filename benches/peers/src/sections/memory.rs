use super::{BARE, Measured, REGISTRY, TRACKER, tasks};
use crate::bars::Goal;
use crate::measure::{Contender, Pace};
use crate::report::{Figures, Row, Table};
use crate::valgrind::Tool;
use crate::waiting::{Waiting, contender, counted};
use background_tasks::{Registry, TokioSpawner};
use std::future::pending;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const GROUP: &str = "waiting";

/// A power of two, at which what doubles as it grows is full.
const TASKS: u32 = 1 << 14;
const QUICK_TASKS: u32 = 1 << 10;

const SIGNAL: &str = "registry, signal";
const UNTIL: &str = "registry, run_until_shutdown";
const PAIR: &str = "CancellationToken + TaskTracker";

const READY: [&str; 3] = [BARE, REGISTRY, TRACKER];
const WAITING: [&str; 6] = [BARE, REGISTRY, SIGNAL, UNTIL, TRACKER, PAIR];

const DHAT: Tool =
    Tool { arguments: &["--tool=dhat", "--dhat-out-file=/dev/null"], counts: &[(" Total: ", 3), (" At t-gmax: ", 0)] };

pub fn run(pace: Pace) -> Measured {
    let (ready, waiting) = (pace.few(&READY), pace.few(&WAITING));
    let count = if pace.quick { QUICK_TASKS } else { TASKS };
    let mut counts = DHAT.differences(&scenarios(ready, waiting), count)?.into_iter();
    let mut rows = |names: &[&'static str], kinds: usize| -> Vec<Row> {
        let row = |(&name, counts): (_, Vec<f64>)| Row {
            name,
            cells: counts.into_iter().take(kinds).map(|count| Figures::of(vec![count])).collect(),
        };
        names.iter().zip(counts.by_ref()).map(row).collect()
    };
    let (ready, waiting) = (rows(ready, 1), rows(waiting, 2));
    let columns = || vec!["allocations".to_owned(), "bytes in flight".to_owned()];
    let ready = Table::new("A ready task on tokio's current thread", "by column", REGISTRY, columns()[..1].into(), ready)
        .difference(0, REGISTRY, BARE, Goal::at_most(0.0));
    let waiting =
        Table::new("A task that waits (the first two and TaskTracker's: for ever)", "by column", REGISTRY, columns(), waiting)
            .difference(0, UNTIL, BARE, Goal::below(0.01))
            .difference(1, REGISTRY, TRACKER, Goal::at_most(8.0));
    Ok(vec![ready, waiting])
}

fn scenarios(ready: &[&str], waiting: &[&str]) -> Vec<String> {
    let ready = ready.iter().map(|name| format!("{}/{name}", tasks::GROUP));
    ready.chain(waiting.iter().map(|name| format!("{GROUP}/{name}"))).collect()
}

/// Has so many tasks wait, and drops them.
pub fn wait(name: &str, tasks: u32) -> Option<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("tokio starts");
    super::only(&contenders(), name, Waiting { runtime: &runtime, tasks })
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
    for name in scenarios(&READY, &WAITING) {
        super::scenario(&name, 1).unwrap();
    }
}
