//! An executor for one core: a queue of ready tasks. Interrupts may add to it.

use alloc::collections::VecDeque;
use async_task::Runnable;
use background_tasks::Spawner;
use core::cell::RefCell;
use critical_section::Mutex;

static READY: Mutex<RefCell<VecDeque<Runnable>>> = Mutex::new(RefCell::new(VecDeque::new()));

/// Starts futures, which [`run`] polls. Any code may call it, interrupt handlers included. If the last waker of a waiting task is dropped,
/// [`run`] drops the task.
pub struct Executor;

impl Spawner for Executor {
    fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (runnable, task) = async_task::spawn(task, ready);
        task.detach();
        runnable.schedule();
    }
}

fn ready(task: Runnable) {
    critical_section::with(|cs| READY.borrow_ref_mut(cs).push_back(task));
}

/// Polls the ready tasks, and sleeps while no task is ready.
pub fn run() -> ! {
    loop {
        while let Some(task) = critical_section::with(|cs| READY.borrow_ref_mut(cs).pop_front()) {
            task.run();
        }
        critical_section::with(|cs| {
            // An interrupt after this check ends the sleep. It is handled when the critical section ends.
            if READY.borrow_ref(cs).is_empty() {
                cortex_m::asm::wfi();
            }
        });
    }
}
