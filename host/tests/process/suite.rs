//! What the tests demand of the programs.

use rustix::process::{Pid, Signal, kill_process};
use std::env;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes here; what takes longer hangs. The grace is longer still, unless a test says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

const TESTS: &[(&str, fn())] = &[
    ("a_blocked_executor_does_not_hold_it", a_blocked_executor_does_not_hold_it),
    ("a_second_signal_leaves_a_blocked_executor", a_second_signal_leaves_a_blocked_executor),
    ("a_second_signal_with_stdout_locked", a_second_signal_with_stdout_locked),
    ("an_error_drains_first", an_error_drains_first),
    ("a_panic_drains_first", a_panic_drains_first),
    ("the_end_of_the_program_drains", the_end_of_the_program_drains),
    ("nothing_is_told_of_nothing", nothing_is_told_of_nothing),
    ("one_phase_after_the_other", one_phase_after_the_other),
    ("terminated_is_for_late_callers_too", terminated_is_for_late_callers_too),
    ("sighup_is_not_for_the_host_unless_asked", sighup_is_not_for_the_host_unless_asked),
    ("a_signal_before_run_is_kept", a_signal_before_run_is_kept),
    ("a_shutdown_by_somebody_else", a_shutdown_by_somebody_else),
    ("critical_work_that_is_lost_is_a_failure", critical_work_that_is_lost_is_a_failure),
    ("critical_work_of_a_later_phase", critical_work_of_a_later_phase),
    ("a_program_that_finds_no_place_is_told_at_once", a_program_that_finds_no_place_is_told_at_once),
    ("a_program_that_finds_no_place_has_the_grace", a_program_that_finds_no_place_has_the_grace),
    ("a_program_that_outlives_its_registry_has_the_grace", a_program_that_outlives_its_registry_has_the_grace),
    ("a_signal_after_the_end_is_heard", a_signal_after_the_end_is_heard),
    ("sighup_does_not_insist", sighup_does_not_insist),
    ("a_start_up_that_hangs", a_start_up_that_hangs),
    ("a_run_that_is_dropped_ends_nothing", a_run_that_is_dropped_ends_nothing),
    ("a_grace_for_ever", a_grace_for_ever),
    ("a_task_is_aborted", a_task_is_aborted),
    ("a_runtime_that_hangs_does_not_hold_it", a_runtime_that_hangs_does_not_hold_it),
    ("what_no_registry_knows_of_does_not_hold_it", what_no_registry_knows_of_does_not_hold_it),
    ("nobody_reads_stderr", nobody_reads_stderr),
];

/// Runs those whose name has one of the arguments in it, all at once.
pub(crate) fn run() -> ExitCode {
    let wanted: Vec<_> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part));
    let tests: Vec<_> = TESTS.iter().filter(|(name, _)| is_wanted(name)).collect();
    let running = tests.into_iter().map(|(name, test)| {
        let thread = thread::Builder::new().name((*name).into());
        (*name, thread.spawn(test).unwrap())
    });
    let running: Vec<_> = running.collect();
    let mut failed = 0;
    for (name, test) in running {
        let passed = test.join().is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    ExitCode::from(u8::from(failed > 0))
}

const GRACE: &str = "0.5";
const BOUND: Duration = Duration::from_millis(1500);

/// The bound is the host's, the delays are the machine's: one of three times has to keep it.
#[track_caller]
fn within_a_second_of_the_grace(mut end: impl FnMut() -> Duration) {
    let took: Vec<_> = (0..3).map(|_| end()).take_while(|took| *took > BOUND).collect();
    assert!(took.len() < 3, "{took:?}");
}

/// Has the process stopped by the grace, and returns how long after the signal it was gone.
fn held_up(program: Program, named: &str) -> Duration {
    let mut process = program.with("GRACE", GRACE).start();
    process.out("ready");
    let began = Instant::now();
    process.signal(Signal::TERM);
    let ended = process.wait();
    let took = began.elapsed();
    ended.exited(1).told("the grace of 500ms is over: ").told(named);
    assert!(took >= Duration::from_millis(500), "{took:?}");
    took
}

fn a_blocked_executor_does_not_hold_it() {
    for (program, named) in
        [("tokio_blocked", "1 × blocker at "), ("executor_blocked", "1 × blocker at "), ("program_blocked", "1 × program at ")]
    {
        within_a_second_of_the_grace(|| {
            let took = held_up(Program::new(program), named);
            println!("{program} was gone {took:?} after SIGTERM");
            took
        });
    }
}

fn a_second_signal_leaves_a_blocked_executor() {
    for program in ["tokio_blocked", "executor_blocked", "program_blocked"] {
        let mut process = Program::new(program).start();
        process.out("ready");
        process.signal(Signal::TERM);
        process.err("draining: ");
        process.signal(Signal::INT);
        let ended = process.wait();
        ended.exited(130).told("left at once, ");
        // What was printed is flushed.
        assert_eq!(ended.said("no newline"), program != "program_blocked", "{ended:#?}");
    }
}

/// It cannot be flushed then.
fn a_second_signal_with_stdout_locked() {
    let mut process = Program::new("tokio_blocked").with("LOCKED", "1").start();
    process.out("ready");
    process.signal(Signal::INT);
    process.err("draining: ");
    process.signal(Signal::INT);
    process.wait().exited(130).told("left at once, ");
}

fn an_error_drains_first() {
    drains_first("error", 2).told("the program failed: broken");
}

fn a_panic_drains_first() {
    drains_first("panic", 101).told("broken");
}

fn the_end_of_the_program_drains() {
    drains_first("success", 0);
}

fn drains_first(program: &str, code: i32) -> Ended {
    let mut process = Program::new(program).start();
    process.err("draining: 1 in flight");
    process.release();
    let ended = process.wait();
    ended.exited(code).told("drained in ").told(": 1 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
    assert!(ended.said("late work is done"), "{ended:#?}");
    ended
}

fn nothing_is_told_of_nothing() {
    let ended = Program::new("nothing").start().wait();
    assert!(ended.exited(0).lines.is_empty(), "{ended:#?}");
}

fn one_phase_after_the_other() {
    let mut process = Program::new("phases").start();
    process.out("ready");
    process.signal(Signal::TERM);
    process.out("the requests are told");
    process.release();
    let ended = process.wait();
    ended.exited(0).told(": 4 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
    assert!(ended.said("the request ends, workers told: false"), "{ended:#?}");
    assert!(ended.said("its work is accepted: true") && ended.said("the request's work is done"), "{ended:#?}");
    let at = |text: &str| ended.lines.iter().position(|line| *line == Line::Out(text.into()));
    assert!(at("its work is accepted: true") < at("the workers are told"), "{ended:#?}");
}

fn terminated_is_for_late_callers_too() {
    let mut process = Program::new("terminated").start();
    process.out("ready");
    process.signal(Signal::INT);
    process.out("asked");
    process.wait().exited(7);
}

fn sighup_is_not_for_the_host_unless_asked() {
    let mut process = Program::new("waits").start();
    process.out("ready");
    process.signal(Signal::HUP);
    let ended = process.wait();
    assert_eq!(ended.status.signal(), Some(Signal::HUP.as_raw()), "{ended:#?}");

    let mut process = Program::new("waits_with_hangup").start();
    process.out("ready");
    process.signal(Signal::HUP);
    process.wait().exited(0).told("drained in ");
}

fn a_signal_before_run_is_kept() {
    Program::new("asked_before_run").start().wait().exited(0).told("drained in ");
}

fn a_shutdown_by_somebody_else() {
    let mut process = Program::new("shut_down_by_a_task").start();
    process.out("ready");
    process.release();
    process.wait().exited(0);
}

fn critical_work_that_is_lost_is_a_failure() {
    let mut process = Program::new("critical").start();
    process.err("ending, as the program cannot go on without lease at ");
    process.release();
    let ended = process.wait();
    ended.exited(2).told(" failed: lost").told("drained in ");
    assert!(ended.said("late work is done"), "{ended:#?}");
}

fn critical_work_of_a_later_phase() {
    let mut process = Program::new("critical_worker").start();
    process.out("ready");
    process.signal(Signal::TERM);
    process.wait().exited(2).told("ending, as the program cannot go on without lease at ");
}

fn a_program_that_finds_no_place_is_told_at_once() {
    let mut process = Program::new("full").start();
    process.out("ready");
    process.signal(Signal::TERM);
    process.out("told");
    process.signal(Signal::TERM);
    process.wait().exited(130);
}

fn a_program_that_finds_no_place_has_the_grace() {
    let mut process = Program::new("full").with("GRACE", GRACE).start();
    process.out("ready");
    process.signal(Signal::TERM);
    process.out("told");
    process.release();
    process.wait().exited(1).told("1 × program at ").told("aborted the last after ");
}

fn a_program_that_outlives_its_registry_has_the_grace() {
    let mut process = Program::new("drained_by_itself").with("GRACE", GRACE).start();
    process.out("ready");
    process.wait().exited(1).told("1 × program at ").told("aborted the last after ");
}

fn a_signal_after_the_end_is_heard() {
    within_a_second_of_the_grace(|| {
        let mut process = Program::new("main_hangs").with("GRACE", GRACE).start();
        process.out("ready");
        let began = Instant::now();
        process.signal(Signal::TERM);
        process.wait().exited(0).told("`main` has not returned");
        began.elapsed()
    });
}

/// A terminal that is closed may send it twice, and some managers after SIGTERM.
fn sighup_does_not_insist() {
    for first in [Signal::HUP, Signal::TERM] {
        let mut process = Program::new("hangup_with_work").start();
        process.out("ready");
        process.signal(first);
        process.err("draining: ");
        process.signal(Signal::HUP);
        process.release();
        let ended = process.wait();
        ended.exited(0).told("drained in ");
        assert!(ended.said("late work is done"), "{ended:#?}");
    }
}

fn a_start_up_that_hangs() {
    let mut process = Program::new("start_up_hangs").start();
    process.out("ready");
    process.signal(Signal::TERM);
    process.out("asked");
    process.signal(Signal::TERM);
    process.wait().exited(130).told("left at once, 0 in flight");
}

fn a_run_that_is_dropped_ends_nothing() {
    let mut process = Program::new("run_is_dropped").start();
    process.out("ready");
    process.signal(Signal::TERM);
    process.out("asked, told: false");
    process.signal(Signal::TERM);
    process.release();
    process.wait().exited(7);
}

fn a_grace_for_ever() {
    let mut process = Program::new("waits").with("GRACE", "1e19").start();
    process.out("ready");
    process.signal(Signal::TERM);
    process.wait().exited(0).told("drained in ");
}

fn a_task_is_aborted() {
    within_a_second_of_the_grace(|| {
        let took = held_up(Program::new("pending_task"), " was aborted after ");
        println!("an aborted task was gone {took:?} after SIGTERM");
        took
    });
}

fn a_runtime_that_hangs_does_not_hold_it() {
    within_a_second_of_the_grace(|| {
        let took = held_up(Program::new("runtime_hangs"), "1 × hangs at ");
        println!("a hanging runtime was gone {took:?} after SIGTERM");
        took
    });
}

/// All that a registry knows of has ended, so the grace is for `main`.
fn what_no_registry_knows_of_does_not_hold_it() {
    within_a_second_of_the_grace(|| {
        let mut process = Program::new("untracked_hangs").with("GRACE", GRACE).start();
        process.out("ready");
        let began = Instant::now();
        process.signal(Signal::TERM);
        process.wait().exited(0).told("drained in ");
        began.elapsed()
    });
}

/// The other end is open, and full. That holds the last line until the grace is over, and no exit code.
fn nobody_reads_stderr() {
    for (program, code) in [("runtime_hangs", 1), ("waits", 0)] {
        within_a_second_of_the_grace(|| {
            let (_ours, theirs) = full();
            let mut process = Program::new(program).with("GRACE", GRACE).start_with(theirs);
            process.out("ready");
            let began = Instant::now();
            process.signal(Signal::TERM);
            process.wait().exited(code);
            began.elapsed()
        });
    }
    let (_ours, theirs) = full();
    let mut process = Program::new("tokio_blocked").start_with(theirs);
    process.out("ready");
    process.signal(Signal::INT);
    process.signal(Signal::TERM);
    process.wait().exited(130);
}

fn full() -> (UnixStream, Stdio) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    while theirs.write(b".").is_ok() {}
    theirs.set_nonblocking(false).unwrap();
    (ours, OwnedFd::from(theirs).into())
}

struct Program(Command);

impl Program {
    fn new(name: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("PROGRAM", name).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    fn start(self) -> Process {
        self.start_with(Stdio::piped())
    }

    fn start_with(mut self, stderr: Stdio) -> Process {
        let mut child = self.0.stderr(stderr).spawn().unwrap();
        let (sender, lines) = channel();
        pass_on(child.stdout.take().unwrap(), sender.clone(), Line::Out);
        if let Some(stderr) = child.stderr.take() {
            pass_on(stderr, sender, Line::Err);
        }
        let stdin = child.stdin.take();
        Process { child, stdin, lines, seen: Vec::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Out(String),
    Err(String),
}

fn pass_on(from: impl Read + Send + 'static, to: Sender<Line>, line: fn(String) -> Line) {
    thread::spawn(move || {
        for text in BufReader::new(from).lines().map_while(Result::ok) {
            // Whoever does not listen any more must not block the process.
            let _ = to.send(line(text));
        }
    });
}

/// A process that does not outlive its test.
struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Line>,
    seen: Vec<Line>,
}

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Has the program go on.
    fn release(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    #[track_caller]
    fn out(&mut self, text: &str) {
        self.line(&|line| matches!(line, Line::Out(line) if line == text), &text);
    }

    #[track_caller]
    fn err(&mut self, text: &str) {
        self.line(&|line| matches!(line, Line::Err(line) if line.contains(text)), &text);
    }

    #[track_caller]
    fn line(&mut self, is_it: &dyn Fn(&Line) -> bool, what: &dyn Debug) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(line) = self.next(deadline) {
            if is_it(&line) {
                return;
            }
        }
        panic!("it ended without {what:?}: {:#?}", self.seen);
    }

    /// Waits for its end.
    #[track_caller]
    fn wait(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        while self.next(deadline).is_some() {}
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ended { status, lines: std::mem::take(&mut self.seen) };
            }
            assert!(Instant::now() < deadline, "it hangs: {:#?}", self.seen);
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    fn next(&mut self, deadline: Instant) -> Option<Line> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("it hangs: {:#?}", self.seen),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error says that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    lines: Vec<Line>,
}

impl Ended {
    #[track_caller]
    fn exited(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        self
    }

    /// There is such a line on stderr.
    #[track_caller]
    fn told(&self, text: &str) -> &Self {
        let told = self.lines.iter().any(|line| matches!(line, Line::Err(line) if line.contains(text)));
        assert!(told, "no line has {text:?}: {self:#?}");
        self
    }

    /// There is this line on stdout.
    fn said(&self, text: &str) -> bool {
        self.lines.contains(&Line::Out(text.into()))
    }
}
