//! The thread-per-core runtimes on each of their drivers.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::Future;
use std::io;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::time::Duration;

/// Long enough that only a hang gets there.
pub(crate) const HANG: Duration = Duration::from_secs(60);

pub(crate) type Main = Pin<Box<dyn Future<Output = ()>>>;

/// A runtime of this thread: it drives a future and what that spawns, until the future is done.
pub(crate) type Drive = Box<dyn FnMut(Main)>;

/// Makes a runtime on this thread, or says why it cannot.
pub(crate) type Make = fn() -> io::Result<Drive>;

#[cfg(feature = "compio")]
fn compio(driver: compio::driver::DriverType) -> io::Result<Drive> {
    let mut proactor = compio::driver::ProactorBuilder::new();
    proactor.driver_type(driver);
    // More than a shutdown wakes at once: what waits for a place among the usual 64 does not wake a runtime that sleeps by then.
    let runtime = compio::runtime::RuntimeBuilder::new().with_proactor(proactor).sync_queue_size(1 << 14).build()?;
    assert_eq!(runtime.driver_type(), driver);
    Ok(Box::new(move |main| runtime.block_on(main)))
}

#[cfg(feature = "compio")]
pub(crate) fn compio_polling() -> io::Result<Drive> {
    compio(compio::driver::DriverType::Poll)
}

#[cfg(feature = "compio")]
pub(crate) fn compio_io_uring() -> io::Result<Drive> {
    compio(compio::driver::DriverType::IoUring)
}

/// Drops the tasks with the runtime, which is what a thread that outlives it is told to do.
#[cfg(feature = "monoio")]
struct Abandons;

#[cfg(feature = "monoio")]
impl Drop for Abandons {
    fn drop(&mut self) {
        background_tasks_runtimes::MonoioSpawner::abandon_all();
    }
}

#[cfg(feature = "monoio")]
fn monoio<D: monoio::Driver + 'static>(runtime: io::Result<monoio::Runtime<D>>) -> io::Result<Drive> {
    let mut runtime = runtime?;
    let tasks = Abandons;
    Ok(Box::new(move |main| {
        let _ = &tasks;
        runtime.block_on(main);
    }))
}

#[cfg(feature = "monoio")]
fn pool() -> Box<dyn monoio::blocking::ThreadPool + Send> {
    Box::new(monoio::blocking::DefaultThreadPool::new(4))
}

#[cfg(feature = "monoio")]
pub(crate) fn monoio_legacy() -> io::Result<Drive> {
    monoio(monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().attach_thread_pool(pool()).build())
}

#[cfg(feature = "monoio")]
pub(crate) fn monoio_io_uring() -> io::Result<Drive> {
    monoio(monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().attach_thread_pool(pool()).build())
}

#[cfg(feature = "glommio")]
pub(crate) fn glommio_io_uring() -> io::Result<Drive> {
    // It panics where the kernel refuses io_uring.
    let made = catch_unwind(|| {
        let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound);
        executor.blocking_thread_pool_placement(glommio::PoolPlacement::Unbound(4)).make()
    });
    let executor = made.map_err(|_| io::Error::other("glommio finds no io_uring that it may use"))??;
    Ok(Box::new(move |main| executor.run(main)))
}
