use super::{ASYNC_SHUTDOWN, BARE, CANCELLATION, INSPECTED, Measured, REGISTRY, SWANSONG, TRACKER, signals, tasks, tokens};
use crate::goals::Goal;
use crate::measure::Pace;
use crate::report::{Numbers, Row, Table};
use crate::valgrind::Tool;

const OPERATIONS: u32 = 100_000;

const CALLGRIND: Tool = Tool { arguments: &["--tool=callgrind", "--callgrind-out-file=/dev/null"], counts: &[("Collected :", 0)] };

/// Each entry contains a group of scenarios, the title of its table, and the contenders.
const KINDS: [(&str, &str, &[&str]); 3] = [
    (tokens::GROUP, "Create and drop a token", &[BARE, REGISTRY, INSPECTED, TRACKER, SWANSONG, ASYNC_SHUTDOWN]),
    (signals::GROUP, "Clone, poll once and drop a signal", &[REGISTRY, CANCELLATION, SWANSONG]),
    (tasks::GROUP, "Run a ready task on tokio's current-thread runtime", &[BARE, REGISTRY, TRACKER]),
];

pub fn run(pace: Pace) -> Measured {
    let mut counts = CALLGRIND.differences(&scenarios(pace), pace.count(OPERATIONS))?.into_iter();
    let tables = KINDS.map(|(_, title, names)| {
        let row = |(&name, counts): (_, Vec<f64>)| Row { name, cells: vec![Numbers::of(counts)] };
        let rows = pace.few(names).iter().zip(counts.by_ref()).map(row).collect();
        Table::new(title, "instructions", REGISTRY, vec!["per operation".to_owned()], rows)
    });
    let [tokens, signals, tasks] = tables;
    Ok(vec![tokens.difference(0, REGISTRY, TRACKER, Goal::below(0.0)), signals, tasks])
}

fn scenarios(pace: Pace) -> Vec<String> {
    let of = |(group, _, names)| pace.few(names).iter().map(move |name| format!("{group}/{name}"));
    KINDS.into_iter().flat_map(of).collect()
}

#[test]
fn each_scenario_runs() {
    for name in scenarios(Pace { quick: false }) {
        super::scenario(&name, 1).unwrap();
    }
}
