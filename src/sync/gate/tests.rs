use super::*;

const NOTHING: Departure = Departure { permit: false, idle: false, drained: false };

fn leave(gate: &Gate) -> Departure {
    gate.leave().map_or(NOTHING, |before| gate.depart(before))
}

fn gate(word: usize, wraps: usize) -> Gate {
    Gate { word: AtomicUsize::new(word), wraps: AtomicUsize::new(wraps), services: AtomicUsize::new(0) }
}

#[test]
fn a_closed_and_empty_gate_stays_drained() {
    let gate = Gate::new();
    assert_eq!(gate.enter(), Ok(()));
    assert!(!gate.close(), "one task is in flight");
    assert_eq!(gate.enter(), Ok(()), "a draining gate accepts tasks");
    assert_eq!(leave(&gate), NOTHING);
    assert_eq!(leave(&gate), Departure { drained: true, ..NOTHING });
    assert_eq!(gate.enter(), Err(Refused::Drained));
    assert!(!gate.close(), "a gate drains only once");
}

#[test]
fn a_full_gate_refuses_and_does_not_overflow() {
    let gate = gate(COUNT, 0);
    assert_eq!(gate.enter_checked(), Err(Refused::Full));
    gate.close();
    assert_eq!(gate.enter_checked(), Err(Refused::Full));
    gate.leave();
    assert_eq!(gate.enter_checked(), Ok(()));
    assert_eq!(gate.snapshot().in_flight(), COUNT / ONE);
}

#[test]
fn a_refused_entry_is_invisible_and_leaves_no_trace() {
    let half = 1 << (ACCEPTED_BITS - 1);
    let gate = gate((half - 1) << ACCEPTED_SHIFT, 0);
    assert!(gate.close());
    let drained = gate.word.load(Ordering::Relaxed);
    assert_eq!(gate.enter(), Err(Refused::Drained));
    assert_eq!(gate.word.load(Ordering::Relaxed), drained);
    // This addition represents an entry that flips the top bit and has not been undone yet.
    gate.word.fetch_add(ACCEPTED_ONE + ONE, Ordering::Relaxed);
    let (accepted, snapshot) = gate.accepted();
    assert_eq!((accepted, snapshot.in_flight()), (half as u64 - 1, 0));
}

#[test]
fn accepted_is_exact_across_a_wrap() {
    let half = 1_u64 << (ACCEPTED_BITS - 1);
    let last = gate(usize::MAX << ACCEPTED_SHIFT, 1);
    assert_eq!(last.accepted().0, 2 * half - 1);
    last.enter().unwrap();
    assert_eq!(last.accepted().0, 2 * half);
    last.leave();
    last.enter().unwrap();
    assert_eq!(last.accepted().0, 2 * half + 1);
}

#[test]
fn accepted_is_corrected_while_a_flip_is_not_counted_yet() {
    let half = 1_u64 << (ACCEPTED_BITS - 1);
    assert_eq!(gate(1 << TOP, 0).accepted().0, half);
    assert_eq!(gate(0, 1).accepted().0, 2 * half);
}

#[test]
fn a_queued_waiter_is_not_overtaken() {
    let gate = Gate::new();
    assert_eq!((gate.enter_below(2, Permit::Own), gate.enter_below(2, Permit::Own)), (Ok(()), Ok(())));
    assert_eq!(gate.enter_below(2, Permit::Own), Err(Refused::Full));
    gate.request_permit();
    assert_eq!(gate.enter_in_turn(2, Permit::Own), Err(Refused::Full));
    assert_eq!(leave(&gate), Departure { permit: true, ..NOTHING });
    assert_eq!(gate.enter_below(2, Permit::Own), Err(Refused::Full), "a permit is free, and belongs to the waiter");
    assert_eq!(gate.enter_in_turn(2, Permit::Own), Ok(()));
    gate.cancel_permit_request();
    assert_eq!(leave(&gate), NOTHING);
    assert_eq!(gate.enter_below(2, Permit::Own), Ok(()));
}

#[test]
fn idleness_is_notified_once() {
    let gate = Gate::new();
    gate.enter().unwrap();
    gate.request_idle();
    assert_eq!(leave(&gate), Departure { idle: true, ..NOTHING });
    gate.enter().unwrap();
    assert_eq!(leave(&gate), NOTHING);
}

#[test]
fn a_task_without_a_permit_is_counted_apart() {
    let gate = Gate::new();
    assert_eq!((gate.enter_without_permit(), gate.enter_below(1, Permit::Own)), (Ok(()), Ok(())));
    assert_eq!(gate.enter_below(1, Permit::Own), Err(Refused::Full));
    assert_eq!((gate.snapshot().permits(), gate.snapshot().in_flight_with_limit()), (1, 2));
    gate.request_permit();
    assert_eq!(gate.enter_without_permit(), Ok(()), "an entry without a permit overtakes no waiter");
    assert_eq!(gate.leave_without_permit().map(|before| gate.depart(before)), Some(NOTHING), "no permit is released");
    assert_eq!(leave(&gate), Departure { permit: true, ..NOTHING });
    gate.cancel_permit_request();
    assert!(!gate.close(), "a task without a permit is in flight");
    assert_eq!(gate.enter_below(1, Permit::Own), Ok(()));
    assert_eq!(leave(&gate), NOTHING);
    gate.request_idle();
    let departure = gate.leave_without_permit().map(|before| gate.depart(before));
    assert_eq!(departure, Some(Departure { idle: true, drained: true, ..NOTHING }));
    assert_eq!(gate.enter_without_permit(), Err(Refused::Drained));
    assert_eq!(gate.accepted().0, 4);
}

#[test]
fn a_full_half_of_the_count_does_not_overflow() {
    let full = gate(WITHOUT_PERMIT, 0);
    assert_eq!(full.enter_without_permit(), Err(Refused::Full));
    assert_eq!(full.enter_below(MAX_PERMITS, Permit::Own), Ok(()));
    assert_eq!(full.snapshot().in_flight_with_limit(), MAX_PERMITS + 1);
    let full = gate(PERMITS, 0);
    assert_eq!(full.enter_below(MAX_PERMITS, Permit::Own), Err(Refused::Full));
    assert_eq!(full.enter_without_permit(), Ok(()));
    assert_eq!(full.snapshot().in_flight_with_limit(), MAX_PERMITS + 1);
}

#[test]
fn an_entry_in_place_of_an_ended_task_changes_only_the_accepted_count() {
    let half = 1 << (ACCEPTED_BITS - 1);
    let gate = gate((half - 2) << ACCEPTED_SHIFT, 0);
    assert_eq!(gate.enter(), Ok(()));
    let (before, _) = gate.accepted();
    gate.enter_again();
    assert_eq!(gate.wraps(), 1, "the top bit has flipped");
    assert_eq!((gate.accepted().0, gate.snapshot().in_flight()), (before + 1, 1));
    assert!(!gate.close());
    gate.enter_again();
    assert_eq!(leave(&gate), Departure { drained: true, ..NOTHING });
    assert_eq!(gate.accepted().0, before + 2);
}

#[test]
fn a_departure_notifies_waiters_for_idleness_while_only_services_remain() {
    let gate = Gate::new();
    for _ in 0..3 {
        assert_eq!(gate.enter(), Ok(()));
    }
    assert!(!gate.begin_service(), "nobody waits");
    gate.request_idle();
    assert_eq!(leave(&gate), Departure { idle: true, ..NOTHING });
    assert_eq!((gate.services().0, gate.snapshot().in_flight()), (1, 2));
    gate.request_idle();
    assert!(gate.begin_service(), "both tasks in flight are services now");
    gate.end_service();
    gate.end_service();
    assert_eq!(gate.services().0, 0);
}

#[test]
fn a_lent_permit_is_not_accepted() {
    let gate = gate(usize::MAX << ACCEPTED_SHIFT, 1);
    assert_eq!(gate.enter_below(1, Permit::Lent), Ok(()));
    assert_eq!((gate.accepted().0, gate.snapshot().permits()), ((1 << ACCEPTED_BITS) - 1, 1));
    assert_eq!(gate.enter_below(1, Permit::Own), Err(Refused::Full));
    assert_eq!(leave(&gate), NOTHING);
    assert_eq!(gate.enter_below(1, Permit::Own), Ok(()));
    assert_eq!(gate.accepted().0, 1 << ACCEPTED_BITS);
}
