//! Tests the registry in JavaScript environments: in Node, or in a browser if `WASM_BINDGEN_USE_BROWSER=1` is set.
#![cfg(all(target_family = "wasm", target_os = "unknown"))]

use background_tasks::{AbortError, Observer, Registry, RegistryState, RejectReason, Restart, Summary, TaskInfo, Timer};
use background_tasks::{WasmSpawner, conformance};
use js_sys::{Function, Promise};
use std::cell::Cell;
use std::future::{pending, poll_fn, ready};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use wasm_bindgen::JsValue;
use wasm_bindgen::closure::Closure;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::JsFuture;
use wasm_bindgen_test::wasm_bindgen_test;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &Function, milliseconds: i32);

    /// Returns the current time of the JavaScript environment, in milliseconds.
    #[wasm_bindgen(js_namespace = performance)]
    fn now() -> f64;
}

/// Resolves after the given time, in a later turn of the event loop.
async fn timer(milliseconds: i32) {
    let elapsed = Promise::new(&mut |resolve, _| set_timeout(&resolve, milliseconds));
    JsFuture::from(elapsed).await.unwrap();
}

/// Resolves in the same turn of the event loop, in a later microtask.
async fn microtask() {
    JsFuture::from(Promise::resolve(&JsValue::UNDEFINED)).await.unwrap();
}

/// Lets all other ready tasks run once.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn inspected() -> Registry<WasmSpawner> {
    Registry::builder(WasmSpawner).inspect().build()
}

/// Returns the counts of a summary, in the order of its fields.
fn counts(summary: Summary) -> [u64; 6] {
    let Summary { completed, failed, panicked, abandoned, aborted, rejected, .. } = summary;
    [completed, failed, panicked, abandoned, aborted, rejected]
}

#[wasm_bindgen_test]
async fn spawner_passes_the_conformance_suite() {
    conformance::local_tasks(WasmSpawner).await;
}

#[wasm_bindgen_test]
async fn timer_resolves_when_the_duration_has_elapsed_and_not_earlier() {
    for milliseconds in [1_u32, 2, 20, 1, 0] {
        let start = now();
        WasmSpawner.sleep(Duration::from_millis(milliseconds.into())).await;
        assert!(now() - start >= f64::from(milliseconds), "{} of {milliseconds} ms", now() - start);
    }
    // The time starts at the call of `sleep`, not at the first poll.
    let mut sleep = Box::pin(WasmSpawner.sleep(Duration::from_millis(100)));
    WasmSpawner.sleep(Duration::from_millis(150)).await;
    assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
}

#[wasm_bindgen_test]
async fn long_sleep_does_not_resolve_early() {
    // `setTimeout` treats a delay of more than 31 bits as zero.
    for duration in [Duration::MAX, Duration::from_millis(1 << 31), Duration::from_secs(1 << 40)] {
        let mut sleep = Box::pin(WasmSpawner.sleep(duration));
        timer(5).await;
        assert!(sleep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "{duration:?}");
    }
}

#[wasm_bindgen_test]
async fn sleep_wakes_its_last_task_once_and_a_dropped_sleep_wakes_none() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let counts = [(); 3].map(|()| Arc::new(Count(AtomicUsize::new(0))));
    let [first, last, dropped] = counts.each_ref().map(|count| Waker::from(count.clone()));
    let mut sleep = Box::pin(WasmSpawner.sleep(Duration::from_millis(1)));
    let mut cancelled = Box::pin(WasmSpawner.sleep(Duration::from_millis(1)));
    assert!(cancelled.as_mut().poll(&mut Context::from_waker(&dropped)).is_pending());
    for waker in [&first, &last] {
        assert!(sleep.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
    }
    drop(cancelled);
    timer(20).await;
    assert!(sleep.as_mut().poll(&mut Context::from_waker(&first)).is_ready());
    assert_eq!(counts.map(|count| count.0.load(Ordering::Relaxed)), [0, 1, 0]);
}

#[wasm_bindgen_test]
async fn shutdown_waits_at_most_for_the_grace_period() {
    let registry = inspected();
    registry.run_local(pending::<()>());
    let stragglers = registry.shutdown_within(Duration::from_millis(5)).await.unwrap_err();
    assert_eq!(stragglers.len(), 1);
    let summary = registry.shutdown_or_abort(Duration::from_millis(5), Duration::from_secs(60)).await.unwrap();
    assert_eq!(counts(summary), [0, 0, 0, 0, 1, 0]);
}

#[wasm_bindgen_test]
async fn services_run_again_until_the_shutdown() {
    let registry = Registry::new(WasmSpawner);
    let (ticks, runs) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let millisecond = Duration::from_millis(1);
    let (ticked, ran) = (ticks.clone(), runs.clone());
    registry.task().every_local(millisecond, move || {
        ticked.set(ticked.get() + 1);
        async {}
    });
    registry.named("failing").service_local(
        Restart::on_failure().backoff(millisecond, millisecond).at_most(2, Duration::MAX),
        move || {
            ran.set(ran.get() + 1);
            ready(Err::<(), _>("intended"))
        },
    );
    while ticks.get() < 3 || runs.get() < 3 || registry.services().len() > 1 {
        timer(1).await;
    }
    let summary = registry.shutdown_within(Duration::from_secs(60)).await.unwrap();
    assert_eq!((runs.get(), summary.failed, summary.rejected), (3, 3, 0));
}

#[wasm_bindgen_test]
async fn tasks_run_after_the_caller_has_returned() {
    let registry = Registry::new(WasmSpawner);
    let ran = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let ran = ran.clone();
        registry.run_local(async move {
            timer(0).await;
            ran.set(ran.get() + 1);
        });
    }
    // A task that is `Send` runs on the same event loop as the local tasks.
    registry.run(async { yield_now().await });
    registry.run(async { Err::<(), _>("intended") });
    assert_eq!((ran.get(), registry.in_flight()), (0, 5), "nothing has run yet");
    let summary = registry.shutdown().await;
    assert_eq!((ran.get(), counts(summary)), (3, [4, 1, 0, 0, 0, 0]));
    assert!(registry.is_drained());
}

#[wasm_bindgen_test]
async fn signal_reaches_each_task() {
    let registry = Registry::new(WasmSpawner);
    let signalled = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let (signalled, signal) = (signalled.clone(), registry.signal());
        registry.run_local(async move {
            assert_eq!(signal.run_until_shutdown(pending::<()>()).await, None);
            signalled.set(signalled.get() + 1);
        });
    }
    timer(0).await;
    assert_eq!(signalled.get(), 0);
    assert_eq!(counts(registry.shutdown().await), [3, 0, 0, 0, 0, 0]);
    assert_eq!(signalled.get(), 3);
}

#[wasm_bindgen_test]
async fn drain_needs_only_microtasks() {
    static TURN_IS_OVER: AtomicBool = AtomicBool::new(false);
    let registry = Registry::new(WasmSpawner);
    let signal = registry.signal();
    registry.run_local(async move {
        signal.await;
        for _ in 0..10 {
            microtask().await;
        }
    });
    timer(0).await;
    set_timeout(&Closure::once_into_js(|| TURN_IS_OVER.store(true, Ordering::Relaxed)).into(), 0);
    registry.shutdown().await;
    assert!(!TURN_IS_OVER.load(Ordering::Relaxed), "drained in a later turn of the event loop");
}

#[wasm_bindgen_test]
async fn late_task_is_rejected_and_returned() {
    let registry = Registry::new(WasmSpawner);
    let own = registry.clone();
    let signal = registry.signal();
    registry.run_local(async move {
        signal.await;
        own.run_local(timer(0));
    });
    assert_eq!(registry.shutdown().await.completed, 2, "a task in flight may start another");
    let rejected = registry.task().try_run_local(async { unreachable!("the registry has drained") }).unwrap_err();
    assert_eq!(rejected.reason(), RejectReason::Drained);
    drop(rejected.into_inner());
    registry.run(async { unreachable!("the registry has drained") });
    assert_eq!(counts(registry.summary()), [2, 0, 0, 0, 0, 2]);
}

#[wasm_bindgen_test]
async fn inspected_tasks_are_listed_with_their_ages_and_aborted() {
    let registry = inspected();
    registry.named("first").run_local(pending::<()>());
    timer(20).await;
    registry.named("second").run_local(pending::<()>());
    let _guard = registry.named("guard").guard().unwrap();
    timer(0).await;
    let tasks = registry.tasks();
    let names: Vec<_> = tasks.iter().filter_map(TaskInfo::name).collect();
    assert_eq!(names[0], "first", "the oldest task is first");
    assert_eq!(names.len(), 3);
    // The timer and the clock round differently, so the age may be a bit below 20 ms.
    assert!(tasks[0].age().unwrap() >= Duration::from_millis(15), "{:?}", tasks[0].age());
    let id = |name| tasks.iter().find(|task| task.name() == Some(name)).unwrap().id().unwrap();
    assert_eq!(registry.abort_task(id("first")), Ok(()));
    assert_eq!(registry.abort_task(id("guard")), Err(AbortError::NotAbortable));
    timer(0).await;
    assert_eq!(registry.abort_task(id("first")), Err(AbortError::NotInFlight));
    let stragglers = registry.shutdown().or_abort(ready(()), || timer(0)).await.unwrap_err();
    assert_eq!((stragglers.len(), stragglers.summary().aborted), (1, 2), "{stragglers}");
    assert_eq!(stragglers.tasks()[0].name(), Some("guard"));
}

#[wasm_bindgen_test]
async fn wait_idle_waits_for_all_tasks() {
    let registry = Registry::new(WasmSpawner);
    registry.wait_idle().await;
    let own = registry.clone();
    registry.run_local(async move {
        timer(0).await;
        own.run_local(timer(0));
    });
    registry.wait_idle().await;
    assert_eq!(registry.summary().completed, 2, "including tasks that tasks have started");
    assert!(!registry.is_shutting_down());
}

#[wasm_bindgen_test]
async fn full_registry_makes_tasks_wait_for_a_permit() {
    let registry = Registry::builder(WasmSpawner).max_in_flight(2).build();
    let most = Rc::new(Cell::new(0));
    for _ in 0..10 {
        registry.run_when_ready(yield_now()).await.unwrap();
        most.set(most.get().max(registry.in_flight()));
    }
    registry.run(pending::<()>());
    registry.run(pending::<()>());
    assert_eq!(registry.try_run(async {}).unwrap_err().reason(), RejectReason::Full);
    assert_eq!(most.get(), 2);
}

#[wasm_bindgen_test]
async fn ten_thousand_tasks() {
    const TASKS: u64 = 10_000;
    let registry = inspected();
    for n in 0..TASKS {
        let signal = registry.signal();
        match n % 4 {
            0 => registry.run_local(timer(0)),
            1 => registry.run(yield_now()),
            2 => registry.run(async { Err::<(), _>("intended") }),
            _ => registry.run(signal),
        }
    }
    assert_eq!(registry.tasks().len(), 10_000);
    assert_eq!(counts(registry.shutdown().await), [TASKS / 4 * 3, TASKS / 4, 0, 0, 0, 0]);
    assert_eq!(registry.tasks(), []);
}

#[wasm_bindgen_test]
async fn registry_in_a_static() {
    static STATE: RegistryState = RegistryState::new();
    static TASKS: Registry<WasmSpawner> = Registry::in_static(&STATE, WasmSpawner);
    TASKS.run(async {});
    TASKS.run_local(timer(0));
    assert_eq!(TASKS.shutdown().await.completed, 2);
}

#[wasm_bindgen_test]
async fn observer_is_notified_with_the_elapsed_time() {
    struct TookLong(&'static AtomicBool);
    impl Observer for TookLong {
        fn drained(&self, _: &Summary, took: Duration) {
            self.0.store(took >= Duration::from_millis(15), Ordering::Relaxed);
        }
    }
    static TOOK_LONG: AtomicBool = AtomicBool::new(false);
    let registry = Registry::builder(WasmSpawner).observer(TookLong(&TOOK_LONG)).build();
    registry.run_local(timer(20));
    registry.shutdown().await;
    assert!(TOOK_LONG.load(Ordering::Relaxed));
}

#[wasm_bindgen_test]
async fn rejected_promise_is_a_failure() {
    let registry = Registry::new(WasmSpawner);
    let rejected = JsFuture::from(Promise::reject(&"intended".into()));
    registry.run_local(async { rejected.await.map(drop).map_err(|error| format!("{error:?}")) });
    assert_eq!(registry.shutdown().await.failed, 1);
}

/// Resolves at the next uncaught error of JavaScript. Without this listener, an uncaught error would end the process of Node.
#[cfg(panic = "abort")]
async fn uncaught() {
    let listen =
        "globalThis.process ? process.once('uncaughtException', resolve) : addEventListener('error', resolve, { once: true })";
    let listen = Function::new_with_args("resolve", listen);
    let caught = Promise::new(&mut |resolve, _| drop(listen.call1(&JsValue::UNDEFINED, &resolve).unwrap()));
    JsFuture::from(caught).await.unwrap();
}

/// With `panic = "abort"`, a panic stops the code without running destructors. Only JavaScript gets an error.
#[cfg(panic = "abort")]
#[wasm_bindgen_test]
async fn panicking_task_stays_in_flight_and_others_continue() {
    let registry = inspected();
    registry.named("bug").run_local(async { panic!("intended") });
    registry.run_local(async {});
    registry.run_local(timer(0));
    uncaught().await;
    let stragglers = registry.shutdown().until(timer(20)).await.unwrap_err();
    assert_eq!((stragglers.len(), counts(stragglers.summary())), (1, [2, 0, 0, 0, 0, 0]));
    assert_eq!(stragglers.tasks()[0].name(), Some("bug"));
}

/// With `-C panic=unwind`, which needs a nightly toolchain, the registry counts a panic as it does on other targets.
#[cfg(panic = "unwind")]
#[wasm_bindgen_test]
async fn panicking_task_is_counted() {
    let registry = Registry::new(WasmSpawner);
    registry.run_local(async { panic!("intended") });
    registry.run_local(async {});
    assert_eq!(counts(registry.shutdown().await), [1, 0, 1, 0, 0, 0]);
}
