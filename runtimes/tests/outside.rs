//! A spawner outside its runtime says what to do about it, in the caller, and nothing is lost.
#![cfg(all(target_os = "linux", feature = "actix-rt", feature = "compio", feature = "monoio", feature = "glommio"))]

mod common;

use background_tasks::{BlockingSpawner, LocalSpawner, Registry, Spawner};
use background_tasks_runtimes::{ArbiterSpawner, CompioSpawner, GlommioSpawner, MonoioSpawner};
use common::HANG;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::rc::Rc;
use std::sync::Once;

thread_local!(static SAID: RefCell<String> = const { RefCell::new(String::new()) });

/// Returns what the last panic of a call says: where it is, and why.
fn panics(call: impl FnOnce()) -> String {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            SAID.set(info.to_string());
            usual(info);
        }));
    });
    catch_unwind(AssertUnwindSafe(call)).expect_err("it is outside its runtime");
    SAID.take()
}

fn each_method_says_so_and_loses_nothing<S: Spawner + LocalSpawner + BlockingSpawner>(spawner: S, advice: &[&str]) {
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
        let said = panics(call);
        // The file, as its caller is to blame.
        for part in advice.iter().chain(&[file!()]) {
            assert!(said.contains(part), "{name}: {said}");
        }
    }
    assert_eq!(Rc::strong_count(&owned), 1, "dropped, not kept");
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().abandoned, 3);
}

#[test]
fn compio() {
    each_method_says_so_and_loses_nothing(CompioSpawner, &["CompioSpawner", "`block_on`", "`runtime.enter`"]);
}

#[test]
fn monoio() {
    each_method_says_so_and_loses_nothing(MonoioSpawner, &["MonoioSpawner", "`block_on`", "`attach_thread_pool`"]);
}

#[test]
fn glommio() {
    each_method_says_so_and_loses_nothing(GlommioSpawner, &["GlommioSpawner", "`LocalExecutor::run`"]);
}

#[test]
fn an_arbiter_that_has_stopped() {
    let system = actix_rt::System::new();
    let arbiter = actix_rt::Arbiter::new();
    let registry = Registry::new(ArbiterSpawner(arbiter.handle()));
    arbiter.stop();
    arbiter.join().unwrap();
    let said = panics(|| registry.run(async {}));
    assert!(["ArbiterSpawner", "another arbiter", file!()].iter().all(|part| said.contains(part)), "{said}");
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().abandoned, 1);
    drop(system);
}
