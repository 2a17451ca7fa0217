//! An executor for one core: a queue of the tasks that are ready, which interrupts may fill too.

use alloc::collections::VecDeque;
use async_task::Runnable;
use background_tasks::Spawner;
use core::cell::RefCell;
use critical_section::Mutex;

static READY: Mutex<RefCell<VecDeque<Runnable>>> = Mutex::new(RefCell::new(VecDeque::new()));

/// Starts futures that [`run`] polls, from anywhere. One that nobody can wake any more is dropped.
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

/// Polls what is ready, and sleeps while nothing is.
pub fn run() -> ! {
    loop {
        while let Some(task) = critical_section::with(|cs| READY.borrow_ref_mut(cs).pop_front()) {
            task.run();
        }
        critical_section::with(|cs| {
            // An interrupt that comes after the look ends the sleep, and is served when the critical section ends.
            if READY.borrow_ref(cs).is_empty() {
                cortex_m::asm::wfi();
            }
        });
    }
}
