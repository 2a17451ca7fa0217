//! Contains the tests that need real threads and real time.

use background_tasks::{Registry, TokioSpawner};
use background_tasks_consumer::{Delivery, MemoryQueue, MemoryReceipt, Message, ReceiptVoid, Release, Source, consumer};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// A queue that counts the calls to `extend`.
struct Counting {
    queue: MemoryQueue,
    extensions: Arc<AtomicUsize>,
    /// Whether the next response to `receive` is late by one lease, as if the process were frozen.
    is_late: AtomicBool,
}

impl Counting {
    fn new(queue: &MemoryQueue, is_late: bool) -> Self {
        Self { queue: queue.clone(), extensions: Arc::default(), is_late: is_late.into() }
    }
}

impl Source for Counting {
    type Receipt = MemoryReceipt;
    type Error = ReceiptVoid;

    fn lease(&self) -> Option<Duration> {
        self.queue.lease()
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<MemoryReceipt>>, ReceiptVoid> {
        let received = self.queue.receive(most).await;
        if self.is_late.swap(false, SeqCst) {
            tokio::time::sleep(self.queue.lease().unwrap()).await;
        }
        received
    }

    async fn ack(&self, receipt: &mut MemoryReceipt) -> Result<(), ReceiptVoid> {
        self.queue.ack(receipt).await
    }

    async fn extend(&self, receipt: &mut MemoryReceipt) -> Result<(), ReceiptVoid> {
        self.queue.extend(receipt).await?;
        self.extensions.fetch_add(1, SeqCst);
        Ok(())
    }

    async fn release(&self, receipt: &mut MemoryReceipt, release: Release) -> Result<(), ReceiptVoid> {
        self.queue.release(receipt, release).await
    }

    async fn dead_letter(&self, delivery: &Delivery, receipt: &mut MemoryReceipt, reason: &str) -> Result<(), ReceiptVoid> {
        self.queue.dead_letter(delivery, receipt, reason).await
    }

    fn poll_interval(&self) -> Duration {
        self.queue.poll_interval()
    }
}

/// When the late response arrives, the lease of the message has expired, so another consumer may have the message.
#[tokio::test]
async fn message_that_arrives_after_its_lease_is_not_handled() {
    let queue = MemoryQueue::new(Duration::from_secs(3));
    queue.send("");
    let (sender, mut attempts) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |delivery: Delivery| {
        sender.send(delivery.attempt()).unwrap();
        async { Ok::<_, ReceiptVoid>(()) }
    };
    let registry = Registry::new(TokioSpawner);
    consumer(Counting::new(&queue, true)).serve(&registry, "job", handler).unwrap();
    assert_eq!(attempts.recv().await, Some(2));
    assert!(registry.shutdown().await.is_clean());
}

/// A handler that blocks its thread must not delay the calls to `extend`, because a task on another thread makes these calls.
#[test]
fn handler_that_blocks_its_thread_keeps_its_lease() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let queue = MemoryQueue::new(Duration::from_secs(9));
    queue.send("");
    let source = Counting::new(&queue, false);
    let extensions = source.extensions.clone();
    let handler = move |delivery: Delivery| {
        let extensions = extensions.clone();
        async move {
            testing::poll_until(&"extensions of the lease", || extensions.load(SeqCst) >= 4);
            if delivery.attempt() == 1 { Ok(()) } else { Err("handled twice") }
        }
    };
    let registry = Registry::new(TokioSpawner);
    runtime.block_on(async {
        consumer(source).max_attempts(1).serve(&registry, "job", handler).unwrap();
        while !queue.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(registry.shutdown().await.is_clean());
    });
    assert!(queue.dead_letters().is_empty());
}
