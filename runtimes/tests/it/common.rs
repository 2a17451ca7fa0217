//! Creates the thread-per-core runtimes for the tests, with each of their I/O drivers.

use std::future::Future;
use std::io;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::time::Duration;

/// The time limit for a step of a test. A step that takes longer hangs.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) type Main = Pin<Box<dyn Future<Output = ()>>>;

/// A runtime of this thread. The closure polls a future and the tasks that this future spawns, until the future has ended.
pub(crate) type Drive = Box<dyn FnMut(Main)>;

/// Creates a runtime on this thread. Returns an error if the runtime cannot be created.
pub(crate) type Make = fn() -> io::Result<Drive>;

/// Returns whether the runtime can be created on this machine. The kernel may refuse `io_uring`. All other drivers work on each machine.
pub(crate) fn is_available(make: Make) -> bool {
    make().inspect_err(|reason| testing::skip("io_uring", reason)).is_ok()
}

fn compio(driver: compio::driver::DriverType) -> io::Result<Drive> {
    let mut proactor = compio::driver::ProactorBuilder::new();
    proactor.driver_type(driver);
    // The queue has enough space for all wake-ups of a shutdown. With the default of 64, a wake-up waits for space and may not wake a
    // sleeping runtime.
    let runtime = compio::runtime::RuntimeBuilder::new().with_proactor(proactor).sync_queue_size(1 << 14).build()?;
    assert_eq!(runtime.driver_type(), driver);
    Ok(Box::new(move |main| runtime.block_on(main)))
}

pub(crate) fn compio_polling() -> io::Result<Drive> {
    compio(compio::driver::DriverType::Poll)
}

pub(crate) fn compio_io_uring() -> io::Result<Drive> {
    compio(compio::driver::DriverType::IoUring)
}

/// Drops the tasks when the runtime is dropped. The documentation requires this for a thread that outlives its runtime.
struct AbandonOnDrop;

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        background_tasks_runtimes::MonoioSpawner::abandon_all();
    }
}

fn monoio<D: monoio::Driver + 'static>(runtime: io::Result<monoio::Runtime<D>>) -> io::Result<Drive> {
    let mut runtime = runtime?;
    let tasks = AbandonOnDrop;
    Ok(Box::new(move |main| {
        let _ = &tasks;
        runtime.block_on(main);
    }))
}

fn pool() -> Box<dyn monoio::blocking::ThreadPool + Send> {
    Box::new(monoio::blocking::DefaultThreadPool::new(4))
}

pub(crate) fn monoio_legacy() -> io::Result<Drive> {
    monoio(monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().attach_thread_pool(pool()).enable_timer().build())
}

pub(crate) fn monoio_io_uring() -> io::Result<Drive> {
    monoio(monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().attach_thread_pool(pool()).enable_timer().build())
}

pub(crate) fn glommio_io_uring() -> io::Result<Drive> {
    // `catch_unwind` is necessary because glommio panics if the kernel refuses io_uring.
    let made = catch_unwind(|| {
        let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound);
        executor.blocking_thread_pool_placement(glommio::PoolPlacement::Unbound(4)).make()
    });
    let executor = made.map_err(|_| io::Error::other("the kernel does not allow glommio to use io_uring"))??;
    Ok(Box::new(move |main| executor.run(main)))
}
