//! Tests that a waiting task is dropped on its own thread, even if another thread owns its last waker. The task must count as abandoned.

use crate::common::{self, Make, TIMEOUT};
use async_channel::{Receiver, unbounded};
use background_tasks::{LocalSpawner, Registry};
use background_tasks_runtimes::{CompioSpawner, GlommioSpawner, MonoioSpawner};
use std::future::{pending, poll_fn};
use std::sync::mpsc::{Sender, channel};
use std::task::{Poll, Waker};
use std::thread::{self, ThreadId};

/// A value that sends the ID of the thread on which it is dropped.
struct SendOnDrop(Sender<ThreadId>);

impl Drop for SendOnDrop {
    fn drop(&mut self) {
        self.0.send(thread::current().id()).unwrap_or(());
    }
}

/// Returns a task that never ends, and that sends its waker at each poll.
fn pending_task(wakers: Sender<Waker>, on_drop: SendOnDrop) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        let _ = &on_drop;
        wakers.send(cx.waker().clone()).unwrap();
        Poll::Pending
    })
}

/// Tests a task whose last waker is dropped on another thread while the runtime runs.
fn whose_last_waker_another_thread_drops<S: LocalSpawner + Copy + Send + 'static>(spawner: S, make: Make) {
    if !common::is_available(make) {
        return;
    }
    let registry = Registry::new(spawner);
    let (sender, dropped_on) = channel();
    let (wakers, waker) = channel();
    let (end, ended): (_, Receiver<()>) = unbounded();
    let own = registry.clone();
    let core = thread::spawn(move || {
        make().unwrap()(Box::pin(async move {
            own.run_local(pending_task(wakers, SendOnDrop(sender)));
            ended.recv().await.unwrap_err();
        }));
    });
    drop(waker.recv_timeout(TIMEOUT).unwrap());
    drop(end);
    let home = core.thread().id();
    core.join().unwrap();
    assert_eq!(dropped_on.recv_timeout(TIMEOUT).unwrap(), home);
    assert_eq!(registry.shutdown().wait_timeout(TIMEOUT).unwrap().abandoned, 1);
}

#[test]
fn compio_task_whose_last_waker_another_thread_drops() {
    whose_last_waker_another_thread_drops(CompioSpawner, common::compio_polling);
}

#[test]
fn monoio_task_whose_last_waker_another_thread_drops() {
    whose_last_waker_another_thread_drops(MonoioSpawner, common::monoio_legacy);
}

#[test]
fn glommio_task_whose_last_waker_another_thread_drops() {
    whose_last_waker_another_thread_drops(GlommioSpawner, common::glommio_io_uring);
}

/// Runs a future on a monoio runtime, and then drops the runtime, but keeps the tasks.
fn in_monoio(main: impl Future<Output = ()> + 'static) {
    monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap().block_on(main);
}

#[test]
fn monoio_thread_that_ends_abandons_its_tasks() {
    let registry = Registry::new(MonoioSpawner);
    let (sender, dropped_on) = channel();
    let (wakers, waker) = channel();
    let own = registry.clone();
    let core = thread::spawn(move || {
        in_monoio(async move {
            own.run_local(pending_task(wakers, SendOnDrop(sender)));
            monoio::spawn(async {}).await;
        });
    });
    let waker = waker.recv_timeout(TIMEOUT).unwrap();
    let home = core.thread().id();
    core.join().unwrap();
    assert_eq!(dropped_on.recv_timeout(TIMEOUT).unwrap(), home);
    assert_eq!(registry.shutdown().wait_timeout(TIMEOUT).unwrap().abandoned, 1);
    // The wake-up of a dropped task must do nothing.
    waker.wake();
}

#[test]
fn abandon_all_abandons_the_tasks_and_the_thread_continues() {
    let registry = Registry::new(MonoioSpawner);
    let (sender, dropped_on) = channel();
    let (wakers, waker) = channel();
    let own = registry.clone();
    in_monoio(async move {
        own.run_local(pending_task(wakers, SendOnDrop(sender)));
        monoio::spawn(async {}).await;
    });
    let waker = waker.recv_timeout(TIMEOUT).unwrap();
    assert_eq!(registry.in_flight(), 1, "the waker keeps the task");
    MonoioSpawner::abandon_all();
    assert_eq!(dropped_on.recv_timeout(TIMEOUT).unwrap(), thread::current().id());
    assert_eq!(registry.summary().abandoned, 1);
    let own = registry.clone();
    in_monoio(async move {
        waker.wake();
        own.run_local(async {});
        own.wait_idle().await;
        // No waker of this task exists, so monoio drops the task.
        own.run_local(pending::<()>());
        own.wait_idle().await;
    });
    let summary = registry.shutdown().wait_timeout(TIMEOUT).unwrap();
    assert_eq!((summary.completed, summary.abandoned), (1, 2));
}

/// Starts the first task of a thread on a new monoio runtime, and drops the runtime while the task waits.
fn first_task_of_the_thread(registry: &Registry<MonoioSpawner>) -> Waker {
    let (wakers, waker) = channel();
    let own = registry.clone();
    in_monoio(async move {
        own.run_local(pending_task(wakers, SendOnDrop(channel().0)));
        monoio::spawn(async {}).await;
    });
    waker.recv_timeout(TIMEOUT).unwrap()
}

#[test]
fn dropped_waker_of_another_thread_does_not_affect_own_tasks() {
    let (here, there) = (Registry::new(MonoioSpawner), Registry::new(MonoioSpawner));
    let waker = first_task_of_the_thread(&here);
    let elsewhere = there.clone();
    let foreign = thread::spawn(move || first_task_of_the_thread(&elsewhere)).join().unwrap();
    assert_eq!(there.summary().abandoned, 1);
    drop(foreign);
    assert_eq!(here.in_flight(), 1);
    drop(waker);
    assert_eq!(here.shutdown().wait_timeout(TIMEOUT).unwrap().abandoned, 1);
}
