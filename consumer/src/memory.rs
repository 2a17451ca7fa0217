use crate::delivery::Delivery;
use crate::source::{Message, Release, Source};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A queue in the memory of this process, for tests and for development. All clones refer to the same queue.
///
/// The messages are lost when the process exits.
///
/// The queue behaves like a broker with leases. If a message is not acknowledged, released or dead when its lease expires, the queue
/// delivers the message again. If a shutdown releases a message, the attempt does not count.
///
/// A consumer gets a receipt for each delivery, and acknowledges or releases the message with this receipt. If the consumer extends the
/// lease, the queue replaces the receipt, and the previous receipt is no longer valid.
///
/// # Examples
///
/// ```
/// # smol::block_on(async {
/// use background_tasks::{Registry, SmolSpawner};
/// use background_tasks_consumer::{Failure, MemoryQueue, consumer};
/// use std::time::Duration;
///
/// let queue = MemoryQueue::new(Duration::from_secs(30));
/// queue.send("hello");
/// let registry = Registry::new(SmolSpawner);
/// consumer(queue.clone())
///     .serve(&registry, "print", |delivery| async move {
///         println!("{}", str::from_utf8(delivery.payload())?);
///         Ok::<_, Failure>(())
///     })
///     .unwrap();
/// while !queue.is_empty() {
///     smol::Timer::after(Duration::from_millis(1)).await;
/// }
/// assert!(registry.shutdown().await.is_clean());
/// # });
/// ```
#[derive(Clone)]
pub struct MemoryQueue(Arc<Inner>);

struct Inner {
    lease: Duration,
    clock: Box<dyn Fn() -> Duration + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_key: u64,
    messages: BTreeMap<u64, Entry>,
    dead: Vec<(Delivery, String)>,
}

struct Entry {
    delivery: Delivery,
    deliveries: u32,
    /// This number changes each time the message gets a new receipt. A receipt with an older number is void (no longer valid).
    generation: u64,
    visible_at: Duration,
}

/// Identifies one delivery of a message of a [`MemoryQueue`].
#[derive(Clone, Debug)]
pub struct MemoryReceipt {
    key: u64,
    generation: u64,
}

/// The error of a call with a receipt that is no longer valid. A receipt becomes invalid if its message is acknowledged or dead, if the
/// message is delivered again, or if another call replaces the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptVoid(());

impl MemoryQueue {
    /// Creates an empty queue. `lease` is the time for which a delivered message belongs to its consumer without an extension.
    pub fn new(lease: Duration) -> Self {
        let start = Instant::now();
        Self::with_clock(lease, move || start.elapsed())
    }

    /// Creates an empty queue that uses the given clock, so that a test can control the time. `clock` must return the time since a fixed
    /// moment.
    pub fn with_clock(lease: Duration, clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { lease, clock: Box::new(clock), state: Mutex::default() }))
    }

    /// Adds a message. The queue numbers its messages from 1, and the ID of the message is its number.
    pub fn send(&self, payload: impl Into<Vec<u8>>) {
        self.send_delivery(Delivery::new(payload));
    }

    /// Adds a message with headers and an ID. If the ID is empty, the queue uses the number of the message as the ID. It ignores the
    /// attempt number of `delivery`.
    pub fn send_delivery(&self, delivery: Delivery) {
        let mut state = self.lock();
        state.last_key += 1;
        let key = state.last_key;
        let delivery = if delivery.id().is_empty() { delivery.with_id(key.to_string()) } else { delivery };
        state.messages.insert(key, Entry { delivery, deliveries: 0, generation: 0, visible_at: Duration::ZERO });
    }

    /// Returns the number of messages that are not acknowledged and not dead.
    pub fn len(&self) -> usize {
        self.lock().messages.len()
    }

    /// Returns whether all messages are acknowledged or dead.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of messages that a consumer can receive now.
    pub fn visible(&self) -> usize {
        let now = (self.0.clock)();
        self.lock().messages.values().filter(|entry| entry.visible_at <= now).count()
    }

    /// Returns the dead messages with their reasons, in the order in which they became dead.
    pub fn dead_letters(&self) -> Vec<(Delivery, String)> {
        self.lock().dead.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `change` if the receipt is valid. Otherwise returns an error.
    fn change<T>(
        &self,
        receipt: &mut MemoryReceipt,
        change: impl FnOnce(&mut State, &mut MemoryReceipt) -> T,
    ) -> Result<T, ReceiptVoid> {
        let mut state = self.lock();
        let is_valid = state.messages.get(&receipt.key).is_some_and(|entry| entry.generation == receipt.generation);
        if is_valid { Ok(change(&mut state, receipt)) } else { Err(ReceiptVoid(())) }
    }

    fn show_after(&self, receipt: &mut MemoryReceipt, delay: Duration, uncharged: u32) -> Result<(), ReceiptVoid> {
        let visible_at = (self.0.clock)().saturating_add(delay);
        self.change(receipt, |state, receipt| {
            if let Some(entry) = state.messages.get_mut(&receipt.key) {
                entry.visible_at = visible_at;
                entry.generation += 1;
                entry.deliveries = entry.deliveries.saturating_sub(uncharged);
                receipt.generation = entry.generation;
            }
        })
    }
}

impl Source for MemoryQueue {
    type Receipt = MemoryReceipt;
    type Error = ReceiptVoid;

    fn lease(&self) -> Option<Duration> {
        Some(self.0.lease)
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<MemoryReceipt>>, ReceiptVoid> {
        let now = (self.0.clock)();
        let mut state = self.lock();
        let visible = state.messages.iter_mut().filter(|(_, entry)| entry.visible_at <= now).take(most);
        let receive = visible.map(|(&key, entry)| {
            entry.deliveries += 1;
            entry.generation += 1;
            entry.visible_at = now.saturating_add(self.0.lease);
            let receipt = MemoryReceipt { key, generation: entry.generation };
            Message { delivery: entry.delivery.clone().with_attempt(entry.deliveries), receipt }
        });
        Ok(receive.collect())
    }

    async fn ack(&self, receipt: &mut MemoryReceipt) -> Result<(), ReceiptVoid> {
        self.change(receipt, |state, receipt| drop(state.messages.remove(&receipt.key)))
    }

    async fn extend(&self, receipt: &mut MemoryReceipt) -> Result<(), ReceiptVoid> {
        self.show_after(receipt, self.0.lease, 0)
    }

    async fn release(&self, receipt: &mut MemoryReceipt, release: Release) -> Result<(), ReceiptVoid> {
        match release {
            Release::Shutdown => self.show_after(receipt, Duration::ZERO, 1),
            Release::After(delay) => self.show_after(receipt, delay, 0),
        }
    }

    async fn dead_letter(&self, delivery: &Delivery, receipt: &mut MemoryReceipt, reason: &str) -> Result<(), ReceiptVoid> {
        let dead = (delivery.clone(), reason.to_owned());
        self.change(receipt, |state, receipt| {
            state.dead.push(dead);
            state.messages.remove(&receipt.key);
        })
    }

    fn poll_interval(&self) -> Duration {
        Duration::from_millis(10)
    }

    fn is_void(&self, _: &ReceiptVoid) -> bool {
        true
    }
}

impl fmt::Debug for MemoryQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryQueue").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl fmt::Display for ReceiptVoid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the receipt is void: the message was settled or delivered again")
    }
}

impl std::error::Error for ReceiptVoid {}
