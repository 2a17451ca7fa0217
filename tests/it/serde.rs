//! Checks that tasks, stragglers and summaries serialize to the documented JSON.
use crate::common::{Fake, Manual, inspected};
use background_tasks::{JoinHandle, Loss, Observer, Registry, RejectReason, Restart, Summary, TaskId, TaskInfo, TaskKind};
use serde_json::{Value, json, to_value};
use std::future::{Future, pending, ready};
use std::panic::Location;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Starts a task, and returns its call site in the JSON format. The call site is the caller of this function.
#[track_caller]
fn run<F>(registry: &Registry<Manual>, name: &'static str, future: F) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    registry.named(name).run(future);
    Location::caller().to_string()
}

/// Does the same as [`run`], for a task that has no name and fails.
#[track_caller]
fn run_failing(registry: &Registry<Manual>) -> String {
    registry.run(ready(Err::<(), _>("intentional failure")));
    Location::caller().to_string()
}

/// Removes and returns the ID and the age in seconds of a task, because these fields differ in each run.
#[track_caller]
fn take_id_and_age(task: &mut Value) -> (TaskId, f64) {
    let fields = task.as_object_mut().unwrap();
    let id = fields.remove("id").expect("an inspected task has an ID");
    let age = fields.remove("age_seconds").expect("an inspected task has an age");
    let age = age.as_f64().expect("an age is a number");
    assert!((0.0..60.0).contains(&age), "{age}");
    (id.as_str().expect("an ID is a string").parse().unwrap(), age)
}

#[test]
fn task_list_serializes_every_known_field() {
    let (_manual, registry) = inspected();
    let site = run(&registry, "mail", pending());
    let line = line!() - 1;
    assert!(site.starts_with(&format!("{}:{line}:", file!())), "a call site is file, line and column: {site}");
    let (tracked, guard) = (registry.track(pending::<()>()).unwrap(), registry.guard().unwrap());

    let mut tasks = registry.tasks();
    // The list has no fixed order for tasks that started at the same time.
    tasks.sort_by_key(|task| task.kind().map(|kind| kind.to_string()));
    let Value::Array(mut serialized) = to_value(&tasks).unwrap() else { panic!("a task list serializes to an array") };
    for (serialized, task) in serialized.iter_mut().zip(&tasks) {
        let (id, age) = take_id_and_age(serialized);
        assert_eq!(Some(id), task.id());
        assert!((age - task.age().unwrap().as_secs_f64()).abs() < 1e-5, "ages are exact to the microsecond");
        let fields = serialized.as_object_mut().unwrap();
        assert_eq!(fields.remove("location"), Some(task.location().to_string().into()));
    }
    let expected = [
        json!({ "name": "mail", "kind": "future", "is_abortable": true }),
        json!({ "name": null, "kind": "guard", "is_abortable": false }),
        json!({ "name": null, "kind": "tracked", "is_abortable": false }),
    ];
    assert_eq!(serialized, expected);
    assert_eq!(tasks[0].location().to_string(), site);
    drop((tracked, guard));
}

/// Starts a service whose runs fail and a task with a handle, and creates a child registry.
fn fake_with_all_kinds() -> (Fake, Registry<Fake>, (Registry<Fake>, JoinHandle<()>)) {
    let fake = Fake::default();
    let registry = fake.builder().inspect().build();
    registry.named("outbox").service(Restart::on_failure(), || ready(Err::<(), _>("no connection")));
    let (child, handle) = (registry.named("tenant").child(), registry.named("export").spawn(pending::<()>()));
    (fake, registry, (child, handle))
}

#[test]
fn services_children_and_tasks_with_handles_serialize_as_tasks() {
    let (_fake, registry, _owned) = fake_with_all_kinds();
    let Value::Array(mut tasks) = to_value(registry.tasks()).unwrap() else { panic!("a task list serializes to an array") };
    for task in &mut tasks {
        take_id_and_age(task);
        task.as_object_mut().unwrap().remove("location").unwrap();
    }
    // The list has no fixed order for tasks that started at the same time.
    tasks.sort_by_key(|task| task["kind"].to_string());
    let expected = [
        json!({ "name": "tenant", "kind": "child", "is_abortable": false }),
        json!({ "name": "export", "kind": "future", "is_abortable": true }),
        json!({ "name": "outbox", "kind": "service", "is_abortable": true }),
    ];
    assert_eq!(tasks, expected);
}

#[test]
fn service_list_serializes_task_state_restarts_and_last_loss() {
    let (fake, registry, _owned) = fake_with_all_kinds();
    let services = || {
        let mut serialized = to_value(registry.services()).unwrap();
        take_id_and_age(&mut serialized[0]["task"]);
        serialized[0]["task"].as_object_mut().unwrap().remove("location").unwrap();
        serialized
    };
    let task = json!({ "name": "outbox", "kind": "service", "is_abortable": true });
    let service = |is_running, restarts, last_loss: Option<&str>| json!([{ "task": task, "is_running": is_running, "restarts": restarts, "last_loss": last_loss }]);
    assert_eq!(services(), service(true, 0, None));
    fake.tasks.poll_all();
    assert_eq!(services(), service(false, 0, Some("failed: no connection")));
    fake.advance(Duration::from_secs(1));
    assert_eq!(services(), service(false, 1, Some("failed: no connection")));
}

#[test]
fn serialized_id_parses_and_aborts_its_task() {
    let (manual, registry) = inspected();
    run(&registry, "mail", pending());
    let serialized = to_value(registry.tasks()[0].id()).unwrap();
    let text = serialized.as_str().unwrap();
    let (slot, generation) = text.split_once('-').unwrap();
    assert!([slot, generation].iter().all(|number| number.parse::<u32>().is_ok()), "an ID is two numbers and a hyphen: {text}");
    registry.abort_task(text.parse().unwrap()).unwrap();
    manual.poll_all();
    assert_eq!(registry.summary().aborted, 1);
}

#[test]
fn abort_requested_is_serialized_only_after_an_abort() {
    let (_manual, registry) = inspected();
    run(&registry, "mail", pending());
    let abort_requested = || to_value(registry.tasks()).unwrap()[0].get("abort_requested").cloned();
    assert_eq!(abort_requested(), None);
    let report = registry.abort();
    assert_eq!(abort_requested(), Some(true.into()));
    assert_eq!(to_value(report).unwrap(), json!({ "aborted": 1, "not_abortable": 0 }));
}

/// An observer that records failures and rejections as JSON.
#[derive(Default)]
struct JsonRecorder(Mutex<Vec<Value>>);

impl Observer for JsonRecorder {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        self.0.lock().unwrap().push(match loss {
            Loss::Rejected(reason) => json!([task, reason]),
            _ => to_value(task).unwrap(),
        });
    }
}

#[test]
fn unknown_fields_of_a_task_are_omitted() {
    let (manual, recorder) = (Manual::default(), Arc::new(JsonRecorder::default()));
    let registry = Registry::builder(manual.clone()).observer(recorder.clone()).build();
    let failed = run_failing(&registry);
    manual.poll_all();
    registry.start_shutdown();
    let rejected = run(&registry, "mail", pending());
    let expected = [json!({ "name": null, "location": failed }), json!([{ "name": "mail", "location": rejected }, "drained"])];
    assert_eq!(*recorder.0.lock().unwrap(), expected);
}

#[test]
fn stragglers_serialize_their_number_summary_and_tasks() {
    let (manual, registry) = inspected();
    registry.run(async {});
    manual.poll_all();
    let site = run(&registry, "mail", pending());
    let mut serialized = to_value(registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err()).unwrap();
    take_id_and_age(&mut serialized["tasks"][0]);
    let summary = json!({ "completed": 1, "failed": 0, "panicked": 0, "abandoned": 0, "aborted": 0, "rejected": 0 });
    let tasks = json!([{ "name": "mail", "location": site, "kind": "future", "is_abortable": true }]);
    assert_eq!(serialized, json!({ "len": 1, "summary": summary, "tasks": tasks }));
}

#[test]
fn stragglers_serialize_no_tasks_without_inspection() {
    let registry = Registry::new(());
    let _guard = registry.guard().unwrap();
    let serialized = to_value(registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err()).unwrap();
    assert_eq!(serialized, json!({ "len": 1, "summary": Summary::default(), "tasks": [] }));
}

#[test]
fn summary_serializes_every_outcome() {
    let mut summary = Summary::default();
    (summary.completed, summary.failed, summary.panicked) = (1, 2, 3);
    (summary.abandoned, summary.aborted, summary.rejected) = (4, 5, u64::MAX);
    let serialized = serde_json::to_string(&summary).unwrap();
    let expected = r#"{"completed":1,"failed":2,"panicked":3,"abandoned":4,"aborted":5,"rejected":18446744073709551615}"#;
    assert_eq!(serialized, expected);
}

#[test]
fn reasons_and_kinds_serialize_in_snake_case() {
    let reasons = [RejectReason::Drained, RejectReason::Full, RejectReason::ShuttingDown];
    assert_eq!(to_value(reasons).unwrap(), json!(["drained", "full", "shutting_down"]));
    let kinds = [TaskKind::Future, TaskKind::Local, TaskKind::Blocking, TaskKind::Tracked, TaskKind::Guard];
    assert_eq!(to_value(kinds).unwrap(), json!(["future", "local", "blocking", "tracked", "guard"]));
    assert_eq!(to_value([TaskKind::Service, TaskKind::Child]).unwrap(), json!(["service", "child"]));
}
