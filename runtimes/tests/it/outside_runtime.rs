//! Tests spawners outside their runtimes. The call must panic with advice, and the task must count as abandoned.

use crate::common::TIMEOUT;
use background_tasks::{BlockingSpawner, LocalSpawner, Registry, Spawner, Timer};
use background_tasks_runtimes::{ArbiterSpawner, CompioSpawner, GlommioSpawner, MonoioSpawner};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

thread_local!(static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) });

/// Returns the message of a panic, followed by the location of the panic.
fn panics(call: impl FnOnce()) -> String {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            MESSAGE.set(info.to_string());
            usual(info);
        }));
    });
    catch_unwind(AssertUnwindSafe(call)).expect_err("the call is outside the runtime");
    MESSAGE.take()
}

fn each_method_panics_with_advice<S: Spawner + LocalSpawner + BlockingSpawner + Timer>(spawner: S, advice: &[&str]) {
    let registry = Registry::new(spawner);
    let owned = Rc::new(());
    let calls: [(_, &dyn Fn()); 5] = [
        ("run", &|| registry.run(async {})),
        ("run_local", &|| {
            let owned = owned.clone();
            registry.run_local(async move { drop(owned) });
        }),
        ("run_blocking", &|| registry.run_blocking(|| ())),
        ("sleep", &|| drop(registry.spawner().sleep(Duration::ZERO))),
        ("shutdown_within", &|| drop(registry.shutdown_within(Duration::from_millis(1)))),
    ];
    for (name, call) in calls {
        let message = panics(call);
        // The location of the panic must be the caller.
        for part in advice.iter().chain(&[file!()]) {
            assert!(message.contains(part), "{name}: {message}");
        }
    }
    assert_eq!(Rc::strong_count(&owned), 1, "dropped, not kept");
    assert!(!registry.is_shutting_down(), "`shutdown_within` does not start a shutdown that it cannot limit");
    assert_eq!(registry.shutdown().wait_timeout(TIMEOUT).unwrap().abandoned, 3);
}

#[test]
fn compio() {
    each_method_panics_with_advice(CompioSpawner, &["CompioSpawner", "`block_on`", "`runtime.enter`"]);
}

#[test]
fn monoio() {
    each_method_panics_with_advice(MonoioSpawner, &["MonoioSpawner", "`block_on`", "`attach_thread_pool`", "`enable_timer`"]);
}

#[test]
fn glommio() {
    each_method_panics_with_advice(GlommioSpawner, &["GlommioSpawner", "`LocalExecutor::run`"]);
}

#[test]
fn stopped_arbiter() {
    let system = actix_rt::System::new();
    let arbiter = actix_rt::Arbiter::new();
    let registry = Registry::new(ArbiterSpawner(arbiter.handle()));
    arbiter.stop();
    arbiter.join().unwrap();
    let message = panics(|| registry.run(async {}));
    assert!(["ArbiterSpawner", "another arbiter", file!()].iter().all(|part| message.contains(part)), "{message}");
    let message = panics(|| drop(registry.spawner().sleep(Duration::ZERO)));
    assert!(["ArbiterSpawner", "`SystemRunner::block_on`", file!()].iter().all(|part| message.contains(part)), "{message}");
    assert_eq!(registry.shutdown().wait_timeout(TIMEOUT).unwrap().abandoned, 1);
    drop(system);
}
