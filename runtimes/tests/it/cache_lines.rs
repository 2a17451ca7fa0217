//! Checks invariant H2 with a runtime for each thread: two threads that start tasks on one registry do not write to the same cache line.
//!
//! A test starts its own program in valgrind's tool `lackey`, which reports each store to memory. The threads take turns. Stores to
//! `MARK` separate these turns in the report. The test compares the cache lines that each thread wrote during its turn.

use crate::common::{self, Make};
use background_tasks::{LocalSpawner, Registry};
use background_tasks_runtimes::{CompioSpawner, GlommioSpawner, MonoioSpawner};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io::{BufRead, BufReader, Write, stdin};
use std::ops::Range;
use std::pin::Pin;
use std::process::{Command, Stdio, exit};
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::{env, fs, thread};

const TASKS: usize = 20;

/// The size of two cache lines of 64 bytes, because processors fetch cache lines in pairs.
const LINE: usize = 128;

/// A value that shares its cache line with no other value.
#[repr(align(128))]
struct Mark(AtomicUsize);

static MARK: Mark = Mark(AtomicUsize::new(0));

/// Counts the steps of the two threads. Both threads warm up. Then the first thread takes its turn, and the second thread takes its turn
/// after that.
static STEP: AtomicUsize = AtomicUsize::new(0);

/// Waits until the threads have reached this step. Writes only to the stack of this thread.
fn wait_for(step: usize) {
    while STEP.load(Ordering::SeqCst) < step {
        thread::yield_now();
    }
}

fn next_step() {
    STEP.fetch_add(1, Ordering::SeqCst);
}

/// Starts tasks that poll the signal and end at their second poll. Returns when all tasks have ended.
async fn tasks<S: LocalSpawner>(registry: &Registry<S>) {
    let left = Rc::new(Cell::new(TASKS));
    let main = Rc::new(RefCell::new(None::<Waker>));
    for _ in 0..TASKS {
        let (left, main) = (left.clone(), main.clone());
        let mut signal = registry.signal();
        let mut polled = false;
        registry.run_local(poll_fn(move |cx| {
            if Pin::new(&mut signal).poll(cx).is_pending() && !polled {
                polled = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            left.set(left.get() - 1);
            if let Some(main) = main.take() {
                main.wake();
            }
            Poll::Ready(())
        }));
    }
    let ended = |cx: &mut std::task::Context<'_>| {
        main.replace(Some(cx.waker().clone()));
        if left.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
    };
    poll_fn(ended).await;
}

/// Starts tasks on two threads. The threads take turns, and each thread marks the start and the end of its turn. Each thread has its own
/// runtime.
fn two_cores<S: LocalSpawner + Send + 'static>(registries: [Registry<S>; 2], make: Make) {
    let mut turns = 0..2;
    let cores = registries.map(|registry| {
        let turn = turns.next().unwrap();
        thread::spawn(move || {
            println!("\nstack {}", mapping_of(&raw const turn as usize));
            let mut drive = make().unwrap_or_else(|why| {
                println!("\nrefused {why}");
                exit(0);
            });
            drive(Box::pin(async move {
                tasks(&registry).await;
                tasks(&registry).await;
                next_step();
                wait_for(2 + turn);
                MARK.0.store(1, Ordering::SeqCst);
                tasks(&registry).await;
                MARK.0.store(2, Ordering::SeqCst);
                next_step();
                // Waits for the end of both turns. If this thread ended earlier, it would write during the turn of the other thread.
                wait_for(4);
            }));
        })
    });
    for core in cores {
        core.join().unwrap();
    }
}

fn one_for_both<S: Clone>(registry: Registry<S>) -> [Registry<S>; 2] {
    [registry.clone(), registry]
}

/// Returns the start and the end of the memory mapping that contains an address.
fn mapping_of(address: usize) -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let holds = |line: &&str| range(line.split(' ').next().unwrap().replace('-', " ").as_str()).contains(&address);
    maps.lines().find(holds).unwrap().split(' ').next().unwrap().replace('-', " ")
}

fn range(numbers: &str) -> Range<usize> {
    let (start, end) = numbers.split_once(' ').unwrap();
    usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap()
}

#[test]
#[ignore = "the other tests run this one, in valgrind"]
fn traced() {
    let Ok(runtime) = env::var("LINES_OF") else { return };
    println!("\nmark {:x} 0", &raw const MARK as usize);
    // Waits for the response of the reader, which shows that the reader has received the address of the mark.
    stdin().read_line(&mut String::new()).unwrap();
    match &*runtime {
        "compio" => two_cores(one_for_both(Registry::new(CompioSpawner)), common::compio_polling),
        "compio with a limit" => {
            let registry = Registry::builder(CompioSpawner).max_in_flight(1000).build();
            two_cores(one_for_both(registry), common::compio_polling);
        }
        "monoio" => two_cores(one_for_both(Registry::new(MonoioSpawner)), common::monoio_legacy),
        "glommio" => two_cores(one_for_both(Registry::new(GlommioSpawner)), common::glommio_io_uring),
        "glommio with two registries" => {
            two_cores([Registry::new(GlommioSpawner), Registry::new(GlommioSpawner)], common::glommio_io_uring);
        }
        other => panic!("unknown run: {other}"),
    }
}

/// The report of a run: the cache lines that each thread wrote.
#[derive(Default)]
struct Trace {
    marks: usize,
    written: [BTreeSet<usize>; 2],
    messages: String,
}

impl Trace {
    fn read(&mut self, line: &str, mark: Option<usize>) {
        if let Some(store) = line.strip_prefix(" S ").or_else(|| line.strip_prefix(" M ")) {
            let (address, size) = store.split_once(',').unwrap();
            let address = usize::from_str_radix(address, 16).unwrap();
            if Some(address) == mark {
                self.marks += 1;
            } else if self.marks % 2 == 1 {
                let last = address + size.parse::<usize>().unwrap() - 1;
                self.written[self.marks / 2 % 2].extend(address / LINE..=last / LINE);
            }
        } else if !line.starts_with("I ") && !line.starts_with(" L ") {
            self.messages = format!("{}{line}\n", self.messages);
        }
    }
}

/// A skipped test: the name of the missing tool, and the reason.
struct Skipped(&'static str, String);

/// Returns the addresses of the cache lines that both threads wrote. Returns an error if valgrind or the runtime does not work here.
fn written_by_both(runtime: &str) -> Result<Vec<usize>, Skipped> {
    let mut traced = Command::new("valgrind")
        .args(["--tool=lackey", "--trace-mem=yes", "--log-fd=2"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "cache_lines::traced", "--ignored", "--nocapture"])
        // With this setting, the allocator keeps freed memory in a cache for each thread. Threads then do not share the cache lines of
        // this memory.
        .envs([("LINES_OF", runtime), ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=10000")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|why| Skipped("valgrind", why.to_string()))?;
    let (mut input, output, trace) = (traced.stdin.take().unwrap(), traced.stdout.take().unwrap(), traced.stderr.take().unwrap());
    let mark = OnceLock::new();
    let mut stacks = Vec::new();
    let mut refused = Vec::new();
    let trace = thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut result = Trace::default();
            for line in BufReader::new(trace).split(b'\n').map_while(Result::ok) {
                result.read(&String::from_utf8_lossy(&line), mark.get().copied());
            }
            result
        });
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(numbers) = line.strip_prefix("mark ") {
                mark.set(range(numbers).start).unwrap();
                input.write_all(b"\n").unwrap();
            }
            stacks.extend(line.strip_prefix("stack ").map(range));
            refused.extend(line.strip_prefix("refused ").map(String::from));
        }
        reading.join().unwrap()
    });
    let status = traced.wait().unwrap();
    assert_ne!(status.code(), Some(101), "the run panicked in valgrind: {}", trace.messages);
    if let Some(why) = refused.pop() {
        return Err(Skipped("io_uring", why));
    }
    // Skips the test, because this is not a failure of the run. For example, valgrind may not support an instruction.
    if !status.success() {
        return Err(Skipped("valgrind", format!("it exited with {status}: {}", trace.messages)));
    }
    assert_eq!((trace.marks, stacks.len()), (4, 2), "{}", trace.messages);
    let [first, second] = trace.written;
    assert!(first.len() > TASKS && second.len() > TASKS, "{} and {} lines were written", first.len(), second.len());
    let both = (&first & &second).into_iter().map(|line| line * LINE);
    // Ignores the stacks, because a waiting thread writes to its stack during the turn of the other thread.
    Ok(both.filter(|address| !stacks.iter().any(|stack| stack.contains(address))).collect())
}

/// Returns the cache lines. After an error, reports the test as skipped.
fn or_skip(lines: Result<Vec<usize>, Skipped>) -> Option<Vec<usize>> {
    lines.inspect_err(|Skipped(what, why)| testing::skip(what, why)).ok()
}

fn no_line_is_shared(runtime: &str) {
    if let Some(lines) = or_skip(written_by_both(runtime)) {
        assert!(lines.is_empty(), "both threads write {lines:#x?}");
    }
}

#[test]
#[ignore = "needs valgrind, and is slow"]
fn compio() {
    no_line_is_shared("compio");
}

#[test]
#[ignore = "needs valgrind, and is slow"]
fn monoio() {
    no_line_is_shared("monoio");
}

/// glommio takes a lock for each task, so both threads write to this lock. The lock is a static, so its address is the same in each run.
#[test]
#[ignore = "needs valgrind, and is slow"]
fn glommio_shares_no_more_than_with_two_registries() {
    if let Some((one, two)) = or_skip(written_by_both("glommio")).zip(or_skip(written_by_both("glommio with two registries"))) {
        let more: Vec<_> = one.iter().filter(|line| !two.contains(line)).collect();
        assert!(more.is_empty(), "both threads write {more:#x?}");
    }
}

/// Shows that the other tests detect a shared cache line. All threads share the counter of a limit, so this test must find its cache
/// line.
#[test]
#[ignore = "needs valgrind, and is slow"]
fn a_limit_is_a_shared_line() {
    if let Some(lines) = or_skip(written_by_both("compio with a limit")) {
        assert!(!lines.is_empty());
    }
}
