//! What a registry tells of its tasks, as JSON.
#![cfg(all(feature = "tokio", feature = "smol", feature = "async-std", feature = "async-executor", feature = "serde"))]

mod common;

use background_tasks::{Observer, Registry, RejectReason, Summary, TaskId, TaskInfo, TaskKind};
use common::{Manual, inspected};
use serde_json::{Value, json, to_value};
use std::future::{Future, pending, ready};
use std::panic::Location;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Starts a task and says where, as JSON does: at the caller, as it does itself.
#[track_caller]
fn run<F>(registry: &Registry<Manual>, name: &'static str, future: F) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    registry.named(name).run(future);
    Location::caller().to_string()
}

/// Takes what differs from run to run out of a task: an id that parses, and an age that is a number of seconds.
#[track_caller]
fn take_id_and_age(task: &mut Value) -> (TaskId, f64) {
    let fields = task.as_object_mut().unwrap();
    let id = fields.remove("id").expect("an inspected task has an id");
    let age = fields.remove("age_seconds").expect("an inspected task has an age");
    let age = age.as_f64().expect("a number");
    assert!((0.0..60.0).contains(&age), "{age}");
    (id.as_str().expect("an id is text").parse().unwrap(), age)
}

#[test]
fn a_list_of_tasks_has_all_that_is_known_of_each() {
    let (_manual, registry) = inspected();
    let site = run(&registry, "mail", pending());
    let line = line!() - 1;
    assert!(site.starts_with(&format!("{}:{line}:", file!())), "file, line and column: {site}");
    let (tracked, guard) = (registry.track(pending::<()>()).unwrap(), registry.guard().unwrap());

    let mut tasks = registry.tasks();
    // Those that began at one reading of the clock are in any order.
    tasks.sort_by_key(|task| task.kind().map(|kind| kind.to_string()));
    let Value::Array(mut told) = to_value(&tasks).unwrap() else { panic!("a list") };
    for (told, task) in told.iter_mut().zip(&tasks) {
        let (id, age) = take_id_and_age(told);
        assert_eq!(Some(id), task.id());
        assert!((age - task.age().unwrap().as_secs_f64()).abs() < 1e-5, "to the microsecond");
        let fields = told.as_object_mut().unwrap();
        assert_eq!(fields.remove("location"), Some(task.location().to_string().into()));
    }
    let expected = [
        json!({ "name": "mail", "kind": "future" }),
        json!({ "name": null, "kind": "guard" }),
        json!({ "name": null, "kind": "tracked" }),
    ];
    assert_eq!(told, expected);
    assert_eq!(tasks[0].location().to_string(), site);
    drop((tracked, guard));
}

#[test]
fn an_id_is_text_that_finds_its_task() {
    let (manual, registry) = inspected();
    run(&registry, "mail", pending());
    let told = to_value(registry.tasks()[0].id()).unwrap();
    let text = told.as_str().unwrap();
    let (slot, turn) = text.split_once('-').unwrap();
    assert!([slot, turn].iter().all(|number| number.parse::<u32>().is_ok()), "two numbers with a hyphen between them: {text}");
    registry.abort_task(text.parse().unwrap()).unwrap();
    manual.poll_all();
    assert_eq!(registry.summary().aborted, 1);
}

#[test]
fn a_task_says_that_it_is_told_to_abort_from_then_on() {
    let (_manual, registry) = inspected();
    run(&registry, "mail", pending());
    let told = || to_value(registry.tasks()).unwrap()[0].get("abort_requested").cloned();
    assert_eq!(told(), None);
    let aborted = registry.abort();
    assert_eq!(told(), Some(true.into()));
    assert_eq!(to_value(aborted).unwrap(), json!({ "aborted": 1, "not_abortable": 0 }));
}

/// Keeps what it is told of failures and refusals, as JSON.
#[derive(Default)]
struct Told(Mutex<Vec<Value>>);

impl Observer for Told {
    fn failed(&self, task: &TaskInfo, _: &str) {
        self.0.lock().unwrap().push(to_value(task).unwrap());
    }

    fn rejected(&self, task: &TaskInfo, reason: RejectReason) {
        self.0.lock().unwrap().push(json!([task, reason]));
    }
}

#[track_caller]
fn fail(registry: &Registry<Manual>) -> String {
    registry.run(ready(Err("a failure")));
    Location::caller().to_string()
}

#[test]
fn what_is_not_known_of_a_task_is_left_out() {
    let (manual, told) = (Manual::default(), Arc::new(Told::default()));
    let registry = Registry::builder(manual.clone()).observer(told.clone()).build();
    let failed = fail(&registry);
    manual.poll_all();
    registry.shutdown();
    let rejected = run(&registry, "mail", pending());
    let expected = [json!({ "name": null, "location": failed }), json!([{ "name": "mail", "location": rejected }, "drained"])];
    assert_eq!(*told.0.lock().unwrap(), expected);
}

#[test]
fn stragglers_are_how_many_how_the_others_ended_and_who() {
    let (manual, registry) = inspected();
    registry.run(async {});
    manual.poll_all();
    let site = run(&registry, "mail", pending());
    let mut told = to_value(registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err()).unwrap();
    take_id_and_age(&mut told["tasks"][0]);
    let summary = json!({ "completed": 1, "failed": 0, "panicked": 0, "abandoned": 0, "aborted": 0, "rejected": 0 });
    let tasks = json!([{ "name": "mail", "location": site, "kind": "future" }]);
    assert_eq!(told, json!({ "len": 1, "summary": summary, "tasks": tasks }));
}

#[test]
fn stragglers_that_nobody_inspects_are_a_number() {
    let registry = Registry::new(());
    let _guard = registry.guard().unwrap();
    let told = to_value(registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err()).unwrap();
    assert_eq!(told, json!({ "len": 1, "summary": Summary::default(), "tasks": [] }));
}

#[test]
fn a_summary_has_a_number_for_each_fate() {
    let mut summary = Summary::default();
    (summary.completed, summary.failed, summary.panicked) = (1, 2, 3);
    (summary.abandoned, summary.aborted, summary.rejected) = (4, 5, u64::MAX);
    let told = serde_json::to_string(&summary).unwrap();
    let expected = r#"{"completed":1,"failed":2,"panicked":3,"abandoned":4,"aborted":5,"rejected":18446744073709551615}"#;
    assert_eq!(told, expected);
}

#[test]
fn reasons_and_kinds_are_words() {
    let reasons = [RejectReason::Drained, RejectReason::Full, RejectReason::ShuttingDown];
    assert_eq!(to_value(reasons).unwrap(), json!(["drained", "full", "shutting_down"]));
    let kinds = [TaskKind::Future, TaskKind::Local, TaskKind::Blocking, TaskKind::Tracked, TaskKind::Guard];
    assert_eq!(to_value(kinds).unwrap(), json!(["future", "local", "blocking", "tracked", "guard"]));
}
