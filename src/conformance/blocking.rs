//! Checks a `BlockingSpawner`. The checks call the spawner on threads of the test suite, and not on the spawner's threads.

use super::send::{Check, on_four_threads};
use super::{CheckResult, expect_outcomes, panic_intentionally};
use crate::{BlockingSpawner, Registry};
use futures_lite::future::block_on;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;

pub(super) fn checks<S: BlockingSpawner + Send + Sync + 'static>() -> [Check<Registry<Arc<S>>>; 5] {
    [
        ("`spawn_blocking` returns before the closure has finished, and calls it on another thread", returns_before_closure),
        ("each closure is called", calls_each_closure),
        ("`spawn_blocking` can be called from any thread", spawns_from_threads),
        ("a panicking closure affects no other closure", survives_panics),
        ("four closures can block simultaneously", blocks_four_threads),
    ]
}

fn returns_before_closure<S: BlockingSpawner>(registry: &Registry<S>) -> CheckResult {
    let caller = thread::current().id();
    let (finish, may_finish) = channel();
    let (sender, called_elsewhere) = channel();
    registry.run_blocking(move || {
        let elsewhere = thread::current().id() != caller;
        if elsewhere {
            may_finish.recv().unwrap_or(());
        }
        sender.send(elsewhere).unwrap_or(());
    });
    finish.send(()).unwrap_or(());
    expect_outcomes(registry.shutdown().wait(), 1, 0)?;
    if called_elsewhere.recv() == Ok(true) { Ok(()) } else { Err("the closure was called on the caller's thread".into()) }
}

fn calls_each_closure<S: BlockingSpawner>(registry: &Registry<S>) -> CheckResult {
    let called = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let called = called.clone();
        registry.run_blocking(move || {
            called.fetch_add(1, Ordering::SeqCst);
        });
    }
    expect_outcomes(registry.shutdown().wait(), 100, 0)?;
    let called = called.load(Ordering::SeqCst);
    if called == 100 { Ok(()) } else { Err(format!("{called} of 100 closures were called")) }
}

fn spawns_from_threads<S: BlockingSpawner + Send + Sync + 'static>(registry: &Registry<Arc<S>>) -> CheckResult {
    on_four_threads(registry, |registry| (0..10).for_each(|_| registry.run_blocking(|| ())))?;
    expect_outcomes(registry.shutdown().wait(), 40, 0)
}

fn survives_panics<S: BlockingSpawner>(registry: &Registry<S>) -> CheckResult {
    for _ in 0..20 {
        registry.run_blocking(panic_intentionally);
        registry.run_blocking(|| ());
    }
    block_on(registry.wait_idle());
    registry.run_blocking(|| ());
    expect_outcomes(registry.shutdown().wait(), 21, 20)
}

fn blocks_four_threads<S: BlockingSpawner>(registry: &Registry<S>) -> CheckResult {
    let barrier = Arc::new(Barrier::new(4));
    for _ in 0..4 {
        let barrier = barrier.clone();
        registry.run_blocking(move || {
            barrier.wait();
        });
    }
    expect_outcomes(registry.shutdown().wait(), 4, 0)
}
