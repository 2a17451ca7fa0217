//! Background tasks without an operating system: started by the program and by an interrupt, told to stop by an interrupt, drained, and
//! accounted for.

#![no_std]
#![no_main]

extern crate alloc;

mod executor;

use alloc::string::ToString;
use background_tasks::{RegistryState, Guard, Registry, Spawner};
use core::cell::Cell;
use core::future::{pending, poll_fn};
use core::task::Poll;
use cortex_m::Peripherals;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m_rt::{entry, exception};
use critical_section::Mutex;
use embedded_alloc::LlffHeap;
use executor::Executor;
use semihosting::{println, process};

#[global_allocator]
static HEAP: LlffHeap = LlffHeap::empty();

static STATE: RegistryState = RegistryState::new();
static TASKS: Registry<Executor> = Registry::in_static(&STATE, Executor);

/// A transfer, which is no future: in flight until the interrupt at its end drops the guard.
static TRANSFER: Mutex<Cell<Option<Guard>>> = Mutex::new(Cell::new(None));

/// How many readings the timer asks for before it has the program stop.
const READINGS: u32 = 100;

#[entry]
fn main() -> ! {
    // SAFETY: once, and before anything is allocated.
    unsafe {
        embedded_alloc::init!(HEAP, 8 * 1024);
    }
    Executor.spawn(program());
    executor::run()
}

async fn program() {
    TASKS.run(keep_log());
    TASKS.run(async { Err("the radio does not answer") });
    let transfer = TASKS.guard().expect("the registry is open");
    critical_section::with(|cs| TRANSFER.borrow(cs).set(Some(transfer)));
    start_timer();

    // An answer that does not come, and is given up when the program is to stop.
    let answer = TASKS.track(pending::<()>()).expect("the registry is open");
    TASKS.signal().run_until_shutdown(answer).await;
    println!("told to stop");
    let summary = TASKS.shutdown().await;
    println!("drained: {summary}");
    let rejected = TASKS.try_run(async {}).expect_err("the registry has drained");
    println!("{rejected}");

    // The readings, the log, what it owed, and the transfer. Who panics leaves with a failure.
    assert_eq!(TASKS.summary().to_string(), "103 completed, 1 failed, 0 panicked, 1 abandoned, 0 aborted, 1 rejected");
    process::exit(0);
}

/// Keeps the log open until the program is to stop. While it drains, a task may still start what it owes.
async fn keep_log() {
    TASKS.signal().await;
    TASKS.run(async { println!("the log is written") });
}

/// Takes a reading, unless the program is to stop before the sensor has settled.
async fn read() {
    let mut polls = 0..10;
    let settled = poll_fn(|cx| {
        cx.waker().wake_by_ref();
        polls.next().map_or(Poll::Ready(()), |_| Poll::Pending)
    });
    TASKS.signal().run_until_shutdown(settled).await;
}

/// Asks for a reading at each tick, then begins the shutdown, then ends the transfer.
#[exception]
fn SysTick() {
    static mut ASKED: u32 = 0;
    if *ASKED < READINGS {
        // The heap bounds how many may be in flight: a tick that comes too early is passed over.
        if TASKS.in_flight() < 10 {
            TASKS.run(read());
            *ASKED += 1;
        }
    } else if !TASKS.is_shutting_down() {
        TASKS.shutdown();
    } else {
        drop(critical_section::with(|cs| TRANSFER.borrow(cs).take()));
    }
}

/// Ticks so often that it mostly interrupts a task.
fn start_timer() {
    let mut timer = Peripherals::take().expect("taken once").SYST;
    timer.set_clock_source(SystClkSource::Core);
    timer.set_reload(1_009);
    timer.clear_current();
    timer.enable_interrupt();
    timer.enable_counter();
}
