//! Tests the conformance suite. The suite must accept the queue in memory. For each source with a bug, the suite must name the promise
//! that the bug breaks.

use background_tasks_consumer::conformance::{self, Broker};
use background_tasks_consumer::{Delivery, MemoryQueue, MemoryReceipt, Message, ReceiptVoid, Release, Source};
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    CutsPayload,
    NeverReturns,
    IgnoresMost,
    WaitsForMore,
    ShowsMessages,
    ForgetsAck,
    AcksAll,
    ForgetsRelease,
    DoesNotCount,
    IgnoresDelay,
    ForgetsExtension,
    KeepsReceipt,
    LosesMessages,
    ForgetsCopy,
    CopiesTwice,
    ForgetsDeletion,
    KeepsPrefetched,
}

struct Memory {
    queue: MemoryQueue,
    bug: Bug,
}

/// A source that has at most one bug.
struct Buggy {
    queue: MemoryQueue,
    bug: Bug,
    hoard: std::sync::Mutex<Vec<Message<MemoryReceipt>>>,
}

impl Broker for Memory {
    type Source = Buggy;

    async fn connect(&self) -> Buggy {
        Buggy { queue: self.queue.clone(), bug: self.bug, hoard: std::sync::Mutex::default() }
    }

    async fn send(&self, payload: String) {
        self.queue.send(payload);
    }

    async fn dead_letters(&self) -> Vec<Vec<u8>> {
        self.queue.dead_letters().iter().map(|(delivery, _)| delivery.payload().to_vec()).collect()
    }
}

impl Source for Buggy {
    type Receipt = MemoryReceipt;
    type Error = ReceiptVoid;

    fn lease(&self) -> Option<Duration> {
        Some(LEASE)
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message<MemoryReceipt>>, ReceiptVoid> {
        let count = match self.bug {
            Bug::IgnoresMost | Bug::KeepsPrefetched => 10,
            _ => most,
        };
        let mut received = self.queue.receive(count).await?;
        match self.bug {
            Bug::NeverReturns if received.is_empty() => futures_timer::Delay::new(Duration::from_secs(5)).await,
            Bug::WaitsForMore if received.len() < most => futures_timer::Delay::new(Duration::from_millis(800)).await,
            Bug::CutsPayload => received.iter_mut().for_each(|message| message.delivery = Delivery::new("cut")),
            Bug::DoesNotCount => {
                for message in &mut received {
                    message.delivery = message.delivery.clone().with_attempt(1);
                }
            }
            Bug::ShowsMessages => {
                for message in &mut received {
                    self.queue.release(&mut message.receipt, Release::Shutdown).await?;
                }
            }
            Bug::LosesMessages => {
                for message in received.iter_mut().filter(|message| message.delivery.attempt() > 1) {
                    self.queue.ack(&mut message.receipt).await?;
                }
                received.retain(|message| message.delivery.attempt() == 1);
            }
            Bug::KeepsPrefetched => {
                let mut hoard = self.hoard.lock().unwrap();
                hoard.extend(received);
                let count = most.min(hoard.len());
                return Ok(hoard.drain(..count).collect());
            }
            _ => {}
        }
        Ok(received)
    }

    async fn ack(&self, receipt: &mut MemoryReceipt) -> Result<(), ReceiptVoid> {
        match self.bug {
            Bug::ForgetsAck => Ok(()),
            Bug::AcksAll => {
                self.queue.ack(receipt).await?;
                while !self.queue.is_empty() {
                    futures_timer::Delay::new(LEASE).await;
                    for mut message in self.queue.receive(10).await? {
                        self.queue.ack(&mut message.receipt).await?;
                    }
                }
                Ok(())
            }
            _ => self.queue.ack(receipt).await,
        }
    }

    async fn extend(&self, receipt: &mut MemoryReceipt) -> Result<(), ReceiptVoid> {
        match self.bug {
            Bug::ForgetsExtension => Ok(()),
            Bug::KeepsReceipt => self.queue.extend(&mut receipt.clone()).await,
            _ => self.queue.extend(receipt).await,
        }
    }

    async fn release(&self, receipt: &mut MemoryReceipt, release: Release) -> Result<(), ReceiptVoid> {
        match self.bug {
            Bug::ForgetsRelease => Ok(()),
            Bug::IgnoresDelay => self.queue.release(receipt, Release::After(Duration::ZERO)).await,
            _ => self.queue.release(receipt, release).await,
        }
    }

    async fn dead_letter(&self, delivery: &Delivery, receipt: &mut MemoryReceipt, reason: &str) -> Result<(), ReceiptVoid> {
        match self.bug {
            Bug::ForgetsCopy => self.queue.ack(receipt).await,
            Bug::CopiesTwice => {
                self.queue.send_delivery(delivery.clone());
                for mut message in self.queue.receive(1).await? {
                    self.queue.dead_letter(&message.delivery, &mut message.receipt, reason).await?;
                }
                self.queue.ack(receipt).await
            }
            Bug::ForgetsDeletion => Ok(()),
            _ => self.queue.dead_letter(delivery, receipt, reason).await,
        }
    }

    fn poll_interval(&self) -> Duration {
        self.queue.poll_interval()
    }

    fn is_void(&self, _: &ReceiptVoid) -> bool {
        true
    }
}

/// Runs the suite up to three times, until it returns the expected result. If the machine stalls for longer than the lease, a message
/// expires within a check, and the suite names another promise.
fn assert_broken_promise(bug: Bug, expected: Option<&'static str>) {
    let empty = async || Memory { queue: MemoryQueue::new(LEASE), bug };
    let run = || smol::block_on(conformance::source(empty)).err().map(|violation| violation.promise());
    let mut results = Vec::new();
    while results.last() != Some(&expected) {
        assert!(results.len() < 3, "{expected:?}: {results:?}");
        results.push(run());
    }
}

#[test]
fn queue_in_memory_keeps_each_promise() {
    assert_broken_promise(Bug::None, None);
}

#[test]
fn suite_names_the_promise_that_a_source_breaks() {
    let bugs = [
        (Bug::CutsPayload, "a message arrives unchanged, at its first attempt"),
        (Bug::NeverReturns, "`receive` returns within about a second if the queue is empty"),
        (Bug::IgnoresMost, "`receive` returns at most `most` messages"),
        (Bug::WaitsForMore, "`receive` returns the messages that it has, and does not wait for more"),
        (Bug::ShowsMessages, "no other consumer receives a message that belongs to one"),
        (Bug::ForgetsAck, "an acknowledged message does not return"),
        (Bug::AcksAll, "each receipt settles one message"),
        (Bug::ForgetsRelease, "a message that was released at a shutdown is available immediately"),
        (Bug::DoesNotCount, "a message that was released after a failure returns with its next attempt"),
        (Bug::IgnoresDelay, "a delayed message returns when its delay has elapsed"),
        (Bug::ForgetsExtension, "an extended message belongs to its consumer beyond its first lease"),
        (Bug::KeepsReceipt, "an extended message belongs to its consumer beyond its first lease"),
        (Bug::LosesMessages, "a message that was not settled returns"),
        (Bug::ForgetsCopy, "a dead message moves to the dead-letter queue, once if the call is repeated"),
        (Bug::CopiesTwice, "a dead message moves to the dead-letter queue, once if the call is repeated"),
        (Bug::ForgetsDeletion, "a dead message moves to the dead-letter queue, once if the call is repeated"),
        (Bug::KeepsPrefetched, "`stop` returns the messages that were fetched in advance"),
    ];
    std::thread::scope(|scope| {
        for (bug, promise) in bugs {
            scope.spawn(move || assert_broken_promise(bug, Some(promise)));
        }
    });
}
