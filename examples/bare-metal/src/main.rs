//! Background tasks without an operating system. The program and an interrupt start tasks, the interrupt starts the shutdown, and the
//! program waits for the drain and checks the outcomes.

#![no_std]
#![no_main]

extern crate alloc;

mod executor;

use alloc::string::ToString;
use background_tasks::{Guard, Loss, Observer, Registry, RegistryState, Spawner, TaskInfo};
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

/// A transfer is not a future: it is in flight until the interrupt at its end drops the guard.
static TRANSFER: Mutex<Cell<Option<Guard>>> = Mutex::new(Cell::new(None));

/// The number of readings that the timer starts before it starts the shutdown.
const READINGS: u32 = 100;

#[entry]
fn main() -> ! {
    // SAFETY: called once, and before the first allocation.
    unsafe {
        embedded_alloc::init!(HEAP, 8 * 1024);
    }
    Executor.spawn(program());
    executor::run()
}

async fn program() {
    inspect_and_abort().await;

    TASKS.run(keep_log());
    TASKS.run(async { Err::<(), _>("the radio does not answer") });
    let transfer = TASKS.guard().expect("the registry is open");
    critical_section::with(|cs| TRANSFER.borrow(cs).set(Some(transfer)));
    start_timer();

    // A response that never arrives. The shutdown ends the wait for it.
    let response = TASKS.track(pending::<()>()).expect("the registry is open");
    TASKS.signal().run_until_shutdown(response).await;
    println!("shutdown started");
    let summary = TASKS.shutdown().await;
    println!("drained: {summary}");
    let rejected = TASKS.try_run(async {}).expect_err("the registry has drained");
    println!("{rejected}");

    // Completed: the 100 readings, the log, its last entry, and the transfer. A panic ends the program with a failure.
    assert_eq!(TASKS.summary().to_string(), "103 completed, 1 failed, 0 panicked, 1 abandoned, 0 aborted, 1 rejected");
    process::exit(0);
}

/// Prints how the tasks of the inspected registry are lost.
struct Console;

impl Observer for Console {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        println!("{} {loss}", task.name().unwrap_or_default());
    }
}

/// Lists the tasks of an inspected registry and aborts one of them.
async fn inspect_and_abort() {
    let jobs = Registry::builder(Executor).inspect().observer(Console).build();
    jobs.named("calibration").run(pending::<()>());
    jobs.named("self-test").run(async { Err::<(), _>("no reference voltage") });
    for task in jobs.tasks() {
        println!("{} in flight", task.name().unwrap_or_default());
    }
    let id = jobs.tasks()[0].id().expect("an inspected task has an ID");
    jobs.abort_task(id).expect("a waiting future can be aborted");
    println!("jobs drained: {}", jobs.shutdown().await);
}

/// Keeps the log open until the shutdown starts. While the registry drains, a task may start another one.
async fn keep_log() {
    TASKS.signal().await;
    TASKS.run(async { println!("the log is written") });
}

/// Takes a reading, unless the shutdown starts before the sensor has settled.
async fn read() {
    let mut polls = 0..10;
    let settled = poll_fn(|cx| {
        cx.waker().wake_by_ref();
        polls.next().map_or(Poll::Ready(()), |_| Poll::Pending)
    });
    TASKS.signal().run_until_shutdown(settled).await;
}

/// Starts a reading at each tick, then starts the shutdown, then ends the transfer.
#[exception]
fn SysTick() {
    static mut STARTED: u32 = 0;
    if *STARTED < READINGS {
        // The heap limits how many readings can be in flight. If the limit is reached, the tick starts no reading.
        if TASKS.in_flight() < 10 {
            TASKS.run(read());
            *STARTED += 1;
        }
    } else if !TASKS.is_shutting_down() {
        TASKS.start_shutdown();
    } else {
        drop(critical_section::with(|cs| TRANSFER.borrow(cs).take()));
    }
}

/// Makes the timer tick so often that most ticks interrupt a task.
fn start_timer() {
    let mut timer = Peripherals::take().expect("taken once").SYST;
    timer.set_clock_source(SystClkSource::Core);
    timer.set_reload(1_009);
    timer.clear_current();
    timer.enable_interrupt();
    timer.enable_counter();
}
