//! What `MetricsObserver` keeps, as the Prometheus exporter renders it.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor", feature = "metrics"))]

mod common;

use background_tasks::{MetricsObserver, Registry, Summary};
use common::Manual;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::future::{pending, ready};
use std::sync::OnceLock;

/// The program's exporter: one for all tests, each of which has a registry of its own name.
fn exporter() -> &'static PrometheusHandle {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    EXPORTER.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

fn observed(name: &'static str) -> (Manual, Registry<Manual>, MetricsObserver) {
    exporter();
    let (manual, metrics) = (Manual::default(), MetricsObserver::new(name));
    (manual.clone(), Registry::builder(manual).observer(metrics).inspect().max_in_flight(4).build(), metrics)
}

/// The lines of one registry, sorted, without its label and the crate's prefix.
fn rendered(registry: &str) -> Vec<String> {
    let label = format!(r#"registry="{registry}""#);
    let text = exporter().render();
    let own = text.lines().filter(|line| line.contains(&label));
    let mut lines: Vec<_> = own.map(|line| line.replace(&label, "…").replace("background_tasks_", "")).collect();
    lines.sort();
    lines
}

/// One task of each fate, but two that complete; when this returns each has ended.
fn a_life(manual: &Manual, registry: &Registry<Manual>) {
    registry.run(async {});
    registry.named("mail").run(async {});
    registry.named("mail").run(ready(Err("a failure")));
    registry.run(async { panic!("a panic, as planned") });
    registry.named("sweep").run(async { unreachable!("there is no place") });
    manual.poll_all();
    registry.named("mail").run(pending::<()>());
    drop(manual.take());
    registry.named("sweep").run(pending::<()>());
    registry.abort();
    manual.poll_all();
}

const LOSSES: [&str; 5] = [
    r#"total{…,outcome="abandoned",task="mail"} 1"#,
    r#"total{…,outcome="aborted",task="sweep"} 1"#,
    r#"total{…,outcome="failed",task="mail"} 1"#,
    r#"total{…,outcome="panicked",task=""} 1"#,
    r#"total{…,outcome="rejected",task="sweep"} 1"#,
];

/// The lines of a registry that has lived `a_life`.
fn with(completed: &str) -> Vec<&str> {
    let [abandoned, aborted, failed, panicked, rejected] = LOSSES;
    vec!["in_flight{…} 0", abandoned, aborted, completed, failed, panicked, rejected]
}

#[test]
fn a_life_of_all_fates_is_rendered_exactly() {
    let (manual, registry, metrics) = observed("exact");
    assert_eq!(rendered("exact").len(), 0);
    a_life(&manual, &registry);
    assert_eq!(rendered("exact"), LOSSES, "what completes tells nobody");

    for _ in 0..2 {
        metrics.record(&registry);
        assert_eq!(rendered("exact"), with(r#"total{…,outcome="completed",task=""} 2"#));
    }

    drop(registry.guard().unwrap());
    registry.shutdown();
    let (drain, others): (Vec<_>, Vec<_>) = rendered("exact").into_iter().partition(|line| line.starts_with("drain"));
    assert_eq!(others, with(r#"total{…,outcome="completed",task=""} 3"#), "the drain records");
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
fn what_is_in_flight_is_what_it_was_when_it_was_last_recorded() {
    let (manual, registry, metrics) = observed("gauge");
    let gauge = |expected: &str| assert!(rendered("gauge").contains(&format!("in_flight{{…}} {expected}")), "{expected}");
    let guard = registry.guard().unwrap();
    registry.run(async {});
    metrics.record(&registry);
    gauge("2");
    manual.poll_all();
    gauge("2");
    metrics.record(&registry);
    gauge("1");
    let shutdown = registry.shutdown();
    gauge("1");
    drop(guard);
    gauge("0");
    assert_eq!(shutdown.wait().completed, 2);
}

#[test]
fn the_outcomes_add_up_to_the_summary() {
    let (manual, registry, metrics) = observed("sums");
    for _ in 0..3 {
        a_life(&manual, &registry);
    }
    registry.shutdown();
    registry.run(pending::<()>());
    registry.named("late").run(pending::<()>());
    // A record after the end changes nothing.
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
    for (outcome, summary, expected) in outcomes {
        assert_eq!((sum(outcome), summary), (expected, expected), "{outcome}");
    }
    let totals = lines.iter().filter(|line| line.starts_with("total"));
    assert_eq!(totals.count(), 6 + 2, "one for each outcome and name");
}
