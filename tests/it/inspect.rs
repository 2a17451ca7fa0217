//! Checks invariant S9: an inspected registry lists the tasks in flight, and names the unfinished tasks when the time limit of a drain
//! expires.
use crate::common::{HANG, Manual, inspected};
use background_tasks::{Registry, Spawner, TaskId, TaskInfo, TaskKind};
use std::collections::HashSet;
use std::future::pending;
use std::panic::Location;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

#[test]
fn task_list_shows_name_call_site_kind_and_age() {
    let (_spawner, registry) = inspected();
    let line = line!() + 1;
    registry.named("sweeper").run(pending::<()>());
    let guard = registry.guard().unwrap();
    let tasks = registry.tasks();
    assert_eq!(tasks.len(), 2);
    let find = |kind| *tasks.iter().find(|task| task.kind() == Some(kind)).unwrap();
    let (sweeper, held) = (find(TaskKind::Future), find(TaskKind::Guard));
    assert_eq!(sweeper.name(), Some("sweeper"));
    assert_eq!((sweeper.location().file(), sweeper.location().line()), (file!(), line));
    assert_eq!((held.name(), held.location().line()), (None, line + 1));
    assert!(sweeper.age().unwrap() >= held.age().unwrap());
    assert!(!sweeper.abort_requested());
    assert_eq!(sweeper.to_string(), format!("sweeper at {}", sweeper.location()));
    assert_eq!(held.to_string(), format!("guard at {}", held.location()));
    drop(guard);
    assert_eq!(registry.tasks().len(), 1);
}

#[test]
fn registry_says_whether_it_is_inspected() {
    for registry in [Registry::builder(()).inspect().build(), Registry::new(())] {
        let _guard = registry.guard().unwrap();
        let is_inspected = !registry.tasks().is_empty();
        assert_eq!((registry.is_inspected(), registry.child().is_inspected()), (is_inspected, is_inspected));
    }
}

#[test]
fn location_replaces_the_call_site_of_a_library() {
    #[track_caller]
    fn library(registry: &Registry<Manual>) {
        let caller = Location::caller();
        let start_task = || registry.named("library task").location(caller).run(pending::<()>());
        start_task();
    }
    let (_spawner, registry) = inspected();
    let line = line!() + 1;
    library(&registry);
    let [task] = registry.tasks()[..] else { panic!("exactly one task must be in flight") };
    assert_eq!((task.location().file(), task.location().line()), (file!(), line));
}

#[test]
#[cfg(feature = "tokio")]
fn task_list_shows_each_kind() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let registry = Registry::builder(background_tasks::TokioSpawner).inspect().build();
    let (resume, resumed) = std::sync::mpsc::channel::<()>();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        registry.run_local(pending::<()>());
        registry.run_blocking(move || resumed.recv_timeout(HANG).unwrap());
        let _tracked = registry.track(pending::<()>()).unwrap();
        let kinds: HashSet<_> = registry.tasks().iter().map(|task| task.kind().unwrap()).collect();
        assert_eq!(kinds, HashSet::from([TaskKind::Local, TaskKind::Blocking, TaskKind::Tracked]));
    });
    resume.send(()).unwrap();
}

#[test]
fn registry_without_inspection_lists_nothing() {
    let spawner = Manual::default();
    let registry = Registry::new(spawner.clone());
    registry.named("n").critical().run(pending::<()>());
    assert_eq!((registry.tasks(), registry.in_flight()), (Vec::new(), 1));
    let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
    assert_eq!((stragglers.len(), stragglers.tasks()), (1, &[][..]));
}

#[test]
fn task_ids_are_unique_and_parse_from_their_text() {
    const ROUNDS: usize = if cfg!(miri) { 2 } else { 10 };
    let (spawner, registry) = inspected();
    let mut ids = HashSet::new();
    for _ in 0..ROUNDS {
        (0..10).for_each(|_| registry.run(pending::<()>()));
        for task in registry.tasks() {
            let id = task.id().unwrap();
            assert_eq!(id.to_string().parse(), Ok(id));
            ids.insert(id);
        }
        spawner.0.lock().unwrap().clear();
        assert_eq!(registry.tasks().len(), 0);
    }
    assert_eq!(ids.len(), 10 * ROUNDS);
    for text in ["", "-", "1", "1-", "-1", "1-2-3", "a-b", "1--2", "99999999999-1"] {
        assert!(text.parse::<TaskId>().is_err(), "{text}");
    }
}

#[test]
fn task_ids_are_unique_across_threads() {
    let registry = Registry::builder(()).inspect().build();
    // Each new thread uses another shard of the registry, until all shards are in use.
    let start_on_new_thread = |_| {
        let registry = registry.clone();
        thread::spawn(move || registry.guard().unwrap()).join().unwrap()
    };
    let guards: Vec<_> = (0..8).map(start_on_new_thread).collect();
    let ids: HashSet<_> = registry.tasks().iter().map(|task| task.id().unwrap()).collect();
    assert_eq!(ids.len(), guards.len());
}

#[test]
fn reused_slots_are_not_shared_and_show_their_own_tasks() {
    let registry = Registry::builder(()).inspect().build();
    let mut started = Vec::new();
    for name in ["one", "two", "three"].into_iter().cycle().take(if cfg!(miri) { 3 } else { 30 }) {
        // Ends every second task, so that the next tasks reuse the free slots between the used slots.
        let mut ends = false;
        started.retain(|_| {
            ends = !ends;
            !ends
        });
        started.extend((0..20).map(|_| (name, registry.named(name).guard().unwrap())));
        let tasks = registry.tasks();
        let ids: HashSet<_> = tasks.iter().map(|task| task.id().unwrap()).collect();
        assert_eq!(ids.len(), started.len());
        let mut listed: Vec<_> = tasks.iter().map(|task| task.name().unwrap()).collect();
        let mut expected: Vec<_> = started.iter().map(|(name, _)| *name).collect();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected);
    }
}

#[test]
fn thousand_tasks_are_listed_oldest_first() {
    const NAMES: [&str; 3] = ["one", "two", "three"];
    const EACH: usize = if cfg!(miri) { 10 } else { 333 };
    let (_spawner, registry) = inspected();
    let start_task = |name| registry.named(name).run(pending::<()>());
    NAMES.iter().cycle().take(3 * EACH).copied().for_each(start_task);
    let tasks = registry.tasks();
    assert_eq!(tasks.len(), 3 * EACH);
    assert!(tasks.is_sorted_by(|earlier, later| earlier.age() >= later.age()));
    for name in NAMES {
        assert_eq!(tasks.iter().filter(|task| task.name() == Some(name)).count(), EACH);
    }
}

#[test]
fn stragglers_are_grouped_by_name_and_call_site() {
    let (spawner, registry) = inspected();
    let (mail, held) = (line!() + 1, line!() + 2);
    let send = || registry.named("mail").run(pending::<()>());
    let _guard = registry.guard().unwrap();
    (0..3).for_each(|_| send());
    registry.run(async {});
    spawner.poll_all();
    let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
    assert_eq!((stragglers.len(), stragglers.tasks().len()), (4, 4));
    let text = mask_ages(&stragglers.to_string());
    let (heading, groups) = text.split_once(": ").unwrap();
    let summary = "1 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected";
    assert_eq!(heading, format!("4 background tasks still in flight ({summary})"));
    let file = file!();
    let mut groups: Vec<_> = groups.split("; ").collect();
    groups.sort_unstable(); // With the coarse clock, all tasks may have the same start time.
    let expected = [format!("1 × guard at {file}:{held}:27, for AGE"), format!("3 × mail at {file}:{mail}:42, the oldest for AGE")];
    assert_eq!(groups, expected);
    assert_eq!(format!("{stragglers:#}").lines().count(), 3);
}

/// Replaces each age in the string with `AGE`.
fn mask_ages(text: &str) -> String {
    let is_age = |word: &str| word.trim_end_matches([';', ',']).ends_with('s') && word.starts_with(|c: char| c.is_ascii_digit());
    let mask = |word: &str| if is_age(word) { word.replace(word.trim_end_matches([';', ',']), "AGE") } else { word.to_owned() };
    text.split(' ').map(mask).collect::<Vec<_>>().join(" ")
}

#[test]
fn task_list_is_consistent_while_tasks_start_and_end() {
    let registry = Registry::builder(()).inspect().build();
    let _first = registry.named("first").guard().unwrap();
    let held = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for n in 0..if cfg!(miri) { 20 } else { 5_000 } {
                    let guard = registry.named("short-lived").guard().unwrap();
                    if n % 16 == 0 {
                        held.lock().unwrap().push(guard);
                    }
                }
            });
        }
        for _ in 0..if cfg!(miri) { 3 } else { 300 } {
            let tasks = registry.tasks();
            let ids: HashSet<_> = tasks.iter().map(|task| task.id().unwrap()).collect();
            assert_eq!(ids.len(), tasks.len(), "no task may be listed twice");
            assert_eq!(tasks.iter().filter(|task| task.name() == Some("first")).count(), 1);
            held.lock().unwrap().clear();
        }
    });
    drop(held);
    assert_eq!(registry.tasks().len(), 1);
}

fn task_is_listed_until_it_ends<S: Spawner>(registry: &Registry<S>) {
    let (resume, resumed) = tokio::sync::oneshot::channel::<()>();
    registry.named("waits").run(async move { resumed.await.unwrap() });
    let tasks = registry.tasks();
    assert_eq!((tasks.len(), tasks[0].name()), (1, Some("waits")));
    resume.send(()).unwrap();
    registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!(registry.tasks(), []);
}

on_every_runtime!(with |spawner| Registry::builder(spawner).inspect().build(); task_is_listed_until_it_ends);

#[test]
fn groups_count_similar_stragglers_and_have_the_oldest_first() {
    let (_spawner, registry) = inspected();
    let send = || registry.named("mail").run(pending::<()>());
    (0..3).for_each(|_| send());
    let line = line!() + 1;
    registry.named("mail").run(pending::<()>());
    let _guard = registry.guard().unwrap();
    registry.abort();
    send();

    let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
    let groups: Vec<_> = stragglers.groups().collect();
    assert_eq!(groups.iter().map(|(_, len)| len).sum::<usize>(), stragglers.tasks().len());
    assert!(groups.is_sorted_by(|(one, _), (two, _)| one.age() >= two.age()));
    let find = |is_in: &dyn Fn(&TaskInfo) -> bool| {
        let found: Vec<_> = groups.iter().filter(|(oldest, _)| is_in(oldest)).collect();
        let [(oldest, len)] = found[..] else { panic!("one group: {found:?}") };
        let members = stragglers.tasks().iter().filter(|task| is_in(task));
        assert!(members.clone().all(|task| oldest.age() >= task.age()));
        assert_eq!(members.count(), *len);
        *len
    };
    let is_mail = |task: &TaskInfo, own_line: bool| task.name() == Some("mail") && (task.location().line() == line) == own_line;
    assert_eq!(find(&|task| is_mail(task, false) && task.abort_requested()), 3);
    assert_eq!(find(&|task| is_mail(task, true)), 1, "another call site");
    assert_eq!(find(&|task| task.kind() == Some(TaskKind::Guard)), 1, "another kind");
    assert_eq!(find(&|task| is_mail(task, false) && !task.abort_requested()), 1, "started after the abort");
}

#[test]
fn registry_without_inspection_has_no_groups() {
    let registry = Registry::new(());
    let _guard = registry.guard().unwrap();
    let stragglers = registry.shutdown().wait_timeout(Duration::ZERO).unwrap_err();
    assert_eq!((stragglers.len(), stragglers.groups().count()), (1, 0));
}
