//! An executor for a single core. The executor polls tasks from a queue of ready tasks. Interrupt handlers may add tasks to the queue.

use alloc::collections::VecDeque;
use async_task::Runnable;
use background_tasks::Spawner;
use core::cell::RefCell;
use critical_section::Mutex;

static READY: Mutex<RefCell<VecDeque<Runnable>>> = Mutex::new(RefCell::new(VecDeque::new()));

/// A spawner that starts futures, which [`run`] polls. Any code may call `spawn`, even an interrupt handler. If the last waker of a
/// waiting task is dropped, no code can wake the task, so [`run`] drops the task.
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

/// Polls the ready tasks. While no task is ready, the processor sleeps.
pub fn run() -> ! {
    loop {
        while let Some(task) = critical_section::with(|cs| READY.borrow_ref_mut(cs).pop_front()) {
            task.run();
        }
        critical_section::with(|cs| {
            // Interrupts are disabled here, so no handler can add a task between this check and the sleep. An interrupt that arrives now
            // ends the sleep, and its handler runs when the critical section ends.
            if READY.borrow_ref(cs).is_empty() {
                cortex_m::asm::wfi();
            }
        });
    }
}
