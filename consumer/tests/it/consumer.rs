//! Tests the promises of the consumer's loop. The tests set the clock.

use crate::simulation::{LEASE, Simulation};
use background_tasks::RejectReason;
use background_tasks_consumer::{Delivery, Failure, MemoryQueue, Release, Source as _};
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Done = Result<(), String>;

async fn complete(_: Delivery) -> Done {
    Ok(())
}

async fn never_ends(_: Delivery) -> Done {
    pending().await
}

async fn fail(_: Delivery) -> Done {
    Err("no mailbox".into())
}

/// Returns a handler that waits for this number of seconds, and a counter of its calls.
fn slow(sim: &Simulation, seconds: u64) -> (Arc<AtomicUsize>, impl Fn(Delivery) -> Wait + Clone + Send + Sync + 'static) {
    let (calls, clock) = (Arc::new(AtomicUsize::new(0)), sim.clock.clone());
    let counter = calls.clone();
    (calls, move |_| {
        counter.fetch_add(1, SeqCst);
        let sleep = clock.sleep(Duration::from_secs(seconds));
        Box::pin(async move {
            sleep.await;
            Ok(())
        }) as Wait
    })
}

type Wait = std::pin::Pin<Box<dyn Future<Output = Done> + Send>>;

#[test]
fn completed_messages_are_acknowledged() {
    let sim = Simulation::new();
    sim.send(100);
    sim.consumer().serve(&sim.registry, "job", complete).unwrap();
    sim.run();
    assert!(sim.queue.is_empty());
    let summary = sim.shutdown();
    // The 101st completed task is the consumer itself. The shutdown ends the pause that the consumer makes without messages.
    assert_eq!(summary.unwrap().completed, 101);
    assert_eq!(sim.faults.stops.load(SeqCst), 1);
    sim.assert_losses(&[]);
}

#[test]
fn drained_registry_rejects_consumer() {
    let sim = Simulation::new();
    assert!(sim.shutdown().is_some());
    assert_eq!(sim.consumer().serve(&sim.registry, "job", complete), Err(RejectReason::Drained));
}

#[test]
fn messages_of_an_unfinished_receive_are_released_at_shutdown() {
    let sim = Simulation::new();
    sim.send(5);
    *sim.faults.receive_delay.lock().unwrap() = Duration::from_secs(1);
    sim.consumer().serve(&sim.registry, "job", complete).unwrap();
    sim.run();
    assert_eq!(sim.queue.visible(), 0, "the broker has handed out the messages");
    assert_eq!(sim.shutdown(), None, "the consumer waits for the response");
    sim.advance_secs(1);
    assert_eq!(sim.queue.visible(), 5);
    assert!(sim.registry.is_drained());
}

#[test]
fn receive_that_never_ends_holds_the_drain_for_one_lease() {
    let sim = Simulation::new();
    *sim.faults.receive_delay.lock().unwrap() = Duration::MAX;
    sim.consumer().serve(&sim.registry, "job", complete).unwrap();
    sim.run();
    assert_eq!(sim.shutdown(), None);
    sim.advance_secs(LEASE.as_secs() - 1);
    assert!(!sim.registry.is_drained());
    sim.advance_secs(1);
    assert!(sim.registry.is_drained());
    sim.assert_losses(&["consumer failed: cannot receive messages: the broker does not respond"]);
}

#[test]
fn consumer_receives_no_more_messages_than_it_has_permits() {
    let sim = Simulation::new();
    sim.send(10);
    let (calls, handler) = slow(&sim, 5);
    sim.consumer().concurrency(3).serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(4);
    assert_eq!((calls.load(SeqCst), sim.queue.visible()), (3, 7));
    assert_eq!(*sim.faults.asked.lock().unwrap(), [3]);
    sim.advance_secs(1);
    assert_eq!((calls.load(SeqCst), sim.queue.visible()), (6, 4));
    // The next call to `receive` asks for as many messages as permits are free.
    assert_eq!(*sim.faults.asked.lock().unwrap(), [3, 3]);
}

#[test]
fn busy_consumer_returns_prefetched_messages_when_shutdown_starts() {
    let sim = Simulation::new();
    sim.send(1);
    sim.consumer().concurrency(1).serve(&sim.registry, "job", never_ends).unwrap();
    sim.run();
    assert_eq!(sim.shutdown(), None);
    assert_eq!(sim.faults.stops.load(SeqCst), 1);
}

#[test]
fn message_that_waits_for_a_permit_of_the_registry_is_extended() {
    let sim = Simulation::with_limit(1);
    sim.send(2);
    let (calls, handler) = slow(&sim, 100);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(99);
    assert_eq!((calls.load(SeqCst), sim.queue.visible()), (1, 0));
    sim.advance_secs(101);
    assert!(sim.queue.is_empty());
    assert_eq!(calls.load(SeqCst), 2);
}

#[test]
fn aborted_handlers_release_their_messages_before_the_drain_ends() {
    let sim = Simulation::new();
    sim.send(4);
    sim.consumer().serve(&sim.registry, "job", never_ends).unwrap();
    sim.advance_secs(100);
    assert_eq!(sim.shutdown(), None);
    assert_eq!(sim.queue.visible(), 0);
    sim.registry.abort();
    sim.run();
    assert_eq!(sim.queue.visible(), 4, "the messages are released, and not when their leases expire");
    assert!(sim.registry.is_drained());
    assert_eq!(sim.registry.summary().aborted, 4);
}

#[test]
fn handlers_continue_with_extensions_during_the_drain() {
    let sim = Simulation::new();
    sim.send(1);
    let (calls, handler) = slow(&sim, 100);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    assert_eq!(sim.shutdown(), None);
    sim.advance_secs(100);
    assert!(sim.registry.is_drained() && sim.queue.is_empty());
    assert_eq!(calls.load(SeqCst), 1);
}

#[test]
fn handler_longer_than_the_lease_runs_once() {
    let sim = Simulation::new();
    sim.send(1);
    let (calls, handler) = slow(&sim, 305);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(305);
    assert!(sim.queue.is_empty());
    assert_eq!((calls.load(SeqCst), sim.faults.extensions.load(SeqCst)), (1, 30));
    sim.assert_losses(&[]);
}

/// The broker starts the lease at some moment during the call, so the consumer counts it from the start of the call.
#[test]
fn message_of_a_slow_receive_is_extended_in_time() {
    let sim = Simulation::new();
    sim.send(1);
    *sim.faults.receive_delay.lock().unwrap() = LEASE * 9 / 10;
    let (calls, handler) = slow(&sim, 60);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    *sim.faults.receive_delay.lock().unwrap() = Duration::ZERO;
    sim.advance(LEASE * 3);
    assert!(sim.queue.is_empty());
    assert_eq!(calls.load(SeqCst), 1);
    sim.assert_losses(&[]);
}

#[test]
fn lease_is_counted_from_the_start_of_a_slow_extension() {
    let sim = Simulation::new();
    sim.send(1);
    // Each response arrives after the next extension is due, so the next extension starts immediately.
    *sim.faults.extension_delay.lock().unwrap() = LEASE * 9 / 20;
    let (calls, handler) = slow(&sim, 200);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(240);
    assert!(sim.queue.is_empty());
    assert_eq!(calls.load(SeqCst), 1);
    sim.assert_losses(&[]);
}

/// At 27 seconds, three seconds of the lease are left.
#[test]
fn call_for_a_message_of_a_slow_receive_ends_with_its_lease() {
    let sim = Simulation::new();
    sim.send(1);
    *sim.faults.receive_delay.lock().unwrap() = LEASE * 9 / 10;
    sim.consumer().concurrency(1).serve(&sim.registry, "job", complete).unwrap();
    sim.faults.fail_calls.store(true, SeqCst);
    sim.advance_secs(29);
    sim.assert_losses(&[]);
    sim.advance_secs(1);
    sim.assert_losses(&["job failed: done, but not acknowledged: broken"]);
}

#[test]
fn ack_waits_for_an_extension_and_uses_its_receipt() {
    let sim = Simulation::new();
    sim.send(1);
    *sim.faults.extension_delay.lock().unwrap() = Duration::from_secs(5);
    // The handler ends before the response to the call of `extend` arrives.
    let (calls, handler) = slow(&sim, 12);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(60);
    assert!(sim.queue.is_empty());
    assert_eq!(calls.load(SeqCst), 1);
    sim.assert_losses(&[]);
}

#[test]
fn failed_extension_is_repeated_before_the_lease_expires() {
    let sim = Simulation::new();
    sim.send(1);
    let (calls, handler) = slow(&sim, 40);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(1);
    sim.faults.fail_calls.store(true, SeqCst);
    sim.advance_secs(24); // the extensions after 10, 13, 16, 19, 22 and 25 seconds fail
    sim.faults.fail_calls.store(false, SeqCst);
    sim.advance_secs(30);
    assert!(sim.queue.is_empty());
    assert_eq!(calls.load(SeqCst), 1);
}

#[test]
fn ack_is_repeated_until_the_lease_expires_and_then_reported() {
    let sim = Simulation::new();
    sim.send(1);
    let (calls, handler) = slow(&sim, 2);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.faults.fail_calls.store(true, SeqCst);
    sim.advance_secs(29);
    sim.assert_losses(&[]);
    assert!(sim.faults.calls.load(SeqCst) > 20, "repeated");
    sim.faults.fail_calls.store(false, SeqCst);
    sim.advance_secs(1);
    assert!(sim.queue.is_empty());

    sim.send(1);
    sim.faults.fail_calls.store(true, SeqCst);
    sim.advance_secs(31);
    sim.assert_losses(&["job failed: done, but not acknowledged: broken"]);
    sim.faults.fail_calls.store(false, SeqCst);
    sim.advance_secs(60);
    assert!(sim.queue.is_empty());
    assert_eq!(calls.load(SeqCst), 3, "handled again");
}

#[test]
fn ack_without_response_ends_with_the_lease() {
    let sim = Simulation::new();
    sim.send(1);
    sim.consumer().serve(&sim.registry, "job", complete).unwrap();
    sim.faults.hang_calls.store(true, SeqCst);
    sim.run();
    assert_eq!(sim.shutdown(), None);
    sim.advance(LEASE);
    assert!(sim.registry.is_drained());
    sim.assert_losses(&[
        "consumer failed: cannot stop receiving: the broker does not respond",
        "job failed: done, but not acknowledged: the broker does not respond",
    ]);
}

/// The message stays unsettled until the connection closes, so this must be reported.
#[test]
fn release_without_response_is_reported_if_the_source_has_no_lease() {
    let sim = Simulation::new();
    sim.faults.has_no_lease.store(true, SeqCst);
    sim.send(1);
    sim.consumer().serve(&sim.registry, "job", never_ends).unwrap();
    sim.run();
    assert_eq!(sim.shutdown(), None);
    sim.faults.hang_calls.store(true, SeqCst);
    sim.registry.abort();
    sim.advance_secs(9);
    assert!(!sim.registry.is_drained());
    sim.advance_secs(1);
    assert!(sim.registry.is_drained());
    sim.assert_losses(&["job was aborted", "consumer failed: cannot release message \"1\": the broker does not respond"]);
}

#[test]
fn stop_without_response_is_reported() {
    let sim = Simulation::new();
    sim.consumer().serve(&sim.registry, "job", complete).unwrap();
    sim.run();
    sim.faults.hang_calls.store(true, SeqCst);
    assert_eq!(sim.shutdown(), None);
    sim.advance_secs(9);
    assert!(!sim.registry.is_drained());
    sim.advance_secs(1);
    assert!(sim.registry.is_drained());
    sim.assert_losses(&["consumer failed: cannot stop receiving: the broker does not respond"]);
}

#[test]
fn call_with_a_void_receipt_is_not_repeated() {
    let sim = Simulation::new();
    sim.send(1);
    sim.faults.void_receipts.store(true, SeqCst);
    sim.consumer().serve(&sim.registry, "job", complete).unwrap();
    sim.advance_secs(20);
    sim.assert_losses(&["job failed: done, but not acknowledged: void"]);
    assert_eq!(sim.faults.calls.load(SeqCst), 1);
}

#[test]
fn worker_that_was_frozen_for_a_lease_reports_that_its_message_is_not_acknowledged() {
    let sim = Simulation::new();
    sim.send(1);
    let (_, handler) = slow(&sim, 2);
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    sim.freeze(LEASE);
    assert_eq!(sim.steal(), 2);
    sim.advance_secs(0);
    sim.assert_losses(&["job failed: done, but not acknowledged: void"]);
    assert_eq!(sim.faults.calls.load(SeqCst), 1);
}

#[test]
fn message_with_an_expired_lease_is_left_to_the_other_consumer() {
    let sim = Simulation::new();
    sim.send(1);
    let clock = sim.clock.clone();
    let handler = move |_| {
        let sleep = clock.sleep(Duration::from_secs(45));
        async move {
            sleep.await;
            Err::<(), _>(Failure::dead("late"))
        }
    };
    sim.consumer().concurrency(1).serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    sim.faults.hang_calls.store(true, SeqCst);
    sim.advance_secs(44);
    sim.faults.hang_calls.store(false, SeqCst);
    sim.advance_secs(1);
    assert_eq!(sim.queue.dead_letters().len(), 0);
    assert_eq!(sim.faults.calls.load(SeqCst), 0);
    sim.assert_losses(&["job failed: late (attempt 1; cannot move it to the dead letters: the lease has expired)"]);
}

#[test]
fn failed_message_returns_after_its_backoff() {
    let sim = Simulation::new();
    sim.send(1);
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let (log, clock) = (attempts.clone(), sim.clock.clone());
    let handler = move |delivery: Delivery| {
        log.lock().unwrap().push((delivery.attempt(), clock.now()));
        fail(delivery)
    };
    let consumer = sim.consumer().backoff(Duration::from_secs(10), Duration::from_secs(30)).max_attempts(4);
    consumer.serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(120);
    let attempts = attempts.lock().unwrap();
    assert_eq!(attempts.iter().map(|attempt| attempt.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for (pair, longest) in attempts.windows(2).zip([10, 20, 30]) {
        let delay = pair[1].1.saturating_sub(pair[0].1).as_millis();
        assert!((longest * 500..=longest * 1000 + 100).contains(&delay), "{attempts:?}");
    }
    sim.assert_losses(&[
        "job failed: no mailbox",
        "job failed: no mailbox",
        "job failed: no mailbox",
        "job failed: no mailbox (attempt 4; it is dead)",
    ]);
    assert_eq!(sim.queue.dead_letters()[0].1, "no mailbox");
}

#[test]
fn failure_chooses_the_delay_or_death() {
    let sim = Simulation::new();
    sim.queue.send("later");
    sim.queue.send("never");
    let handler = |delivery: Delivery| async move {
        match (delivery.payload(), delivery.attempt()) {
            (b"never", _) => Err(Failure::dead("no such user")),
            (_, 1) => Err(Failure::retry_after("busy", Duration::from_secs(77))),
            _ => Ok(()),
        }
    };
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(1);
    assert_eq!(sim.queue.dead_letters().len(), 1);
    sim.advance_secs(75);
    assert_eq!(sim.queue.len(), 1);
    sim.advance_secs(2);
    assert!(sim.queue.is_empty());
    sim.assert_losses(&["job failed: busy", "job failed: no such user (attempt 1; it is dead)"]);
}

/// For example, a message cannot become a dead letter if the dead-letter queue of RabbitMQ was deleted. Without the retry, the consumer
/// would hold the message until its connection closes.
#[test]
fn message_that_cannot_be_dead_is_retried_if_the_source_has_no_lease() {
    let sim = Simulation::new();
    sim.faults.has_no_lease.store(true, SeqCst);
    sim.faults.fail_dead_letters.store(true, SeqCst);
    sim.send(1);
    let backoff = Duration::from_secs(4);
    sim.consumer().max_attempts(1).backoff(backoff, backoff).serve(&sim.registry, "job", fail).unwrap();
    sim.advance_secs(9);
    sim.assert_losses(&[]);
    sim.advance_secs(1);
    let first = "job failed: no mailbox (attempt 1; cannot move it to the dead letters: broken)";
    sim.assert_losses(&[first]);
    sim.advance_secs(14); // the backoff, and another ten seconds of calls
    let second = "job failed: not handled: 1 attempts have not settled message \"1\"; cannot move it to the dead letters: broken";
    sim.assert_losses(&[first, second]);
    sim.faults.fail_dead_letters.store(false, SeqCst);
    sim.advance_secs(4);
    assert_eq!(sim.queue.dead_letters().len(), 1);
}

/// Without the repetition, the consumer would keep the message until its connection closes.
#[test]
fn failed_release_is_repeated_after_the_backoff_if_the_source_has_no_lease() {
    let sim = Simulation::new();
    sim.faults.has_no_lease.store(true, SeqCst);
    sim.faults.cannot_delay.store(true, SeqCst);
    sim.send(1);
    let handler = |delivery: Delivery| async move { if delivery.attempt() == 1 { Err("busy") } else { Ok(()) } };
    let backoff = Duration::from_secs(4);
    sim.consumer().concurrency(1).backoff(backoff, backoff).serve(&sim.registry, "job", handler).unwrap();
    sim.faults.fail_calls.store(true, SeqCst);
    sim.advance_secs(14); // the backoff, and ten seconds of calls
    sim.assert_losses(&["job failed: busy", "consumer failed: cannot release message \"1\": broken"]);
    sim.faults.fail_calls.store(false, SeqCst);
    sim.advance_secs(5);
    assert!(sim.queue.is_empty());
}

#[test]
fn failed_release_is_repeated_once_after_shutdown_has_started() {
    let sim = Simulation::new();
    sim.faults.has_no_lease.store(true, SeqCst);
    sim.faults.cannot_delay.store(true, SeqCst);
    sim.send(1);
    let backoff = Duration::from_secs(3600);
    sim.consumer().backoff(backoff, backoff).serve(&sim.registry, "job", fail).unwrap();
    sim.run();
    sim.faults.fail_calls.store(true, SeqCst);
    assert_eq!(sim.shutdown(), None);
    sim.advance_secs(10);
    assert!(sim.registry.is_drained());
    sim.assert_losses(&[
        "job failed: no mailbox",
        "consumer failed: cannot stop receiving: broken",
        "consumer failed: cannot release message \"1\": broken",
    ]);
}

#[test]
fn reason_of_a_dead_message_is_truncated() {
    let sim = Simulation::new();
    sim.send(1);
    let handler = |_| async { Err::<(), _>("é".repeat(1001)) };
    sim.consumer().max_attempts(1).serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    assert_eq!(sim.queue.dead_letters()[0].1, "é".repeat(1000));
}

/// An invalid receipt means that the broker has taken the message back, so the consumer must not release the message.
#[test]
fn message_whose_receipt_is_void_is_not_released() {
    let sim = Simulation::new();
    sim.faults.has_no_lease.store(true, SeqCst);
    sim.faults.void_receipts.store(true, SeqCst);
    sim.send(1);
    sim.consumer().max_attempts(1).serve(&sim.registry, "job", fail).unwrap();
    sim.advance_secs(20);
    sim.assert_losses(&["job failed: no mailbox (attempt 1; cannot move it to the dead letters: void)"]);
    assert_eq!(sim.faults.calls.load(SeqCst), 1);
}

#[test]
fn panic_is_a_failed_attempt() {
    let sim = Simulation::new();
    sim.send(1);
    let handler = |_| -> Wait { panic!("poison") };
    sim.consumer().max_attempts(3).serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(60);
    assert_eq!(sim.queue.dead_letters()[0].1, "panicked: poison");
    assert_eq!(sim.registry.summary().panicked, 3);
}

#[test]
fn message_that_kills_its_process_is_buried_unread() {
    let sim = Simulation::new();
    sim.send(1);
    // The message was received by two processes that died before the end of their attempts.
    for _ in 0..2 {
        sim.steal();
        sim.advance(LEASE);
    }
    let (calls, handler) = slow(&sim, 0);
    sim.consumer().max_attempts(2).serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    assert_eq!(calls.load(SeqCst), 0);
    assert_eq!(sim.queue.dead_letters()[0].1, "not handled: 2 attempts have not settled message \"1\"");
    sim.assert_losses(&["job failed: not handled: 2 attempts have not settled message \"1\""]);
}

#[test]
fn full_registry_reports_a_message_that_is_buried_unread() {
    let sim = Simulation::with_limit(1);
    sim.send(1);
    sim.steal();
    sim.advance(LEASE);
    sim.registry.run(pending::<()>());
    sim.consumer().max_attempts(1).serve(&sim.registry, "job", complete).unwrap();
    sim.run();
    assert_eq!(sim.queue.dead_letters().len(), 1);
    sim.assert_losses(&["job failed: not handled: 1 attempts have not settled message \"1\""]);
}

#[test]
fn shutdown_charges_no_attempt_where_the_queue_can_do_so() {
    let sim = Simulation::new();
    sim.send(1);
    sim.consumer().serve(&sim.registry, "job", never_ends).unwrap();
    sim.run();
    sim.shutdown();
    sim.registry.abort();
    sim.run();
    assert!(sim.registry.is_drained());
    assert_eq!(sim.steal(), 1, "the next attempt is the first again");
}

/// A broker that counts a released message would deliver it once more than `max_attempts`, and no handler would have run.
#[test]
fn shutdown_does_not_release_a_message_at_its_last_attempt() {
    let sim = Simulation::new();
    sim.send(1);
    *sim.faults.receive_delay.lock().unwrap() = Duration::from_secs(1);
    sim.consumer().max_attempts(1).serve(&sim.registry, "job", complete).unwrap();
    sim.run();
    assert_eq!(sim.shutdown(), None);
    sim.advance_secs(1);
    assert!(sim.queue.is_empty() && sim.registry.is_drained());
    sim.assert_losses(&[]);
}

#[test]
fn message_at_its_last_attempt_waits_for_a_permit_during_the_drain() {
    let sim = Simulation::with_limit(1);
    sim.send(2);
    let (calls, handler) = slow(&sim, 5);
    sim.consumer().max_attempts(1).serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    assert_eq!((calls.load(SeqCst), sim.shutdown()), (1, None));
    sim.advance_secs(10);
    assert!(sim.queue.is_empty() && sim.registry.is_drained());
    assert_eq!(calls.load(SeqCst), 2);
    sim.assert_losses(&[]);
}

#[test]
fn message_that_waits_for_a_permit_is_released_at_shutdown() {
    let sim = Simulation::with_limit(1);
    sim.send(2);
    let (calls, handler) = slow(&sim, 5);
    sim.consumer().max_attempts(2).serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    assert_eq!(sim.shutdown(), None);
    assert_eq!((calls.load(SeqCst), sim.queue.visible()), (1, 1));
    assert_eq!(sim.steal(), 1, "no attempt is charged");
}

#[test]
fn abort_outside_a_shutdown_is_a_failed_attempt() {
    let sim = Simulation::new();
    sim.send(1);
    sim.consumer().max_attempts(1).serve(&sim.registry, "job", never_ends).unwrap();
    sim.run();
    let task = sim.registry.tasks().into_iter().find(|task| task.name() == Some("job")).unwrap();
    sim.registry.abort_task(task.id().unwrap()).unwrap();
    sim.run();
    assert_eq!(sim.queue.dead_letters()[0].1, "the task was aborted or dropped");
}

#[test]
fn source_that_cannot_delay_makes_the_consumer_hold_the_message() {
    let sim = Simulation::new();
    sim.send(1);
    sim.faults.cannot_delay.store(true, SeqCst);
    let handler = |delivery: Delivery| async move {
        if delivery.attempt() == 1 { Err(Failure::retry_after("busy", Duration::from_secs(100))) } else { Ok(()) }
    };
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.advance_secs(99);
    assert_eq!((sim.queue.len(), sim.queue.visible()), (1, 0));
    sim.assert_losses(&["job failed: busy"]);
    sim.advance_secs(2);
    assert!(sim.queue.is_empty());
}

#[test]
fn shutdown_releases_held_messages() {
    let sim = Simulation::new();
    sim.send(1);
    sim.faults.cannot_delay.store(true, SeqCst);
    sim.consumer().backoff(Duration::from_secs(3600), Duration::from_secs(3600)).serve(&sim.registry, "job", fail).unwrap();
    sim.run();
    assert_eq!(sim.queue.visible(), 0);
    assert!(sim.shutdown().is_some());
    assert_eq!(sim.queue.visible(), 1);
}

#[test]
fn attempt_that_exceeds_its_time_limit_has_failed() {
    let sim = Simulation::new();
    sim.send(1);
    let consumer = sim.consumer().timeout(Duration::from_secs(90)).max_attempts(1);
    consumer.serve(&sim.registry, "job", never_ends).unwrap();
    sim.advance_secs(89);
    sim.assert_losses(&[]);
    sim.advance_secs(1);
    sim.assert_losses(&["job failed: timed out after 90s (attempt 1; it is dead)"]);
}

#[test]
fn outage_is_reported_once_and_survived() {
    let sim = Simulation::new();
    sim.faults.fail_receive.store(true, SeqCst);
    sim.consumer().serve(&sim.registry, "job", complete).unwrap();
    sim.advance_secs(60);
    sim.assert_losses(&["consumer failed: cannot receive messages: broken"]);
    let receives = sim.faults.receives.load(SeqCst);
    assert!((10..=20).contains(&receives), "{receives} in a minute");
    sim.faults.fail_receive.store(false, SeqCst);
    sim.send(1);
    sim.advance_secs(5);
    assert!(sim.queue.is_empty());
    sim.faults.fail_receive.store(true, SeqCst);
    sim.advance_secs(1);
    assert!(sim.shutdown().is_some(), "the pause ends at the shutdown");
    sim.assert_losses(&["consumer failed: cannot receive messages: broken"; 2]);
}

#[test]
fn panic_of_the_source_starts_the_shutdown() {
    let sim = Simulation::new();
    sim.consumer().serve(&sim.registry, "job", complete).unwrap();
    sim.run();
    sim.faults.panic_in_receive.store(true, SeqCst);
    sim.advance_secs(1);
    assert!(sim.registry.is_drained());
    sim.assert_losses(&["consumer panicked: the source panics"]);
}

#[test]
fn memory_queue_survives_the_longest_durations_and_repeated_calls() {
    smol::block_on(async {
        let queue = MemoryQueue::with_clock(Duration::MAX, || Duration::from_secs(1));
        queue.send("");
        let mut receipt = queue.receive(1).await.unwrap().remove(0).receipt;
        queue.extend(&mut receipt).await.unwrap();
        // The second call repeats the first call, as after a lost response.
        for _ in 0..2 {
            queue.release(&mut receipt, Release::Shutdown).await.unwrap();
        }
        let mut message = queue.receive(1).await.unwrap().remove(0);
        assert_eq!(message.delivery.attempt(), 1);
        queue.release(&mut message.receipt, Release::After(Duration::MAX)).await.unwrap();
        assert_eq!((queue.len(), queue.visible()), (1, 0));
    });
}

#[cfg(feature = "json")]
#[test]
fn payload_that_is_not_json_is_dead() {
    let sim = Simulation::new();
    sim.queue.send("7");
    sim.queue.send("seven");
    let handler = |delivery: Delivery| async move {
        assert_eq!(delivery.json::<u32>()?, 7);
        Ok::<_, Failure>(())
    };
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    assert!(sim.queue.is_empty());
    assert_eq!(sim.queue.dead_letters()[0].1, "invalid payload: expected value at line 1 column 1");
}

#[test]
fn delivery_has_the_headers_of_its_message() {
    let sim = Simulation::new();
    sim.queue.send_delivery(Delivery::new("").with_id("order 7").with_header("traceparent", "00-1-2-01"));
    let handler = |delivery: Delivery| async move {
        assert_eq!(delivery.id(), "order 7");
        assert_eq!(delivery.header("Traceparent"), Some("00-1-2-01"));
        assert_eq!(delivery.headers().collect::<Vec<_>>(), [("traceparent", "00-1-2-01")]);
        Ok::<_, Failure>(())
    };
    sim.consumer().serve(&sim.registry, "job", handler).unwrap();
    sim.run();
    sim.assert_losses(&[]);
    assert!(sim.queue.is_empty());
}
