//! Runs a consumer on a single thread, with a clock that the test sets and a source that the test can break.

use async_executor::Executor;
use background_tasks::{Loss, Observer, Registry, Spawner, Summary, TaskInfo, Timer};
use background_tasks_consumer::{Consumer, Delivery, MemoryQueue, MemoryReceipt, Message, Release, Source, consumer};
use std::fmt::{self, Display};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// The simulated time, and the wakers of the futures that sleep.
#[derive(Clone, Default)]
pub(crate) struct Clock(Arc<Mutex<Time>>);

#[derive(Default)]
struct Time {
    now: Duration,
    sleepers: Vec<(Duration, Waker)>,
}

pub(crate) struct Sleep {
    clock: Clock,
    deadline: Duration,
}

impl Clock {
    pub(crate) fn now(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        Sleep { clock: self.clone(), deadline: self.now().saturating_add(duration) }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut time = self.clock.0.lock().unwrap();
        if time.now >= self.deadline {
            return Poll::Ready(());
        }
        time.sleepers.push((self.deadline, cx.waker().clone()));
        Poll::Pending
    }
}

#[derive(Clone)]
pub(crate) struct SimSpawner {
    executor: Arc<Executor<'static>>,
    clock: Clock,
}

impl Spawner for SimSpawner {
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        Executor::spawn(&self.executor, task).detach(); // with the feature `async-executor`, a trait method has the same name
    }
}

impl Timer for SimSpawner {
    type Sleep = Sleep;

    fn sleep(&self, duration: Duration) -> Sleep {
        self.clock.sleep(duration)
    }
}

/// The losses that the registry has reported, as text.
#[derive(Clone, Default)]
pub(crate) struct Losses(Arc<Mutex<Vec<String>>>);

impl Observer for Losses {
    fn lost(&self, task: &TaskInfo, loss: &Loss<'_>) {
        self.0.lock().unwrap().push(format!("{} {loss}", task.name().unwrap_or_default()));
    }
}

pub(crate) struct Simulation {
    pub(crate) executor: Arc<Executor<'static>>,
    pub(crate) clock: Clock,
    pub(crate) registry: Registry<SimSpawner>,
    pub(crate) queue: MemoryQueue,
    pub(crate) faults: Arc<Faults>,
    losses: Losses,
}

impl Simulation {
    pub(crate) fn new() -> Self {
        Self::with_limit(1000)
    }

    pub(crate) fn with_limit(max_in_flight: usize) -> Self {
        let (executor, clock, losses) = (Arc::new(Executor::new()), Clock::default(), Losses::default());
        let spawner = SimSpawner { executor: executor.clone(), clock: clock.clone() };
        let registry = Registry::builder(spawner).inspect().observer(losses.clone()).max_in_flight(max_in_flight).build();
        let queue_clock = clock.clone();
        let queue = MemoryQueue::with_clock(LEASE, move || queue_clock.now());
        Self { executor, clock, registry, queue, faults: Arc::default(), losses }
    }

    /// Returns a consumer of the queue. The consumer calls the queue through `Faulty`, so the test can add faults.
    pub(crate) fn consumer(&self) -> Consumer<Faulty> {
        consumer(Faulty { queue: self.queue.clone(), clock: self.clock.clone(), faults: self.faults.clone() })
    }

    pub(crate) fn send(&self, messages: usize) {
        (0..messages).for_each(|n| self.queue.send(n.to_string()));
    }

    /// Runs all tasks until every task waits.
    pub(crate) fn run(&self) {
        while self.executor.try_tick() {}
    }

    /// Moves the clock forward by `duration`. Stops at each deadline on the way to run the tasks that are due.
    pub(crate) fn advance(&self, duration: Duration) {
        let end = self.clock.now() + duration;
        loop {
            self.run();
            let mut time = self.clock.0.lock().unwrap();
            let next = time.sleepers.iter().map(|sleeper| sleeper.0).filter(|deadline| *deadline <= end).min();
            time.now = next.unwrap_or(end).max(time.now);
            let now = time.now;
            let due: Vec<_> = time.sleepers.extract_if(.., |sleeper| sleeper.0 <= now).collect();
            drop(time);
            for (_, waker) in due {
                waker.wake();
            }
            if next.is_none() {
                return self.run();
            }
        }
    }

    pub(crate) fn advance_secs(&self, seconds: u64) {
        self.advance(Duration::from_secs(seconds));
    }

    /// Moves the clock forward as if this process were frozen: no task of this process runs, but other processes work.
    pub(crate) fn freeze(&self, duration: Duration) {
        self.clock.0.lock().unwrap().now += duration;
    }

    /// Receives a message, like a consumer in another process. Returns the number of the attempt.
    #[track_caller]
    pub(crate) fn steal(&self) -> u32 {
        let received = futures_util::FutureExt::now_or_never(self.queue.receive(1)).unwrap().unwrap();
        received[0].delivery.attempt()
    }

    /// Starts the shutdown and runs the tasks until every task waits. Returns the summary if the registry has drained.
    pub(crate) fn shutdown(&self) -> Option<Summary> {
        self.registry.start_shutdown();
        self.run();
        self.registry.is_drained().then(|| self.registry.summary())
    }

    #[track_caller]
    pub(crate) fn assert_losses(&self, expected: &[&str]) {
        assert_eq!(*self.losses.0.lock().unwrap(), expected);
    }
}

/// The faults of the source, and the counters of its calls.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) receive_delay: Mutex<Duration>,
    pub(crate) extension_delay: Mutex<Duration>,
    pub(crate) cannot_delay: AtomicBool,
    pub(crate) has_no_lease: AtomicBool,
    pub(crate) fail_dead_letters: AtomicBool,
    pub(crate) fail_receive: AtomicBool,
    pub(crate) panic_in_receive: AtomicBool,
    pub(crate) fail_calls: AtomicBool,
    pub(crate) hang_calls: AtomicBool,
    pub(crate) void_receipts: AtomicBool,
    /// The number of calls to `ack`, `release` and `dead_letter`.
    pub(crate) calls: AtomicUsize,
    pub(crate) extensions: AtomicUsize,
    pub(crate) receives: AtomicUsize,
    pub(crate) stops: AtomicUsize,
    /// The argument of each call to `receive`.
    pub(crate) asked: Mutex<Vec<usize>>,
}

pub(crate) struct Faulty {
    queue: MemoryQueue,
    clock: Clock,
    faults: Arc<Faults>,
}

#[derive(Debug)]
pub(crate) struct Broken {
    is_void: bool,
}

impl Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_void { "void" } else { "broken" })
    }
}

impl Faulty {
    async fn call<T>(&self, call: impl Future<Output = Result<T, background_tasks_consumer::ReceiptVoid>>) -> Result<T, Broken> {
        poll_fn(|_| if self.faults.hang_calls.load(SeqCst) { Poll::Pending } else { Poll::Ready(()) }).await;
        if self.faults.fail_calls.load(SeqCst) {
            return Err(Broken { is_void: false });
        }
        if self.faults.void_receipts.load(SeqCst) {
            return Err(Broken { is_void: true });
        }
        call.await.map_err(|_| Broken { is_void: true })
    }
}

impl Source for Faulty {
    type Receipt = MemoryReceipt;
    type Error = Broken;

    fn lease(&self) -> Option<Duration> {
        (!self.faults.has_no_lease.load(SeqCst)).then_some(LEASE)
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<MemoryReceipt>>, Broken> {
        self.faults.receives.fetch_add(1, SeqCst);
        self.faults.asked.lock().unwrap().push(most);
        assert!(!self.faults.panic_in_receive.load(SeqCst), "the source panics");
        if self.faults.fail_receive.load(SeqCst) {
            return Err(Broken { is_void: false });
        }
        let delay = *self.faults.receive_delay.lock().unwrap();
        // The broker delivers the messages before its response reaches the consumer.
        let received = self.queue.receive(most).await;
        self.clock.sleep(delay).await;
        received.map_err(|_| Broken { is_void: true })
    }

    async fn ack(&self, receipt: &mut MemoryReceipt) -> Result<(), Broken> {
        self.faults.calls.fetch_add(1, SeqCst);
        self.call(self.queue.ack(receipt)).await
    }

    async fn extend(&self, receipt: &mut MemoryReceipt) -> Result<(), Broken> {
        self.faults.extensions.fetch_add(1, SeqCst);
        // The response contains the new receipt, and it arrives after the delay.
        let mut extended = receipt.clone();
        self.call(self.queue.extend(&mut extended)).await?;
        let delay = *self.faults.extension_delay.lock().unwrap();
        self.clock.sleep(delay).await;
        *receipt = extended;
        Ok(())
    }

    async fn release(&self, receipt: &mut MemoryReceipt, release: Release) -> Result<(), Broken> {
        self.faults.calls.fetch_add(1, SeqCst);
        let release = match release {
            Release::After(_) if !self.can_delay() => Release::After(Duration::ZERO),
            release => release,
        };
        self.call(self.queue.release(receipt, release)).await
    }

    async fn dead_letter(&self, delivery: &Delivery, receipt: &mut MemoryReceipt, reason: &str) -> Result<(), Broken> {
        self.faults.calls.fetch_add(1, SeqCst);
        if self.faults.fail_dead_letters.load(SeqCst) {
            return Err(Broken { is_void: false });
        }
        self.call(self.queue.dead_letter(delivery, receipt, reason)).await
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn can_delay(&self) -> bool {
        !self.faults.cannot_delay.load(SeqCst)
    }

    fn is_void(&self, error: &Broken) -> bool {
        error.is_void
    }

    async fn stop(&self) -> Result<(), Broken> {
        self.faults.stops.fetch_add(1, SeqCst);
        self.call(async { Ok(()) }).await
    }
}
