//! Checks a `Timer`. Each check is a future. The user's closure runs this future on a thread on which the timer can be used, for
//! example inside the timer's runtime.

use super::CheckResult;
use crate::Timer;
use futures_lite::future::{or, poll_once};
use std::boxed::Box;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use std::vec::Vec;

type Check<T> = fn(Rc<T>) -> Pin<Box<dyn Future<Output = CheckResult>>>;

const SHORT: Duration = Duration::from_millis(20);
/// A duration that is longer than the time limit of a check.
const LONG: Duration = Duration::from_secs(3600);

pub(super) fn checks<T: Timer + 'static>() -> [(&'static str, Check<T>); 8] {
    [
        ("`sleep` and each poll of its future return immediately", |timer| Box::pin(returns_immediately(timer))),
        ("a future resolves when its duration has elapsed, and not earlier", |timer| Box::pin(resolves_in_time(timer))),
        ("futures of the same timer do not delay each other", |timer| Box::pin(resolves_independently(timer))),
        ("with `Duration::ZERO`, the future resolves", |timer| Box::pin(resolves_after_zero(timer))),
        ("with a duration up to `Duration::MAX`, `sleep` does not panic, and the future does not resolve early", |timer| {
            Box::pin(accepts_long_durations(timer))
        }),
        ("the duration starts at the call of `sleep`, not at the first poll", |timer| Box::pin(starts_at_call(timer))),
        ("a future wakes the task that polled it last", |timer| Box::pin(wakes_last_task(timer))),
        ("a future wakes its task once, when its duration has elapsed, and not after the future has been dropped", |timer| {
            Box::pin(wakes_once(timer))
        }),
    ]
}

async fn returns_immediately<T: Timer>(timer: Rc<T>) -> CheckResult {
    let mut sleep = pin!(timer.sleep(LONG));
    match poll_once(&mut sleep).await {
        None => Ok(()),
        Some(_) => Err(format!("a future with the duration {LONG:?} was ready at its first poll")),
    }
}

async fn resolves_in_time<T: Timer>(timer: Rc<T>) -> CheckResult {
    let called = Instant::now();
    timer.sleep(SHORT).await;
    let elapsed = called.elapsed();
    if elapsed >= SHORT { Ok(()) } else { Err(format!("a future with the duration {SHORT:?} resolved after {elapsed:?}")) }
}

async fn resolves_independently<T: Timer>(timer: Rc<T>) -> CheckResult {
    let mut longest = pin!(timer.sleep(LONG));
    let _ = poll_once(&mut longest).await;
    let mut waiting = Vec::new();
    for milliseconds in (1..=50).rev() {
        let mut sleep = Box::pin(timer.sleep(Duration::from_millis(milliseconds)));
        if poll_once(&mut sleep).await.is_none() {
            waiting.push(sleep);
        }
    }
    for sleep in waiting {
        sleep.await;
    }
    Ok(())
}

async fn resolves_after_zero<T: Timer>(timer: Rc<T>) -> CheckResult {
    timer.sleep(Duration::ZERO).await;
    Ok(())
}

async fn accepts_long_durations<T: Timer>(timer: Rc<T>) -> CheckResult {
    for duration in [Duration::MAX, Duration::MAX / 2, Duration::from_secs(1 << 40)] {
        let resolves = async {
            timer.sleep(duration).await;
            Err(format!("a future with the duration {duration:?} resolved within {SHORT:?}"))
        };
        let waits = async {
            timer.sleep(SHORT).await;
            Ok(())
        };
        or(resolves, waits).await?;
    }
    Ok(())
}

/// Polls a future for the first time after its duration has elapsed.
///
/// At that first poll, the check starts a second future with a shorter duration. If the timer violates the contract and starts the duration
/// at the first poll, the second future resolves first. If the timer is only slow, both futures are ready, and the check passes because
/// `or` polls `first` before `second`.
async fn starts_at_call<T: Timer>(timer: Rc<T>) -> CheckResult {
    let not_polled = timer.sleep(SHORT * 10);
    timer.sleep(SHORT * 10).await;
    let first = async {
        not_polled.await;
        Ok(())
    };
    let second = async {
        timer.sleep(SHORT * 5).await;
        Err("a future waited for its duration again after its first poll".into())
    };
    or(first, second).await
}

async fn wakes_last_task<T: Timer>(timer: Rc<T>) -> CheckResult {
    let mut sleep = pin!(timer.sleep(SHORT * 10));
    // If the operating system suspended this thread for a long time, the future can already be ready. In this case, the check cannot test
    // the wake-up, and passes.
    if poll_with(sleep.as_mut(), Waker::noop()).is_pending() {
        sleep.await;
    }
    Ok(())
}

async fn wakes_once<T: Timer>(timer: Rc<T>) -> CheckResult {
    let (early, dropped, elapsed) = <(Arc<WakeCount>, Arc<WakeCount>, Arc<WakeCount>)>::default();
    let mut long = pin!(timer.sleep(LONG));
    let _ = poll_with(long.as_mut(), &early.waker());
    let mut to_drop = Box::pin(timer.sleep(SHORT));
    let is_waiting = poll_with(to_drop.as_mut(), &dropped.waker()).is_pending();
    let woken_before_drop = dropped.get();
    drop(to_drop);
    let mut short = pin!(timer.sleep(SHORT));
    // If the future is ready at its first poll, it must not wake its task.
    let expected = usize::from(poll_with(short.as_mut(), &elapsed.waker()).is_pending());
    timer.sleep(SHORT * 2).await;
    while elapsed.get() < expected {
        timer.sleep(SHORT).await;
    }
    if expected == 1 && poll_with(short.as_mut(), &elapsed.waker()).is_pending() {
        return Err("a future was not ready after it had woken its task".into());
    }
    timer.sleep(SHORT).await;
    if early.get() > 0 {
        return Err(format!("a future with the duration {LONG:?} woke its task within a few milliseconds"));
    }
    if is_waiting && dropped.get() > woken_before_drop {
        return Err("a dropped future woke a task".into());
    }
    let count = elapsed.get();
    if count == expected { Ok(()) } else { Err(format!("a future woke its task {count} times")) }
}

fn poll_with<F: Future>(future: Pin<&mut F>, waker: &Waker) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(waker))
}

/// Counts how often its waker has been called.
#[derive(Default)]
struct WakeCount(AtomicUsize);

impl WakeCount {
    fn waker(self: &Arc<Self>) -> Waker {
        self.clone().into()
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}
