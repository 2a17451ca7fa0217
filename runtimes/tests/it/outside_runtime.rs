//! Outside its runtime, a spawner panics in the caller with advice, and the task counts as abandoned.

use crate::common::TIMEOUT;
use background_tasks::{BlockingSpawner, LocalSpawner, Registry, Spawner};
use background_tasks_runtimes::{ArbiterSpawner, CompioSpawner, GlommioSpawner, MonoioSpawner};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::rc::Rc;
use std::sync::Once;

thread_local!(static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) });

/// Returns the message of a panic with its location.
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

fn each_method_panics_with_advice<S: Spawner + LocalSpawner + BlockingSpawner>(spawner: S, advice: &[&str]) {
    let registry = Registry::new(spawner);
    let owned = Rc::new(());
    let calls: [(_, &dyn Fn()); 3] = [
        ("run", &|| registry.run(async {})),
        ("run_local", &|| {
            let owned = owned.clone();
            registry.run_local(async move { drop(owned) });
        }),
        ("run_blocking", &|| registry.run_blocking(|| ())),
    ];
    for (name, call) in calls {
        let message = panics(call);
        // The location of the panic is the caller.
        for part in advice.iter().chain(&[file!()]) {
            assert!(message.contains(part), "{name}: {message}");
        }
    }
    assert_eq!(Rc::strong_count(&owned), 1, "dropped, not kept");
    assert_eq!(registry.shutdown().wait_timeout(TIMEOUT).unwrap().abandoned, 3);
}

#[test]
fn compio() {
    each_method_panics_with_advice(CompioSpawner, &["CompioSpawner", "`block_on`", "`runtime.enter`"]);
}

#[test]
fn monoio() {
    each_method_panics_with_advice(MonoioSpawner, &["MonoioSpawner", "`block_on`", "`attach_thread_pool`"]);
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
    assert_eq!(registry.shutdown().wait_timeout(TIMEOUT).unwrap().abandoned, 1);
    drop(system);
}
