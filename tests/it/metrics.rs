//! Tests `MetricsObserver` with the text that the Prometheus exporter renders.
use crate::common::{Fake, Manual, panic_quietly, poll_once};
use background_tasks::{MetricsObserver, Registry, RegistryBuilder, Spawner, Summary};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::future::{pending, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

type Exporter = MutexGuard<'static, PrometheusHandle>;

/// Returns the only exporter of this process. Each test uses its own registry name, because the exporter keeps the metrics of all tests.
///
/// Only one test has the exporter at a time, because a render can discard a sample that another thread records simultaneously.
fn exporter() -> Exporter {
    static EXPORTER: LazyLock<Mutex<PrometheusHandle>> =
        LazyLock::new(|| Mutex::new(PrometheusBuilder::new().install_recorder().unwrap()));
    EXPORTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns an inspected registry with a limit of 4 and a `MetricsObserver`, and the spawner that polls its tasks.
fn observed(name: &'static str) -> (Manual, Registry<Manual>, MetricsObserver) {
    let (manual, metrics) = (Manual::default(), MetricsObserver::new(name));
    (manual.clone(), Registry::builder(manual).observer(metrics).inspect().max_in_flight(4).build(), metrics)
}

/// Returns the sorted lines of one registry, without the label `registry` and without the prefix of this crate.
fn rendered(exporter: &Exporter, registry: &str) -> Vec<String> {
    let label = format!(r#"registry="{registry}""#);
    let text = exporter.render();
    let matching = text.lines().filter(|line| line.contains(&label));
    let mut lines: Vec<_> = matching.map(|line| line.replace(&label, "…").replace("background_tasks_", "")).collect();
    lines.sort();
    lines
}

/// Starts two tasks that complete, and one task for each other outcome. Polls all tasks until they have ended.
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

/// The lines of the loss counters after one call to `run_every_outcome`.
const LOSS_LINES: [&str; 5] = [
    r#"total{…,outcome="abandoned",task="mail"} 1"#,
    r#"total{…,outcome="aborted",task="sweep"} 1"#,
    r#"total{…,outcome="failed",task="mail"} 1"#,
    r#"total{…,outcome="panicked",task=""} 1"#,
    r#"total{…,outcome="rejected",task="sweep"} 1"#,
];

/// Returns all lines after one call to `run_every_outcome`. The parameter is the line for completed tasks.
fn all_lines(completed: &str) -> Vec<&str> {
    let [abandoned, aborted, failed, panicked, rejected] = LOSS_LINES;
    vec!["in_flight{…} 0", abandoned, aborted, completed, failed, panicked, rejected]
}

#[test]
fn every_outcome_is_rendered_exactly() {
    let exporter = exporter();
    let (manual, registry, metrics) = observed("exact");
    assert_eq!(rendered(&exporter, "exact").len(), 0);
    run_every_outcome(&manual, &registry);
    assert_eq!(rendered(&exporter, "exact"), LOSS_LINES, "the completion of a task must update no metric");

    for _ in 0..2 {
        metrics.record(&registry);
        assert_eq!(rendered(&exporter, "exact"), all_lines(r#"total{…,outcome="completed",task=""} 2"#));
    }

    drop(registry.guard().unwrap());
    registry.start_shutdown();
    let (drain, others): (Vec<_>, Vec<_>) = rendered(&exporter, "exact").into_iter().partition(|line| line.starts_with("drain"));
    assert_eq!(
        others,
        all_lines(r#"total{…,outcome="completed",task=""} 3"#),
        "the end of the drain must record the completed tasks"
    );
    assert_eq!(drain[0], "drain_duration_seconds_count{…} 1");
    let sum: f64 = drain[1].strip_prefix("drain_duration_seconds_sum{…} ").unwrap().parse().unwrap();
    assert!((0.0..60.0).contains(&sum), "{sum}");
    assert!(drain[2..].iter().all(|line| line.starts_with("drain_duration_seconds{…,quantile=")), "{drain:?}");

    let text = exporter.render();
    let by_name = |line: &&str| line.contains("tasks_started") || line.contains("tasks_duration");
    let mut headers: Vec<_> = text.lines().filter(|line| line.starts_with('#') && !by_name(line)).collect();
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
    let exporter = exporter();
    let (manual, registry, metrics) = observed("gauge");
    let assert_gauge =
        |expected: &str| assert!(rendered(&exporter, "gauge").contains(&format!("in_flight{{…}} {expected}")), "{expected}");
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
    let exporter = exporter();
    let (manual, registry, metrics) = observed("sums");
    for _ in 0..3 {
        run_every_outcome(&manual, &registry);
    }
    registry.start_shutdown();
    registry.run(pending::<()>());
    registry.named("late").run(pending::<()>());
    // A call to `record` after the end of the drain must not change the metrics.
    metrics.record(&registry);

    let lines = rendered(&exporter, "sums");
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

/// Runs `f` with a registry whose metrics are recorded by name, and with an exporter that only this thread uses. Returns the sorted
/// lines, without headers, quantiles, the label `registry` and the prefix of this crate. `…` replaces each duration.
fn by_name<S>(spawner: S, f: impl FnOnce(&Registry<S>)) -> Vec<String> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let exporter = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        f(&Registry::builder(spawner).observer(MetricsObserver::new("names").by_name()).build());
    });
    let text = exporter.render();
    let lines = text.lines().filter(|line| line.contains(r#"registry="names""#) && !line.contains("quantile="));
    let mut lines: Vec<_> = lines.map(shortened).collect();
    lines.sort();
    lines
}

fn shortened(line: &str) -> String {
    let line = line.replace(r#"registry="names","#, "").replace("background_tasks_", "");
    match line.split_once("duration_seconds_sum") {
        None => line,
        Some((prefix, rest)) => {
            let (labels, value) = rest.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap();
            assert!((0.0..60.0).contains(&value), "{value}");
            format!("{prefix}duration_seconds_sum{labels} …")
        }
    }
}

#[test]
fn starts_ends_and_durations_are_recorded_by_name() {
    let manual = Manual::default();
    let lines = by_name(manual.clone(), |registry| {
        registry.run(async {});
        registry.named("mail").run(async {});
        drop(registry.named("mail").spawn(async { 7 }));
        registry.named("mail").run(ready(Err::<(), _>("intentional failure")));
        registry.named("mail").run(async { panic_quietly("intentional panic") });
        manual.poll_all();
        registry.named("mail").run(pending::<()>());
        drop(manual.take());
        registry.named("sweep").run(pending::<()>());
        registry.abort();
        manual.poll_all();
        drop(registry.named("sweep").guard().unwrap());
        assert!(poll_once(&mut registry.named("sweep").track(ready(7)).unwrap()).is_ready());
        let child = registry.named("tenant").child();
        child.named("mail").run(async {});
        manual.poll_all();
        registry.named("sweep").run(pending::<()>());
    });
    let expected = [r#"drain_duration_seconds_count{registry="names"} 1"#, r#"drain_duration_seconds_sum{registry="names"} …"#];
    let (others, named): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.starts_with("drain"));
    assert!(others.is_empty() || others == expected, "{others:?}");
    let expected = [
        r#"duration_seconds_count{task="",outcome="completed"} 1"#,
        r#"duration_seconds_count{task="mail",outcome="abandoned"} 1"#,
        r#"duration_seconds_count{task="mail",outcome="completed"} 3"#,
        r#"duration_seconds_count{task="mail",outcome="failed"} 1"#,
        r#"duration_seconds_count{task="mail",outcome="panicked"} 1"#,
        r#"duration_seconds_count{task="sweep",outcome="aborted"} 1"#,
        r#"duration_seconds_count{task="sweep",outcome="completed"} 2"#,
        r#"duration_seconds_sum{task="",outcome="completed"} …"#,
        r#"duration_seconds_sum{task="mail",outcome="abandoned"} …"#,
        r#"duration_seconds_sum{task="mail",outcome="completed"} …"#,
        r#"duration_seconds_sum{task="mail",outcome="failed"} …"#,
        r#"duration_seconds_sum{task="mail",outcome="panicked"} …"#,
        r#"duration_seconds_sum{task="sweep",outcome="aborted"} …"#,
        r#"duration_seconds_sum{task="sweep",outcome="completed"} …"#,
        r#"in_flight{task=""} 0"#,
        r#"in_flight{task="mail"} 0"#,
        r#"in_flight{task="sweep"} 1"#,
        r#"started_total{task=""} 1"#,
        r#"started_total{task="mail"} 6"#,
        r#"started_total{task="sweep"} 4"#,
        r#"total{outcome="abandoned",task="mail"} 1"#,
        r#"total{outcome="aborted",task="sweep"} 1"#,
        r#"total{outcome="completed",task=""} 1"#,
        r#"total{outcome="completed",task="mail"} 3"#,
        r#"total{outcome="completed",task="sweep"} 2"#,
        r#"total{outcome="failed",task="mail"} 1"#,
        r#"total{outcome="panicked",task="mail"} 1"#,
    ];
    assert_eq!(named, expected);
}

#[test]
fn rejected_tasks_count_neither_as_started_nor_as_in_flight() {
    let lines = by_name(Manual::default(), |registry| {
        registry.start_shutdown();
        registry.named("late").run(async {});
    });
    assert_eq!(lines.last().unwrap(), r#"total{outcome="rejected",task="late"} 1"#);
    assert!(!lines.iter().any(|line| line.contains("started") || line.contains("in_flight")), "{lines:?}");
}

#[test]
fn each_run_of_a_service_is_counted_by_name_without_a_duration() {
    let fake = Fake::default();
    let lines = by_name(fake.clone(), |registry| fake.run_outbox(registry));
    let expected = [
        r#"in_flight{task="outbox"} 1"#,
        r#"started_total{task="outbox"} 3"#,
        r#"total{outcome="completed",task="outbox"} 1"#,
        r#"total{outcome="failed",task="outbox"} 1"#,
    ];
    assert_eq!(lines, expected);
}

/// Returns a registry with a label that is unique in this process, because all tests share the exporter.
fn with_label<S>(builder: RegistryBuilder<S>) -> (Exporter, &'static str, Registry<S>) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name: &'static str = format!("runtime-{}", NEXT.fetch_add(1, Ordering::Relaxed)).leak();
    (exporter(), name, builder.observer(MetricsObserver::new(name).by_name()).build())
}

fn metrics_by_name_agree_with_the_summary<S: Spawner>((exporter, name, registry): &(Exporter, &'static str, Registry<S>)) {
    for _ in 0..100 {
        registry.named("mail").run(async {});
        registry.named("mail").run(ready(Err::<(), _>("intentional failure")));
        drop(registry.spawn(async { 7 }));
    }
    // The observer must record the end of each task before the drain ends.
    assert_eq!(registry.shutdown().wait().completed, 200);
    let lines: Vec<_> =
        rendered(exporter, name).into_iter().filter(|line| !line.contains("seconds{") && !line.contains("_sum")).collect();
    let expected = [
        "drain_duration_seconds_count{…} 1",
        r#"duration_seconds_count{…,task="",outcome="completed"} 100"#,
        r#"duration_seconds_count{…,task="mail",outcome="completed"} 100"#,
        r#"duration_seconds_count{…,task="mail",outcome="failed"} 100"#,
        r#"in_flight{…,task=""} 0"#,
        r#"in_flight{…,task="mail"} 0"#,
        r#"started_total{…,task=""} 100"#,
        r#"started_total{…,task="mail"} 200"#,
        r#"total{…,outcome="completed",task=""} 100"#,
        r#"total{…,outcome="completed",task="mail"} 100"#,
        r#"total{…,outcome="failed",task="mail"} 100"#,
    ];
    assert_eq!(lines, expected);
}

on_every_runtime!(with |spawner| super::with_label(Registry::builder(spawner)); metrics_by_name_agree_with_the_summary);
