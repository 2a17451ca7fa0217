use super::{ASYNC_SHUTDOWN, BARE, CANCELLATION, INSPECTED, Measured, REGISTRY, SWANSONG, TRACKER, signals, tasks, tokens};
use crate::bars::Goal;
use crate::measure::Pace;
use crate::report::{Figures, Row, Table};
use crate::valgrind::Tool;

const OPERATIONS: u32 = 100_000;

const CALLGRIND: Tool = Tool { arguments: &["--tool=callgrind", "--callgrind-out-file=/dev/null"], counts: &[("Collected :", 0)] };

/// The scenarios' group, what they do, and the contenders.
const KINDS: [(&str, &str, &[&str]); 3] = [
    (tokens::GROUP, "A token made and dropped", &[BARE, REGISTRY, INSPECTED, TRACKER, SWANSONG, ASYNC_SHUTDOWN]),
    (signals::GROUP, "A signal cloned, polled once and dropped", &[REGISTRY, CANCELLATION, SWANSONG]),
    (tasks::GROUP, "A ready task on tokio's current thread", &[BARE, REGISTRY, TRACKER]),
];

pub fn run(pace: Pace) -> Measured {
    let mut counts = CALLGRIND.differences(&scenarios(pace), pace.count(OPERATIONS))?.into_iter();
    let tables = KINDS.map(|(_, title, names)| {
        let row = |(&name, counts): (_, Vec<f64>)| Row { name, cells: vec![Figures::of(counts)] };
        let rows = pace.few(names).iter().zip(counts.by_ref()).map(row).collect();
        Table::new(title, "instructions", REGISTRY, vec!["each".to_owned()], rows)
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
