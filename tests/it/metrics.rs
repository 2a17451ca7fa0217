//! `MetricsObserver`, tested on the text that the Prometheus exporter renders.
use crate::common::Manual;
use background_tasks::{MetricsObserver, Registry, Summary};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::future::{pending, ready};
use std::sync::OnceLock;

/// Returns the process-wide exporter. The tests share it, so each test names its registry differently.
fn exporter() -> &'static PrometheusHandle {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    EXPORTER.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

/// Returns an inspected registry with a limit of 4 and a `MetricsObserver`, and the spawner that drives its tasks.
fn observed(name: &'static str) -> (Manual, Registry<Manual>, MetricsObserver) {
    exporter();
    let (manual, metrics) = (Manual::default(), MetricsObserver::new(name));
    (manual.clone(), Registry::builder(manual).observer(metrics).inspect().max_in_flight(4).build(), metrics)
}

/// Returns the sorted lines of one registry, without its label and without the crate's prefix.
fn rendered(registry: &str) -> Vec<String> {
    let label = format!(r#"registry="{registry}""#);
    let text = exporter().render();
    let matching = text.lines().filter(|line| line.contains(&label));
    let mut lines: Vec<_> = matching.map(|line| line.replace(&label, "…").replace("background_tasks_", "")).collect();
    lines.sort();
    lines
}

/// Starts two tasks that complete and one task for each other outcome, and drives all of them to their end.
fn run_every_outcome(manual: &Manual, registry: &Registry<Manual>) {
    registry.run(async {});
    registry.named("mail").run(async {});
    registry.named("mail").run(ready(Err::<(), _>("intentional failure")));
    registry.run(async { panic!("intentional panic") });
    registry.named("sweep").run(async { unreachable!("the registry is full") });
    manual.poll_all();
    registry.named("mail").run(pending::<()>());
    drop(manual.take());
    registry.named("sweep").run(pending::<()>());
    registry.abort();
    manual.poll_all();
}

/// The loss counters after one call of `run_every_outcome`.
const LOSS_LINES: [&str; 5] = [
    r#"total{…,outcome="abandoned",task="mail"} 1"#,
    r#"total{…,outcome="aborted",task="sweep"} 1"#,
    r#"total{…,outcome="failed",task="mail"} 1"#,
    r#"total{…,outcome="panicked",task=""} 1"#,
    r#"total{…,outcome="rejected",task="sweep"} 1"#,
];

/// Returns all lines after one call of `run_every_outcome`, with the given line for completed tasks.
fn all_lines(completed: &str) -> Vec<&str> {
    let [abandoned, aborted, failed, panicked, rejected] = LOSS_LINES;
    vec!["in_flight{…} 0", abandoned, aborted, completed, failed, panicked, rejected]
}

#[test]
fn every_outcome_is_rendered_exactly() {
    let (manual, registry, metrics) = observed("exact");
    assert_eq!(rendered("exact").len(), 0);
    run_every_outcome(&manual, &registry);
    assert_eq!(rendered("exact"), LOSS_LINES, "the completion of a task must update no metric");

    for _ in 0..2 {
        metrics.record(&registry);
        assert_eq!(rendered("exact"), all_lines(r#"total{…,outcome="completed",task=""} 2"#));
    }

    drop(registry.guard().unwrap());
    registry.start_shutdown();
    let (drain, others): (Vec<_>, Vec<_>) = rendered("exact").into_iter().partition(|line| line.starts_with("drain"));
    assert_eq!(
        others,
        all_lines(r#"total{…,outcome="completed",task=""} 3"#),
        "the end of the drain must record the completed tasks"
    );
    assert_eq!(drain[0], "drain_duration_seconds_count{…} 1");
    let sum: f64 = drain[1].strip_prefix("drain_duration_seconds_sum{…} ").unwrap().parse().unwrap();
    assert!((0.0..60.0).contains(&sum), "{sum}");
    assert!(drain[2..].iter().all(|line| line.starts_with("drain_duration_seconds{…,quantile=")), "{drain:?}");

    let text = exporter().render();
    let mut headers: Vec<_> = text.lines().filter(|line| line.starts_with('#')).collect();
    headers.sort_unstable();
    let expected = [
        "# HELP background_tasks_drain_duration_seconds Time from the start of a shutdown until the drain ended.",
        "# HELP background_tasks_in_flight Background tasks in flight.",
        "# HELP background_tasks_total Background tasks that ended or were rejected, by outcome.",
        "# TYPE background_tasks_drain_duration_seconds summary",
        "# TYPE background_tasks_in_flight gauge",
        "# TYPE background_tasks_total counter",
    ];
    assert_eq!(headers, expected);
}

#[test]
fn in_flight_gauge_keeps_the_last_recorded_value() {
    let (manual, registry, metrics) = observed("gauge");
    let assert_gauge = |expected: &str| assert!(rendered("gauge").contains(&format!("in_flight{{…}} {expected}")), "{expected}");
    let guard = registry.guard().unwrap();
    registry.run(async {});
    metrics.record(&registry);
    assert_gauge("2");
    manual.poll_all();
    assert_gauge("2");
    metrics.record(&registry);
    assert_gauge("1");
    let shutdown = registry.shutdown();
    assert_gauge("1");
    drop(guard);
    assert_gauge("0");
    assert_eq!(shutdown.wait().completed, 2);
}

#[test]
fn outcome_counters_add_up_to_the_summary() {
    let (manual, registry, metrics) = observed("sums");
    for _ in 0..3 {
        run_every_outcome(&manual, &registry);
    }
    registry.start_shutdown();
    registry.run(pending::<()>());
    registry.named("late").run(pending::<()>());
    // A record after the end of the drain changes nothing.
    metrics.record(&registry);

    let lines = rendered("sums");
    let sum = |outcome: &str| -> u64 {
        let label = format!(r#"outcome="{outcome}""#);
        lines.iter().filter(|line| line.contains(&label)).map(|line| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()).sum()
    };
    let Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } = registry.summary();
    let outcomes = [
        ("completed", completed, 6),
        ("failed", failed, 3),
        ("panicked", panicked, 3),
        ("abandoned", abandoned, 3),
        ("aborted", aborted, 3),
        ("rejected", rejected, 5),
    ];
    for (outcome, in_summary, expected) in outcomes {
        assert_eq!((sum(outcome), in_summary), (expected, expected), "{outcome}");
    }
    let totals = lines.iter().filter(|line| line.starts_with("total"));
    assert_eq!(totals.count(), 6 + 2, "one counter for each combination of outcome and task name");
}
