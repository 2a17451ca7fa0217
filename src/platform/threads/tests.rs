use super::*;
use std::sync::{Arc, Barrier};
use std::thread;

/// Starts a thread, waits until it exits, and returns its number.
fn number_of_new_thread() -> usize {
    thread::spawn(thread_number).join().unwrap()
}

/// Other tests of this process take numbers at the same time, so this test expects no particular number.
#[test]
fn threads_that_come_and_go_reuse_numbers() {
    const THREADS: usize = 64;
    let numbers: BTreeSet<_> = (0..THREADS).map(|_| number_of_new_thread()).collect();
    assert!(numbers.len() < THREADS, "no number was used twice");
}

#[test]
fn live_threads_have_distinct_numbers_and_keep_them() {
    const THREADS: usize = 64;
    let all_live = Arc::new(Barrier::new(THREADS));
    let threads = [(); THREADS].map(|()| {
        let all_live = all_live.clone();
        thread::spawn(move || {
            let number = thread_number();
            all_live.wait();
            assert_eq!(thread_number(), number);
            number
        })
    });
    let numbers: BTreeSet<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(numbers.len(), THREADS);
}

#[test]
fn smallest_returned_number_is_taken_first() {
    let mut numbers = Numbers { returned: BTreeSet::new(), next: 0 };
    assert_eq!([(); 4].map(|()| numbers.take()), [0, 1, 2, 3]);
    numbers.returned.extend([2, 1]);
    assert_eq!([(); 3].map(|()| numbers.take()), [1, 2, 4]);
}

/// Calls `thread_number` in a destructor that runs when the thread exits.
struct NumberOnDrop;

impl Drop for NumberOnDrop {
    fn drop(&mut self) {
        thread_number();
    }
}

/// Rust does not specify in which order a thread runs the two destructors. To test both orders, two threads create the two
/// thread-locals in opposite orders.
#[test]
fn destructor_of_a_thread_local_may_ask_for_the_number() {
    std::thread_local!(static ON_EXIT: NumberOnDrop = const { NumberOnDrop });
    let number_first = thread::spawn(|| {
        thread_number();
        ON_EXIT.with(|_| ());
    });
    let destructor_first = thread::spawn(|| {
        ON_EXIT.with(|_| ());
        thread_number();
    });
    number_first.join().unwrap();
    destructor_first.join().unwrap();
}
