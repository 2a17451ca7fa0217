//! What waits is dropped on its own thread, whoever holds its wakers, and then counts as abandoned.
#![cfg(all(target_os = "linux", feature = "compio", feature = "monoio", feature = "glommio"))]

mod common;

use async_channel::{Receiver, unbounded};
use background_tasks::{LocalSpawner, Registry};
use background_tasks_runtimes::{CompioSpawner, GlommioSpawner, MonoioSpawner};
use common::{HANG, Make};
use std::future::{pending, poll_fn};
use std::sync::mpsc::{Sender, channel};
use std::task::{Poll, Waker};
use std::thread::{self, ThreadId};

/// Tells where it is dropped.
struct Tells(Sender<ThreadId>);

impl Drop for Tells {
    fn drop(&mut self) {
        self.0.send(thread::current().id()).unwrap_or(());
    }
}

/// A task that gives its waker away when it is polled, and waits for ever.
fn waits(wakers: Sender<Waker>, tells: Tells) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        let _ = &tells;
        wakers.send(cx.waker().clone()).unwrap();
        Poll::Pending
    })
}

/// The last waker goes on another thread while the runtime runs.
fn whose_last_waker_another_thread_drops<S: LocalSpawner + Copy + Send + 'static>(spawner: S, make: Make) {
    if let Err(why) = make() {
        return println!("skipped: {why}");
    }
    let registry = Registry::new(spawner);
    let (tell, told) = channel();
    let (wakers, waker) = channel();
    let (end, ends): (_, Receiver<()>) = unbounded();
    let own = registry.clone();
    let core = thread::spawn(move || {
        make().unwrap()(Box::pin(async move {
            own.run_local(waits(wakers, Tells(tell)));
            ends.recv().await.unwrap_err();
        }));
    });
    drop(waker.recv_timeout(HANG).unwrap());
    drop(end);
    let home = core.thread().id();
    core.join().unwrap();
    assert_eq!(told.recv_timeout(HANG).unwrap(), home);
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().abandoned, 1);
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

/// Runs something on a monoio runtime that is dropped then, and nothing else is.
fn in_monoio(main: impl Future<Output = ()> + 'static) {
    monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap().block_on(main);
}

#[test]
fn a_monoio_thread_that_ends_abandons_what_waits() {
    let registry = Registry::new(MonoioSpawner);
    let (tell, told) = channel();
    let (wakers, waker) = channel();
    let own = registry.clone();
    let core = thread::spawn(move || {
        in_monoio(async move {
            own.run_local(waits(wakers, Tells(tell)));
            monoio::spawn(async {}).await;
        });
    });
    let waker = waker.recv_timeout(HANG).unwrap();
    let home = core.thread().id();
    core.join().unwrap();
    assert_eq!(told.recv_timeout(HANG).unwrap(), home);
    assert_eq!(registry.shutdown().wait_timeout(HANG).unwrap().abandoned, 1);
    // To wake what is gone does nothing.
    waker.wake();
}

#[test]
fn abandon_all_abandons_what_waits_and_the_thread_goes_on() {
    let registry = Registry::new(MonoioSpawner);
    let (tell, told) = channel();
    let (wakers, waker) = channel();
    let own = registry.clone();
    in_monoio(async move {
        own.run_local(waits(wakers, Tells(tell)));
        monoio::spawn(async {}).await;
    });
    let waker = waker.recv_timeout(HANG).unwrap();
    assert_eq!(registry.in_flight(), 1, "the waker keeps it");
    MonoioSpawner::abandon_all();
    assert_eq!(told.recv_timeout(HANG).unwrap(), thread::current().id());
    assert_eq!(registry.summary().abandoned, 1);
    let own = registry.clone();
    in_monoio(async move {
        waker.wake();
        own.run_local(async {});
        own.wait_idle().await;
        // Nobody can wake it, so monoio does not keep it.
        own.run_local(pending::<()>());
        own.wait_idle().await;
    });
    let summary = registry.shutdown().wait_timeout(HANG).unwrap();
    assert_eq!((summary.completed, summary.abandoned), (1, 2));
}

/// Starts a task that waits on a new monoio runtime, whose first task on its thread it is, and drops the runtime.
fn first_of_its_thread(registry: &Registry<MonoioSpawner>) -> Waker {
    let (wakers, waker) = channel();
    let own = registry.clone();
    in_monoio(async move {
        own.run_local(waits(wakers, Tells(channel().0)));
        monoio::spawn(async {}).await;
    });
    waker.recv_timeout(HANG).unwrap()
}

#[test]
fn a_thread_that_drops_another_one_s_waker_keeps_its_own_tasks() {
    let (here, there) = (Registry::new(MonoioSpawner), Registry::new(MonoioSpawner));
    let waker = first_of_its_thread(&here);
    let elsewhere = there.clone();
    let foreign = thread::spawn(move || first_of_its_thread(&elsewhere)).join().unwrap();
    assert_eq!(there.summary().abandoned, 1);
    drop(foreign);
    assert_eq!(here.in_flight(), 1);
    drop(waker);
    assert_eq!(here.shutdown().wait_timeout(HANG).unwrap().abandoned, 1);
}
