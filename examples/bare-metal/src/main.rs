//! Runs background tasks without an operating system. The program and an interrupt handler start tasks. The interrupt handler then starts
//! the shutdown. The program waits for the drain and checks the outcomes.

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

/// The guard of a data transfer. A transfer is not a future: it counts as in flight until the interrupt handler drops this guard.
static TRANSFER: Mutex<Cell<Option<Guard>>> = Mutex::new(Cell::new(None));

/// The number of sensor readings that the timer starts before it starts the shutdown.
const READINGS: u32 = 100;

#[entry]
fn main() -> ! {
    // SAFETY: called only once, before the first allocation.
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

    // The task waits for a response that never arrives. The shutdown ends this wait.
    let response = TASKS.track(pending::<()>()).expect("the registry is open");
    TASKS.signal().run_until_shutdown(response).await;
    println!("shutdown started");
    let summary = TASKS.shutdown().await;
    println!("drained: {summary}");
    let rejected = TASKS.try_run(async {}).expect_err("the registry has drained");
    println!("{rejected}");

    // The 103 completed tasks are 100 readings, `keep_log`, the task that it starts, and the transfer. If the assertion fails, the
    // program panics and exits with an error.
    assert_eq!(TASKS.summary().to_string(), "103 completed, 1 failed, 0 panicked, 1 abandoned, 0 aborted, 1 rejected");
    process::exit(0);
}

/// An observer that prints how the tasks of the inspected registry were lost.
struct Console;

impl Observer for Console {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        println!("{} {loss}", task.name().unwrap_or_default());
    }
}

/// Lists the tasks of an inspected registry and aborts one of the tasks.
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

/// Waits until shutdown starts, and then starts a task that writes the last entry of the log. A task may start another task even during
/// the drain.
async fn keep_log() {
    TASKS.signal().await;
    TASKS.run(async { println!("the log is written") });
}

/// Simulates a reading of a sensor. Ends early if shutdown starts before the value of the sensor is stable.
async fn read() {
    let mut polls = 0..10;
    let settled = poll_fn(|cx| {
        cx.waker().wake_by_ref();
        polls.next().map_or(Poll::Ready(()), |_| Poll::Pending)
    });
    TASKS.signal().run_until_shutdown(settled).await;
}

/// Starts one reading at each tick of the timer. After the last reading, one tick starts the shutdown, and the next tick ends the
/// transfer.
#[exception]
fn SysTick() {
    static mut STARTED: u32 = 0;
    if *STARTED < READINGS {
        // The heap has room for few tasks. If ten tasks are in flight, the tick starts no reading.
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

/// Starts the timer. The timer ticks so often that most ticks interrupt a task.
fn start_timer() {
    let mut timer = Peripherals::take().expect("taken once").SYST;
    timer.set_clock_source(SystClkSource::Core);
    timer.set_reload(1_009);
    timer.clear_current();
    timer.enable_interrupt();
    timer.enable_counter();
}
