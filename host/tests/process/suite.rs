//! Contains the tests. Each test starts programs, and checks their output and how they exit.

use std::io::Write;
#[cfg(all(unix, feature = "tower"))]
use std::io::{BufRead, BufReader};
#[cfg(all(unix, feature = "tower"))]
use std::net::TcpListener;
use std::net::{SocketAddr, TcpStream};
#[cfg(unix)]
use std::os::fd::OwnedFd;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::os::unix::process::ExitStatusExt;
use std::panic::catch_unwind;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};
#[cfg(unix)]
use testing::poll_until;
use testing::{Client, Ended, Line, Process, Signal};
#[cfg(all(unix, feature = "tower"))]
use testing::{PATIENCE, poll_until_ok};

macro_rules! tests {
    ($($(#[$cfg:meta])? $test:ident)*) => { &[$($(#[$cfg])? (stringify!($test), $test)),*] };
}

/// A test that runs only on Unix. On Unix, the type contains the name and the function of the test. On Windows, it contains the name and
/// the reason why the test does not run.
#[cfg(unix)]
type UnixTest = (&'static str, fn());
#[cfg(windows)]
type UnixTest = (&'static str, &'static str);

#[cfg(unix)]
macro_rules! unix_tests {
    ($($reason:literal: $($(#[$cfg:meta])? $test:ident)*)*) => { &[$($($(#[$cfg])? (stringify!($test), $test),)*)*] };
}
#[cfg(windows)]
macro_rules! unix_tests {
    ($($reason:literal: $($(#[$cfg:meta])? $test:ident)*)*) => { &[$($($(#[$cfg])? (stringify!($test), $reason),)*)*] };
}

const TESTS: &[(&str, fn())] = tests! {
    program_error_exits_after_drain
    program_panic_exits_after_drain
    program_end_starts_drain
    idle_program_prints_nothing
    phases_drain_in_order
    reserve_leaves_earlier_phases_the_grace_period
    delay_precedes_the_drain
    run_dropped_in_delay_shuts_nothing_down
    stalled_task_is_reported
    task_without_progress_is_reported_in_the_drain
    waiting_service_is_not_stalled
    stalled_service_is_reported_until_its_run_ends
    missing_inspection_is_reported_with_tasks_in_flight
    shutdown_signal_stays_triggered
    signal_before_run_is_kept
    #[cfg(target_os = "linux")]
    thread_for_signals_starts_with_blocked_signals
    shutdown_by_a_task_ends_the_program
    lost_critical_task_exits_with_failure
    lost_critical_task_of_later_phase_exits_with_failure
    program_of_full_registry_gets_the_signal_immediately
    program_of_full_registry_starts_its_last_task
    repeated_signals_are_one_request
    signal_after_the_repeat_window_exits_immediately
    second_signal_ends_a_blocked_start_up
    dropped_run_shuts_nothing_down
    dropped_host_restores_default_actions
    second_host_stops_unless_it_forgets_the_request
    host_that_has_ended_does_not_end_the_process
    #[cfg(target_os = "linux")]
    host_within_a_host_does_not_limit_it
    #[cfg(target_os = "linux")]
    forgotten_host_does_not_limit_main
    #[cfg(target_os = "linux")]
    hosts_that_have_ended_have_no_threads
    program_of_aborting_registry_is_aborted
    infinite_grace_period_is_accepted
    panic_of_a_stop_future_stops_the_process
    first_of_several_stop_futures_stops_the_process
    stop_future_that_is_ready_stops_the_process
    stop_future_has_no_effect_after_the_program_has_ended
    first_signal_after_a_request_to_stop_repeats_it
    request_by_http_stops_the_process
    #[cfg(all(windows, feature = "windows-service"))]
    service_that_windows_has_not_started_exits_with_failure
    webjobs_file_stops_the_process
    webjobs_file_that_exists_stops_each_host_that_checks_it
    webjobs_file_does_not_stop_a_later_host_that_ignores_it
    rejection_is_in_the_last_line_and_fails_on_request
    lines_name_the_oldest_tasks
    #[cfg(feature = "tracing")]
    start_and_end_are_reported_once
};

/// The tests of programs with a short deadline. After the deadline, the host exits in time even if it has not written all lines. If the
/// machine delays the host, such a test fails. Therefore only one of three attempts must pass.
const DEADLINE_TESTS: &[(&str, fn())] = tests! {
    blocked_executor_does_not_delay_exit
    blocked_drain_is_reported_at_the_exit
    second_signal_exits_with_blocked_executor
    second_signal_exits_with_stdout_locked
    reserve_gives_a_later_phase_its_time
    stragglers_of_each_phase_are_reported_when_time_is_reserved
    delay_is_part_of_the_grace_period
    stalled_critical_task_starts_the_shutdown
    program_of_full_registry_has_the_grace_period
    program_that_outlives_its_registry_has_the_grace_period
    signal_after_drain_limits_main
    end_of_program_does_not_limit_main
    blocking_read_does_not_delay_exit
    program_counts_with_its_outcome
    straggler_is_aborted
    blocked_runtime_destructor_does_not_delay_exit
    untracked_blocking_work_does_not_delay_exit
    stop_future_limits_main_as_a_signal_does
    request_to_stop_has_the_grace_period_with_blocked_executor
    held_stderr_does_not_delay_exit
    #[cfg(unix)] // a full pipe needs non-blocking writes
    unread_stderr_does_not_delay_exit
    server_that_waits_for_a_connection_is_aborted
    server_among_other_stragglers_is_reported
    grace_period_starts_at_a_request_before_run
    #[cfg(feature = "tower")]
    detached_handler_has_the_grace_period
    #[cfg(feature = "tracing")]
    error_at_start_is_the_first_event
    #[cfg(feature = "tracing")]
    error_in_drain_precedes_its_end
    #[cfg(feature = "tracing")]
    stragglers_are_one_event_each
    #[cfg(feature = "tracing")]
    blocked_task_has_an_abort_requested
    #[cfg(feature = "tracing")]
    stall_is_reported_before_the_shutdown
};

/// The tests that run only on Unix, each with the reason.
const UNIX_TESTS: &[UnixTest] = unix_tests! {
    "Windows has no SIGHUP":
        sighup_is_handled_only_on_request
        repeated_sighup_does_not_exit
        sighup_does_not_end_the_drain
    "Windows has no fork":
        signal_after_fork_is_handled
        signal_between_fork_and_run_is_kept
    "the crate reads blocked and ignored signals on Unix only":
        inherited_blocked_signals_are_handled
        ignored_signals_stay_ignored
        ignored_signals_are_handled_on_request
        ignored_sigterm_is_handled
        suite_passes_under_nohup
    "Windows has no SIGSTOP":
        #[cfg(feature = "tower")]
        settle_layer_ends_tasks_before_lambda_freezes_the_process
        #[cfg(target_os = "linux")] // the test reads the state of a process from `/proc`
        process_that_was_stopped_is_not_stalled
    "a pseudo-terminal is Unix only":
        #[cfg(all(feature = "bar", feature = "tracing"))]
        bar_is_hidden_if_the_host_emits_events
};

/// Runs all tests whose names contain one of the arguments. Runs these tests in parallel.
pub(crate) fn run() -> ExitCode {
    let filters: Vec<_> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_selected = |name: &str| filters.is_empty() || filters.iter().any(|part| name.contains(part));
    let tests = TESTS.iter();
    #[cfg(unix)]
    let tests = tests.chain(UNIX_TESTS);
    let tests = tests.map(|test| (test, 1)).chain(DEADLINE_TESTS.iter().map(|test| (test, 3)));
    let tests: Vec<_> = tests.filter(|((name, _), _)| is_selected(name)).collect();
    let running = tests.into_iter().map(|((name, test), attempts)| {
        let passes = move || (0..attempts).any(|_| catch_unwind(test).is_ok());
        (*name, thread::Builder::new().name((*name).into()).spawn(passes).unwrap())
    });
    let running: Vec<_> = running.collect();
    let mut failed = 0;
    for (name, test) in running {
        let passed = test.join().unwrap();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    #[cfg(windows)]
    for (name, reason) in UNIX_TESTS.iter().filter(|(name, _)| is_selected(name)) {
        println!("test {name} ... ignored, {reason}");
    }
    ExitCode::from(u8::from(failed > 0))
}

/// A short grace period, in seconds. If a test does not set it, the grace period is longer than the timeouts of the tests.
const GRACE: &str = "0.5";
/// The maximum time until the exit: the grace period plus one second. On Windows it is longer, because Wine ends a process slowly.
const BOUND: Duration = Duration::from_millis(if cfg!(windows) { 4000 } else { 1500 });

/// The start of the line after [`Signal::TERM`], for which the helpers use Ctrl-C on Windows.
const ASKED_TO_STOP: &str = if cfg!(windows) { "asked to stop by the console or the system" } else { "asked to stop by SIGTERM" };

/// Asserts that a process exits at most a second after its deadline. `took` is the time since the signal.
#[track_caller]
fn assert_exits_in_time(took: Duration) {
    assert!(took <= BOUND, "{took:?}");
}

/// Starts a program with the grace period [`GRACE`] and sends SIGTERM. Returns the result, and the time from the signal to the exit.
fn stop(program: Program) -> (Ended, Duration) {
    let process = program.with("GRACE", GRACE).start_ready();
    let start = Instant::now();
    process.signal(Signal::TERM);
    let ended = process.wait();
    (ended, start.elapsed())
}

/// Stops a program that does not drain within its grace period. Returns the time from the signal to the exit.
fn miss_deadline(program: Program, straggler: &str) -> Duration {
    let (ended, took) = stop(program);
    ended.assert_code(1).assert_stderr("the grace period of 500ms has expired: ").assert_stderr(straggler);
    assert!(took >= Duration::from_millis(500), "{took:?}");
    took
}

fn blocked_executor_does_not_delay_exit() {
    for (program, straggler) in
        [("tokio_blocked", "1 × blocker at "), ("executor_blocked", "1 × blocker at "), ("program_blocked", "1 × program at ")]
    {
        let took = miss_deadline(Program::new(program), straggler);
        println!("{program} exited {took:?} after SIGTERM");
        assert_exits_in_time(took);
    }
}

fn blocked_drain_is_reported_at_the_exit() {
    let (ended, _) = stop(Program::new("drain_blocked"));
    ended
        .assert_code(1)
        .assert_stderr("gave up after ")
        .assert_stderr(" because the drain is blocked")
        .assert_stderr("1 × task for ");
}

fn second_signal_exits_with_blocked_executor() {
    for program in ["tokio_blocked", "executor_blocked", "program_blocked"] {
        let mut process = Program::new(program).with("REPEAT_WINDOW", "0").start_ready();
        process.signal(Signal::TERM);
        process.stderr_line("draining: ");
        process.signal(Signal::INT);
        let ended = process.wait();
        ended.assert_code(130).assert_stderr("exiting immediately, ");
        // This text is in the output only if the host has flushed stdout.
        assert_eq!(ended.has_stdout("no newline"), program != "program_blocked", "{ended:#?}");
    }
}

/// A thread holds the lock of stdout, so the host cannot flush stdout.
fn second_signal_exits_with_stdout_locked() {
    let mut process = Program::new("tokio_blocked").with("LOCKED", "1").with("REPEAT_WINDOW", "0").start_ready();
    process.signal(Signal::INT);
    process.stderr_line("draining: ");
    process.signal(Signal::INT);
    process.wait().assert_code(130).assert_stderr("exiting immediately, ");
}

fn program_error_exits_after_drain() {
    drains_first("error", 2).assert_stderr("the program failed: broken");
}

fn program_panic_exits_after_drain() {
    drains_first("panic", 101).assert_stderr("broken");
}

fn program_end_starts_drain() {
    drains_first("success", 0);
}

fn drains_first(program: &str, code: i32) -> Ended {
    let mut program = Program::new(program).start();
    program.stderr_line("draining: 1 in flight");
    program.release();
    let ended = program.wait();
    ended
        .assert_code(code)
        .assert_stderr("drained in ")
        .assert_stderr(": 1 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
    assert!(ended.has_stdout("the task has ended") && !ended.has_line("asked to stop by"), "{ended:#?}");
    ended
}

fn idle_program_prints_nothing() {
    let ended = Program::new("idle").start().wait();
    assert!(ended.assert_code(0).lines.is_empty(), "{ended:#?}");
}

fn phases_drain_in_order() {
    let mut process = Program::new("phases").start_ready();
    process.signal(Signal::TERM);
    process.stdout_line("the requests have the signal");
    process.release();
    let ended = process.wait();
    ended.assert_code(0).assert_stderr(": 4 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 0 rejected");
    assert!(ended.has_stdout("the request ends, the workers have the signal: false"), "{ended:#?}");
    assert!(ended.has_stdout("its task is accepted: true") && ended.has_stdout("the request's task has ended"), "{ended:#?}");
    let position = |text: &str| ended.lines.iter().position(|line| *line == Line::Stdout(text.into()));
    assert!(position("its task is accepted: true") < position("the workers have the signal"), "{ended:#?}");
}

/// A request hangs. With a reserve, the worker receives the signal early enough. Without a reserve, it receives the signal at the
/// deadline.
fn reserve_gives_a_later_phase_its_time() {
    let process = Program::new("hung_request").with("GRACE", "4").with("RESERVE", "3").start_ready();
    process.signal(Signal::TERM);
    let ended = process.wait();
    ended
        .assert_code(1)
        .assert_stderr("the next registry shuts down now, because the rest of the grace period is reserved: 1 background task")
        .assert_stderr("the grace period of 4s has expired: ")
        .assert_stderr(": 2 completed, 0 failed, 0 panicked, 0 abandoned, 1 aborted");
    assert!(ended.has_stdout("the job is back"), "{ended:#?}");

    let process = Program::new("hung_request").with("GRACE", GRACE).start_ready();
    process.signal(Signal::TERM);
    let ended = process.wait();
    ended.assert_code(1).assert_stderr(": 1 completed, 0 failed, 0 panicked, 0 abandoned, 2 aborted");
    assert!(!ended.has_stdout("the job is back"), "{ended:#?}");
}

/// The second report must also contain the tasks of the second phase, although a task of the first phase still hangs.
fn stragglers_of_each_phase_are_reported_when_time_is_reserved() {
    let ended = Program::new("hung_phases").start().wait();
    let stderr = ended.assert_code(1).output();
    let (reserved, expired) = stderr.split_once("the grace period of 1s has expired").expect(&stderr);
    let reported = ["first", "second", "third"].map(|name| reserved.matches(&format!("1 × {name} at ")).count());
    assert_eq!(reported, [2, 1, 0], "{stderr}");
    assert!(expired.contains("1 × third at "), "{stderr}");
}

/// The reserve is as long as the grace period, so all phases shut down immediately. The request must still be able to end.
fn reserve_leaves_earlier_phases_the_grace_period() {
    let mut process = Program::new("slow_request").with("RESERVE", "1e19").start_ready();
    process.signal(Signal::TERM);
    process.stdout_line("the job is back");
    process.release();
    process.wait().assert_code(0).assert_stderr("drained in ").assert_stderr(": 3 completed");
}

fn delay_precedes_the_drain() {
    let start = |delay| {
        let mut process = Program::new("delayed").with("DELAY", delay).with("REPEAT_WINDOW", "0").start();
        process.stdout_line("is ready: true, is shutting down: false");
        process.signal(Signal::TERM);
        process.stdout_line("is ready: false, is shutting down: false");
        process
    };
    let begun = Instant::now();
    let ended = start("3").wait();
    ended.assert_code(0).assert_stderr(&format!("{ASKED_TO_STOP}: the drain starts in 3.0s"));
    ended.assert_stderr("draining: 1 in flight").assert_stderr("drained in ");
    assert!(ended.has_stdout("the program ends, is shutting down: true"), "{ended:#?}");
    assert!(begun.elapsed() >= Duration::from_secs(3));

    // If the program ends during the delay, the drain starts.
    let mut process = start("1e19");
    process.release();
    process.stdout_line("the program ends, is shutting down: false");
    process.wait().assert_code(0).assert_stderr("drained in ");

    let mut process = start("3600");
    process.process.signal_until_exit(Signal::TERM);
    process.wait().assert_code(130);
}

fn delay_is_part_of_the_grace_period() {
    let (ended, took) = stop(Program::new("pending_in_delay"));
    ended.assert_code(1).assert_stderr("the grace period of 500ms has expired: ");
    assert!(ended.has_line("the drain starts in ") && !ended.has_line("3600"), "{ended:#?}");
    assert_exits_in_time(took);
}

fn run_dropped_in_delay_shuts_nothing_down() {
    let mut process = Program::new("run_dropped_in_delay").start_ready();
    process.signal(Signal::TERM);
    process.stderr_line(&format!("{ASKED_TO_STOP}: the drain starts in 3600.0s"));
    process.release();
    process.stdout_line("dropped");
    // A correct host does nothing during this sleep. A host with a bug would shut the registry down.
    thread::sleep(Duration::from_millis(200));
    process.release();
    process.stdout_line("the registry is shutting down: false");
    process.wait().assert_code(7);
}

fn stalled_task_is_reported() {
    let mut process = Program::new("stalled").start();
    process.stderr_line("importer at host");
    process.release();
    process.stderr_line(" reports progress again");
    process.signal(Signal::TERM);
    let ended = process.wait();
    ended.assert_code(0).assert_stderr(" has reported no progress for ").assert_stderr("drained in ");
    assert!(!ended.has_line("short"), "{ended:#?}");
}

/// A task blocks the only thread of the executor. The host reports each of its critical handles.
fn stalled_critical_task_starts_the_shutdown() {
    let ended = Program::new("stalled_and_critical").with("GRACE", GRACE).start().wait();
    ended
        .assert_code(2)
        .assert_stderr("shutting down because importer has reported no progress for ")
        .assert_stderr("shutting down because exporter has reported no progress for ")
        .assert_stderr("the grace period of 500ms has expired: ");
}

fn task_without_progress_is_reported_in_the_drain() {
    let mut process = Program::new("stalled_in_drain").start_ready();
    process.signal(Signal::TERM);
    process.stderr_line("importer at host/tests/process/programs.rs:");
    process.release();
    let ended = process.wait();
    ended.assert_code(0).assert_stderr(" has reported no progress for ").assert_stderr("drained in ");
    for line in ["shutting down because", "finished"] {
        assert!(!ended.has_line(line), "{ended:#?}");
    }
}

fn waiting_service_is_not_stalled() {
    let process = Program::new("waiting_service").start_ready();
    // The sleep is longer than the timeout of the task. A host with a bug would report the waiting service in this time.
    thread::sleep(Duration::from_secs(2));
    process.signal(Signal::TERM);
    let ended = process.wait();
    assert!(!ended.assert_code(0).has_line("progress"), "{ended:#?}");
}

/// The failed run has reported no progress, so the line about its end must not say so.
fn stalled_service_is_reported_until_its_run_ends() {
    let mut process = Program::new("stalled_service").start();
    process.stderr_line(" has reported no progress for ");
    process.release();
    process.stderr_line(" again");
    process.signal(Signal::TERM);
    let ended = process.wait();
    ended.assert_code(0).assert_stderr(" waits to run again, restarts: 0, last loss: failed: broken");
    assert!(!ended.has_line("reports progress again"), "{ended:#?}");
}

/// The cause must precede all other lines of the shutdown, even if it is written slowly.
#[cfg(feature = "tracing")]
fn stall_is_reported_before_the_shutdown() {
    let ended = Program::new("traced_stall").start().wait();
    let output = ended.assert_code(2).output();
    let position = |text| output.find(text).unwrap_or_else(|| panic!("no {text:?}: {output}"));
    assert!(position("shutting down because importer at ") < position("shutdown started"), "{output}");
}

/// The task reports no progress while the process is suspended. After the process has continued, the timeout must start again.
#[cfg(unix)]
#[cfg(target_os = "linux")]
fn process_that_was_stopped_is_not_stalled() {
    let mut process = Program::new("frozen").start_ready();
    process.release();
    process.stdout_line("reported");
    process.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", process.process.id());
    poll_until(&"the process runs", || fs::read_to_string(&stat).unwrap().rsplit(") ").next().unwrap().starts_with('T'));
    // This time is longer than the timeout of the task.
    thread::sleep(Duration::from_secs(7));
    process.signal(Signal::CONT);
    // A correct host does nothing during this sleep. A host with a bug would shut the process down at its first check.
    thread::sleep(Duration::from_secs(2));
    process.release();
    process.stdout_line("reported");
    process.signal(Signal::TERM);
    let ended = process.wait();
    assert!(!ended.assert_code(0).has_line("progress"), "{ended:#?}");
}

/// If only the program is in flight, and no task, the missing inspection does not matter.
fn missing_inspection_is_reported_with_tasks_in_flight() {
    for (program, is_reported) in [("task_without_inspection", true), ("many_tasks", false), ("server_without_inspection", false)] {
        let mut process = Program::new(program).with("GRACE", GRACE).start();
        process.process.line(if program.starts_with("server") { "listening on " } else { "ready" });
        process.signal(Signal::TERM);
        let ended = process.wait();
        let line = "no registry is inspected, so no report names a task, and no task can be aborted";
        assert_eq!(ended.lines.iter().filter(|other| other.text().contains(line)).count(), usize::from(is_reported), "{ended:#?}");
    }
}

fn shutdown_signal_stays_triggered() {
    let mut process = Program::new("shutdown_signal").start_ready();
    process.signal(Signal::INT);
    process.stdout_line("triggered");
    process.wait().assert_code(7);
}

#[cfg(unix)]
fn sighup_is_handled_only_on_request() {
    let process = Program::new("waits").start_ready();
    process.signal(Signal::HUP);
    let ended = process.wait();
    assert_eq!(ended.status.signal(), Some(Signal::HUP.as_raw()), "{ended:#?}");

    let process = Program::new("waits_with_sighup").start_ready();
    process.signal(Signal::HUP);
    process.wait().assert_code(0).assert_stderr("drained in ");
}

/// This thread may receive a signal only after the handler of the signal is complete. SIGHUP has no handler here, so it must stay blocked.
#[cfg(target_os = "linux")]
fn thread_for_signals_starts_with_blocked_signals() {
    let mut process = Program::new("signals_thread").start();
    let blocked = u64::from_str_radix(process.process.rest_of_line("SigBlk:\t").trim(), 16).unwrap();
    assert_eq!(blocked >> (Signal::HUP.as_raw() - 1) & 1, 1, "{blocked:#x}");
}

fn signal_before_run_is_kept() {
    Program::new("signal_before_run").start().wait().assert_code(0).assert_stderr("drained in ");
}

/// The grace period expires before `run`, so `run` must abort the program immediately.
fn grace_period_starts_at_a_request_before_run() {
    for name in ["BEFORE_HOST", "AFTER_HOST"] {
        let process = Program::new("asked_before_run").with("GRACE", "3").with(name, "1").start_ready();
        let start = Instant::now();
        process.wait().assert_code(1).assert_stderr("the grace period of 3s has expired: ");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}

#[cfg(unix)]
fn signal_after_fork_is_handled() {
    let mut process = Program::new("forked").start();
    let child = process.process.rest_of_line("process ").parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(child).unwrap(), Signal::TERM).unwrap();
    process.wait().assert_code(0).assert_stderr("drained in ");
}

#[cfg(unix)]
fn signal_between_fork_and_run_is_kept() {
    Program::new("signal_between_fork_and_run").start().wait().assert_code(0).assert_stderr("drained in ");
}

#[cfg(unix)]
fn inherited_blocked_signals_are_handled() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut process = Program::new("blocked_signals").start_ready();
        process.signal(signal);
        process.stderr_line("draining: ");
        drains(process);
    }
}

/// `nohup` and background jobs of a shell start programs with ignored signals. The crate can detect ignored signals only on Linux.
#[cfg(unix)]
fn ignored_signals_stay_ignored() {
    if !cfg!(target_os = "linux") {
        return;
    }
    for program in ["task", "task_with_sighup", "task_after_ignored"] {
        let mut process = Program::ignoring("HUP INT", program).start_ready();
        process.signal(Signal::HUP);
        process.signal(Signal::INT);
        process.release();
        process.stdout_line("the task ends, the registry is shutting down: false");
        process.signal(Signal::TERM);
        process.wait().assert_code(0).assert_stderr("drained in ");
    }
}

#[cfg(unix)]
fn ignored_signals_are_handled_on_request() {
    for signal in [Signal::HUP, Signal::INT] {
        let mut process = Program::ignoring("HUP INT", "task_with_ignored").start_ready();
        process.signal(signal);
        process.stderr_line("draining: ");
        drains(process);
    }
}

#[cfg(unix)]
fn ignored_sigterm_is_handled() {
    let mut process = Program::ignoring("TERM", "task").start_ready();
    process.signal(Signal::TERM);
    process.stderr_line("draining: ");
    drains(process);
}

#[cfg(unix)]
fn suite_passes_under_nohup() {
    let mut suite = Program::ignoring("HUP INT", "");
    suite.0.env_remove("PROGRAM").arg("sighup_is_handled_only_on_request");
    let ended = suite.start().wait();
    assert!(ended.assert_code(0).has_stdout("test sighup_is_handled_only_on_request ... ok"), "{ended:#?}");
}

fn shutdown_by_a_task_ends_the_program() {
    let mut process = Program::new("shut_down_by_a_task").start_ready();
    process.release();
    process.wait().assert_code(0);
}

fn lost_critical_task_exits_with_failure() {
    let mut process = Program::new("critical").start();
    process.stderr_line("shutting down because a task was lost: lease at ");
    process.release();
    let ended = process.wait();
    ended.assert_code(2).assert_stderr(" failed: lost").assert_stderr("drained in ");
    assert!(ended.has_stdout("the task has ended"), "{ended:#?}");
}

fn lost_critical_task_of_later_phase_exits_with_failure() {
    let process = Program::new("critical_worker").start_ready();
    process.signal(Signal::TERM);
    process.wait().assert_code(2).assert_stderr("shutting down because a task was lost: lease at ");
}

fn program_of_full_registry_gets_the_signal_immediately() {
    let mut process = Program::new("full").with("REPEAT_WINDOW", "0").start_ready();
    process.signal(Signal::TERM);
    process.stdout_line("triggered");
    process.signal(Signal::TERM);
    process.wait().assert_code(130);
}

fn program_of_full_registry_has_the_grace_period() {
    let mut process = Program::new("full").with("GRACE", GRACE).start_ready();
    process.signal(Signal::TERM);
    process.stdout_line("triggered");
    process.release();
    process.wait().assert_code(1).assert_stderr("1 × program at ").assert_stderr("aborted all remaining tasks after ");
}

fn program_of_full_registry_starts_its_last_task() {
    let mut process = Program::new("full_with_last_task").start_ready();
    process.signal(Signal::TERM);
    process.stdout_line("triggered");
    process.release();
    process.stdout_line("the last task");
    process.wait().assert_code(0).assert_stderr("3 completed, 0 failed");
}

fn program_that_outlives_its_registry_has_the_grace_period() {
    let process = Program::new("outlives_its_registry").with("GRACE", GRACE).start_ready();
    process.wait().assert_code(1).assert_stderr("1 × program at ").assert_stderr("aborted all remaining tasks after ");
}

fn signal_after_drain_limits_main() {
    let (ended, took) = stop(Program::new("main_blocked"));
    ended.assert_code(1).assert_stderr("`main` has not returned");
    assert!(took >= Duration::from_millis(500), "{took:?}");
    assert_exits_in_time(took);
}

/// If a program ends without a request to stop, `main` has unlimited time, for example to write a report. `main_timeout` sets a limit.
fn end_of_program_does_not_limit_main() {
    let _process = Program::new("main_blocked").with("GRACE", "0").start_ready();
    let ended = Program::new("main_blocked").with("MAIN_TIMEOUT", "0.1").start().wait();
    ended.assert_code(1).assert_stderr("`main` has not returned");
}

/// The grace period is longer than the timeouts of the test, so the process exits because of the time limit of `main`.
fn blocking_read_does_not_delay_exit() {
    for (timeout, code) in [(None, 1), (Some("0.1"), 1), (Some("0"), 0)] {
        let mut program = Program::new("blocking_read");
        if let Some(timeout) = timeout {
            program = program.with("MAIN_TIMEOUT", timeout);
        }
        let process = program.start_ready();
        process.signal(Signal::TERM);
        let ended = process.wait();
        ended.assert_code(code).assert_stderr("drained in ");
        assert_eq!(ended.has_line("`main` has not returned"), code == 1, "{ended:#?}");
    }
}

/// A closed terminal may send SIGHUP twice, and some supervisors send SIGHUP after SIGTERM.
#[cfg(unix)]
fn repeated_sighup_does_not_exit() {
    for first in [Signal::HUP, Signal::TERM] {
        let mut process = Program::new("task_with_sighup").with("REPEAT_WINDOW", "0").start_ready();
        process.signal(first);
        process.stderr_line("draining: ");
        process.signal(Signal::HUP);
        drains(process);
    }
}

/// Releases the task of a program that is draining. Checks that the program then exits with 0.
fn drains(mut process: Running) {
    process.release();
    let ended = process.wait();
    ended.assert_code(0).assert_stderr("drained in ");
    assert!(ended.has_stdout("the task ends, the registry is shutting down: true"), "{ended:#?}");
}

#[cfg(unix)]
fn sighup_does_not_end_the_drain() {
    let mut process = Program::new("task").start_ready();
    process.signal(Signal::TERM);
    process.stderr_line("draining: ");
    process.signal(Signal::HUP);
    drains(process);
}

/// A launcher that forwards Ctrl-C of its terminal sends the same signal several times.
fn repeated_signals_are_one_request() {
    let mut process = Program::new("task").with("REPEAT_WINDOW", "3600").start_ready();
    process.signal(Signal::INT);
    process.stderr_line("draining: ");
    for signal in [Signal::INT, Signal::TERM].into_iter().cycle().take(100) {
        process.signal(signal);
    }
    drains(process);
}

fn signal_after_the_repeat_window_exits_immediately() {
    let mut process = Program::new("task").start_ready();
    let start = Instant::now();
    process.process.signal_until_exit(Signal::INT);
    let took = start.elapsed();
    process.wait().assert_code(130).assert_stderr("exiting immediately, ");
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

fn second_signal_ends_a_blocked_start_up() {
    let mut process = Program::new("start_up_blocked").start_ready();
    process.signal(Signal::TERM);
    process.stdout_line("triggered");
    process.process.signal_until_exit(Signal::TERM);
    process.wait().assert_code(130).assert_stderr("exiting immediately, 0 in flight");
}

fn dropped_run_shuts_nothing_down() {
    let mut process = Program::new("run_dropped").start_ready();
    process.signal(Signal::TERM);
    process.stdout_line("triggered, the registry is shutting down: false");
    process.signal(Signal::TERM);
    process.release();
    process.wait().assert_code(7);
}

fn dropped_host_restores_default_actions() {
    #[cfg(unix)]
    let signals = [Signal::TERM, Signal::INT, Signal::HUP];
    #[cfg(windows)]
    let signals = [Signal::INT];
    for program in ["run_dropped_without_signal", "host_dropped"] {
        for signal in signals {
            let process = Program::new(program).start_ready();
            process.signal(signal);
            ends_by(process, signal);
        }
    }
    for signal in signals {
        let mut process = Program::new("run_dropped_in_drain").start();
        process.stderr_line("draining: ");
        process.release();
        process.stdout_line("dropped");
        process.signal(signal);
        ends_by(process, signal);
    }
}

#[track_caller]
fn ends_by(process: Running, signal: Signal) {
    let ended = process.wait();
    #[cfg(unix)]
    let is_default = ended.status.signal() == Some(signal.as_raw());
    // On Windows, the host ends the process.
    #[cfg(windows)]
    let is_default = signal == Signal::INT && ended.status.code() == Some(130);
    assert!(is_default, "{ended:#?}");
}

fn second_host_stops_unless_it_forgets_the_request() {
    let start = |program: Program, is_shutting_down: bool| {
        let mut process = program.start_ready();
        process.signal(Signal::TERM);
        process.stdout_line(&format!("the second registry is shutting down: {is_shutting_down}"));
        process
    };
    start(Program::new("second_host"), true).wait().assert_code(0);

    let process = start(Program::new("second_host").with("FORGET", "1"), false);
    process.signal(Signal::TERM);
    process.wait().assert_code(0);

    // The first host has handled SIGHUP during its drain. For the second host, the default action of SIGHUP must apply.
    #[cfg(unix)]
    {
        let process = start(Program::new("second_host").with("FORGET", "1"), false);
        process.signal(Signal::HUP);
        ends_by(process, Signal::HUP);
    }
}

fn host_that_has_ended_does_not_end_the_process() {
    Program::new("host_ends_before_another").start().wait().assert_code(7);
}

#[cfg(target_os = "linux")]
fn host_within_a_host_does_not_limit_it() {
    for inner_main_timeout in [None, Some("0.1")] {
        let start = || {
            let program = Program::new("host_within_host").with("REPEAT_WINDOW", "0");
            match inner_main_timeout {
                Some(timeout) => program.with("INNER_MAIN_TIMEOUT", timeout),
                None => program,
            }
        };
        let process = start().start_ready();
        process.signal(Signal::TERM);
        process.wait().assert_code(0).assert_stderr("drained in ");

        let mut process = start().with("IS_PENDING", "1").start_ready();
        process.signal(Signal::TERM);
        process.stderr_line("draining: ");
        process.signal(Signal::TERM);
        process.wait().assert_code(130).assert_stderr("exiting immediately, 1 in flight");
    }
}

#[cfg(target_os = "linux")]
fn forgotten_host_does_not_limit_main() {
    let process = Program::new("forgotten_host").start_ready();
    process.signal(Signal::TERM);
    process.wait().assert_code(7);
}

#[cfg(target_os = "linux")]
fn hosts_that_have_ended_have_no_threads() {
    Program::new("hosts_that_have_ended").start().wait().assert_code(7);
}

fn program_counts_with_its_outcome() {
    let outcomes = [
        ("program_pending", 1, "0 completed, 0 failed, 0 panicked, 0 abandoned, 1 aborted"),
        ("outlives_its_registry", 1, "0 completed, 0 failed, 0 panicked, 0 abandoned, 1 aborted"),
        ("program_aborted_by_other_code", 0, "0 completed, 0 failed, 0 panicked, 0 abandoned, 1 aborted"),
        ("program_fails_in_drain", 2, "0 completed, 1 failed, 0 panicked, 0 abandoned, 0 aborted"),
        ("program_panics_in_drain", 101, "0 completed, 0 failed, 1 panicked, 0 abandoned, 0 aborted"),
        ("waits", 0, "1 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted"),
    ];
    for (program, code, summary) in outcomes {
        let grace = if code == 1 { GRACE } else { "3600" };
        let process = Program::new(program).with("GRACE", grace).start_ready();
        process.signal(Signal::TERM);
        process.wait().assert_code(code).assert_stderr(summary);
    }
}

fn program_of_aborting_registry_is_aborted() {
    let process = Program::new("program_of_aborting_registry").start();
    process.wait().assert_code(0).assert_stderr("drained in ").assert_stderr("1 aborted");
}

fn infinite_grace_period_is_accepted() {
    let process = Program::new("waits").with("GRACE", "1e19").start_ready();
    process.signal(Signal::TERM);
    process.wait().assert_code(0).assert_stderr("drained in ");
}

fn straggler_is_aborted() {
    let took = miss_deadline(Program::new("pending_task"), " was aborted after ");
    println!("a program with an aborted task exited {took:?} after SIGTERM");
    assert_exits_in_time(took);
}

fn blocked_runtime_destructor_does_not_delay_exit() {
    let took = miss_deadline(Program::new("runtime_blocked"), "1 × blocker at ");
    println!("a program with a blocked runtime exited {took:?} after SIGTERM");
    assert_exits_in_time(took);
}

/// All tracked tasks have ended, so `main` may use only the rest of the grace period.
fn untracked_blocking_work_does_not_delay_exit() {
    let (ended, took) = stop(Program::new("untracked_blocked"));
    ended.assert_code(1).assert_stderr("drained in ");
    assert_exits_in_time(took);
}

/// If the program called `start_shutdown` instead of stopping through `stop_on`, `main` would hang.
fn stop_future_limits_main_as_a_signal_does() {
    let mut process = Program::new("untracked_blocked_with_stop_on").with("GRACE", GRACE).start_ready();
    process.release();
    process.wait().assert_code(1).assert_stderr("drained in ").assert_stderr("`main` has not returned");
}

fn panic_of_a_stop_future_stops_the_process() {
    Program::new("stop_on_panics").start().wait().assert_code(101).assert_stderr("broken").assert_stderr("drained in ");
}

fn first_of_several_stop_futures_stops_the_process() {
    let mut process = Program::new("stop_on_several_times").start_ready();
    process.release();
    process.wait().assert_code(0).assert_stderr("asked to stop by `stop_on`").assert_stderr("drained in ");
}

fn stop_future_that_is_ready_stops_the_process() {
    let ended = Program::new("stop_on_ready_future").start().wait();
    assert!(ended.assert_code(0).assert_stderr("drained in ").has_stdout("ready"), "{ended:#?}");
}

/// The end of the program ends the future of `stop_on` with a panic. This must not count as a request to stop, and not as a failure.
fn stop_future_has_no_effect_after_the_program_has_ended() {
    let ended = drains_first("stop_on_channel_of_the_program", 0);
    assert!(ended.has_stdout("was asked to stop: false") && !ended.has_line("panicked at"), "{ended:#?}");
}

fn request_to_stop_has_the_grace_period_with_blocked_executor() {
    let mut process = Program::new("blocked_with_request_stop").with("GRACE", GRACE).start_ready();
    let start = Instant::now();
    process.release();
    process.wait().assert_code(1).assert_stderr("the grace period of 500ms has expired: ").assert_stderr("1 × blocker at ");
    assert_exits_in_time(start.elapsed());
}

/// A supervisor may request the stop in another way first, and then send SIGTERM.
fn first_signal_after_a_request_to_stop_repeats_it() {
    let mut process = Program::new("request_stop").with("REPEAT_WINDOW", "0").start_ready();
    process.signal(Signal::TERM);
    process.release();
    process.wait().assert_code(0).assert_stderr("drained in ");

    let mut process = Program::new("request_stop").with("REPEAT_WINDOW", "0").start_ready();
    process.process.signal_until_exit(Signal::TERM);
    process.wait().assert_code(130).assert_stderr("exiting immediately, ").assert_stderr("asked to stop by `request_stop`");
}

fn request_by_http_stops_the_process() {
    let mut process = Program::new("http_stop").start();
    let address: SocketAddr = process.process.rest_of_line("listening on ").parse().unwrap();
    let response = Client::connect(address).unwrap().request("POST", "/stop", &[]).unwrap();
    assert_eq!(response.status, 202);
    process.wait().assert_code(0).assert_stderr("drained in ");
}

#[cfg(all(windows, feature = "windows-service"))]
fn service_that_windows_has_not_started_exits_with_failure() {
    Program::new("windows_service").start().wait().assert_code(2).assert_stderr("failed to start the host: ");
}

fn webjobs_file_stops_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shutdown");
    let name = file.to_str().unwrap();
    let start = |program| Program::new(program).with("WEBJOBS_SHUTDOWN_FILE", name).start_ready();
    let mut process = start("task");
    fs::write(&file, "").unwrap();
    process.stderr_line("asked to stop by the file of WebJobs");
    process.stderr_line("draining: ");
    drains(process);

    let mut process = start("task_without_webjobs_file");
    // A correct host does nothing during this sleep. A host that ignores the setting would stop the process.
    thread::sleep(Duration::from_millis(500));
    process.release();
    process.stdout_line("the task ends, the registry is shutting down: false");
}

/// The file exists until it is removed, so it also stops a host that forgets the request to stop.
fn webjobs_file_that_exists_stops_each_host_that_checks_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let program = Program::new("second_host").with("WEBJOBS_SHUTDOWN_FILE", file.path().to_str().unwrap()).with("FORGET", "1");
    let mut process = program.start_ready();
    process.stdout_line("the second registry is shutting down: true");
    process.wait().assert_code(0);

    let mut process = Program::new("task").with("WEBJOBS_SHUTDOWN_FILE", "").start_ready();
    process.release();
    process.stdout_line("the task ends, the registry is shutting down: false");
}

fn webjobs_file_does_not_stop_a_later_host_that_ignores_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shutdown");
    let mut process = Program::new("host_after_webjobs_host").with("WEBJOBS_SHUTDOWN_FILE", file.to_str().unwrap()).start_ready();
    fs::write(&file, "").unwrap();
    // A correct host does nothing during this sleep. The thread of the first host would stop the process.
    thread::sleep(Duration::from_millis(500));
    process.release();
    process.stdout_line("the task ends, the registry is shutting down: false");
}

/// The client disconnects after a part of its request body. The handler continues, and is aborted when the grace period expires.
#[cfg(feature = "tower")]
fn detached_handler_has_the_grace_period() {
    let mut process = Program::new("detached_handler").with("GRACE", GRACE).start();
    let address: SocketAddr = process.process.rest_of_line("listening on ").parse().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
    drop(client);
    process.stdout_line("has the whole body: false");
    process.signal(Signal::TERM);
    let ended = process.wait();
    ended.assert_code(1).assert_stderr("the grace period of 500ms has expired: ").assert_stderr("1 × order at host");
    ended.assert_stderr("aborted all remaining tasks after ").assert_stderr("order at host/tests/process/programs.rs:");
}

/// The thread of this test acts as Lambda's Runtime API. The thread freezes the process as soon as the process requests the next event.
#[cfg(all(unix, feature = "tower"))]
fn settle_layer_ends_tasks_before_lambda_freezes_the_process() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // If the process has ended, no connection arrives.
    listener.set_nonblocking(true).unwrap();
    let process = Program::new("lambda").with("RUNTIME_API", &listener.local_addr().unwrap().to_string()).start();
    let mut requests = Vec::new();
    let mut events = ["event-1", "event-2"].into_iter();
    loop {
        let (stream, _) = poll_until_ok(|| listener.accept());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).unwrap() > 0);
        }
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let is_next = path == "/next";
        requests.push(path);
        let mut body = "";
        if is_next {
            process.signal(Signal::STOP);
            // The process is frozen for longer than the task of the event takes.
            thread::sleep(Duration::from_millis(500));
            let Some(event) = events.next() else { break };
            body = event;
            process.signal(Signal::CONT);
        }
        write!(stream.get_mut(), "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).unwrap();
    }
    let expected =
        ["/next", "/event-1/response", "/event-1/task-has-ended", "/next", "/event-2/response", "/event-2/task-has-ended", "/next"];
    assert_eq!(requests, expected);
}

/// The pipe is open and full. The host cannot write its last line before the deadline, but its exit code must stay the same.
#[cfg(unix)]
fn unread_stderr_does_not_delay_exit() {
    for (program, code) in [("runtime_blocked", 1), ("waits", 0)] {
        let (_reader, full) = full_pipe();
        let mut process = Program::new(program).with("GRACE", GRACE).start_with(full);
        process.stdout_line("ready");
        let start = Instant::now();
        process.signal(Signal::TERM);
        process.wait().assert_code(code);
        assert_exits_in_time(start.elapsed());
    }
    let (_reader, full) = full_pipe();
    let mut process = Program::new("tokio_blocked").with("REPEAT_WINDOW", "0").start_with(full);
    process.stdout_line("ready");
    process.signal(Signal::INT);
    process.process.signal_until_exit(Signal::TERM);
    process.wait().assert_code(130);
}

#[cfg(unix)]
fn full_pipe() -> (UnixStream, Stdio) {
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while writer.write(b".").is_ok() {}
    writer.set_nonblocking(false).unwrap();
    (reader, OwnedFd::from(writer).into())
}

/// A thread holds the lock of stderr forever, so no other thread can write to stderr.
fn held_stderr_does_not_delay_exit() {
    let start = |program| Program::new(program).with("HELD_STDERR", "1");
    for (program, code) in [("runtime_blocked", 1), ("waits", 0)] {
        let (ended, took) = stop(start(program));
        ended.assert_code(code);
        assert_exits_in_time(took);
    }
    start("stalled_and_critical").with("GRACE", GRACE).start().wait().assert_code(2);
    let mut process = start("tokio_blocked").with("REPEAT_WINDOW", "0").start_ready();
    process.signal(Signal::INT);
    process.process.signal_until_exit(Signal::TERM);
    let ended = process.wait();
    assert!(ended.assert_code(130).has_stdout("no newline"), "{ended:#?}");
}

fn rejection_is_in_the_last_line_and_fails_on_request() {
    for (program, code) in [("rejects", 0), ("rejects_and_fails", 1)] {
        let mut process = Program::new(program).start_ready();
        process.signal(Signal::TERM);
        process.release();
        let ended = process.wait();
        ended.assert_code(code).assert_stderr("2 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 1 rejected");
        assert_eq!(ended.has_line("with losses that fail the program"), code == 1, "{ended:#?}");
    }
    let mut process = Program::new("rejects_and_panics").start_ready();
    process.signal(Signal::TERM);
    process.release();
    process.wait().assert_code(1).assert_stderr("broken");
    for (program, code) in [("rejects_before_its_end", 0), ("rejects_before_its_end_and_fails", 1)] {
        let ended = Program::new(program).start().wait();
        ended.assert_code(code).assert_stderr("1 completed, 0 failed, 0 panicked, 0 abandoned, 0 aborted, 1 rejected");
    }
}

/// Stops a server while a client has sent only a part of a request head.
fn stop_with_half_request(program: &'static str) -> Ended {
    let mut process = Program::new(program).with("GRACE", GRACE).start();
    let address: SocketAddr = process.process.rest_of_line("listening on ").parse().unwrap();
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    // When the server has answered several later requests, its thread has also polled the slow connection.
    let mut client = Client::connect(address).unwrap();
    for _ in 0..4 {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    process.signal(Signal::TERM);
    process.wait()
}

fn server_that_waits_for_a_connection_is_aborted() {
    for (program, summary) in [
        ("server", "4 completed, 0 failed, 0 panicked, 0 abandoned, 1 aborted, 0 rejected"),
        ("server_without_inspection", "4 completed, 0 failed, 0 panicked, 1 abandoned, 0 aborted, 0 rejected"),
    ] {
        let ended = stop_with_half_request(program);
        ended
            .assert_code(1)
            .assert_stderr("the grace period of 500ms has expired: ")
            .assert_stderr("all tasks have ended, but the program at ")
            .assert_stderr("waits until its connections are closed")
            .assert_stderr("aborted all remaining tasks after ")
            .assert_stderr(summary);
        assert!(!ended.has_line("gave up") && !ended.has_line("drained in"), "{ended:#?}");
    }
}

/// The task may be in flight only because the server is: the report must name both, with the remedy for the server.
fn server_among_other_stragglers_is_reported() {
    for program in ["server_and_task", "server_and_task_without_inspection"] {
        let ended = stop_with_half_request(program);
        ended
            .assert_code(1)
            .assert_stderr("one of the tasks in flight is the program at ")
            .assert_stderr("waits until its connections are closed");
        assert!(!ended.has_line("all tasks have ended"), "{ended:#?}");
        let is_inspected = program == "server_and_task";
        ended.assert_stderr("gave up after ");
        assert_eq!(ended.has_line("the report names no task"), !is_inspected, "{ended:#?}");
    }
}

fn lines_name_the_oldest_tasks() {
    let mut process = Program::new("many_tasks").with("REPEAT_WINDOW", "0").start_ready();
    process.signal(Signal::TERM);
    process.stderr_line("draining: 3 in flight: 2 × mail for ");
    process.signal(Signal::TERM);
    process.wait().assert_code(130).assert_stderr("exiting immediately, 3 in flight: 2 × mail for ");

    // Without inspection, the lines can name only the program.
    let mut process = Program::new("task_without_inspection").with("REPEAT_WINDOW", "0").start_ready();
    process.signal(Signal::TERM);
    process.stderr_line("draining: 2 in flight: the program at ");
    process.release();
    process.stderr_line("draining: 1 in flight");
    process.signal(Signal::TERM);
    let ended = process.wait();
    ended.assert_code(130).assert_stderr("exiting immediately, 1 in flight");
    assert!(ended.has_line(" and 1 other task") && !ended.has_line("1 in flight:"), "{ended:#?}");
}

/// A program may fail before it is ready, for example because its port is in use.
#[cfg(feature = "tracing")]
fn error_at_start_is_the_first_event() {
    for program in ["traced_failure", "traced_failure_without_observer"] {
        let ended = Program::new(program).start().wait();
        let output = ended.assert_code(2).output();
        let lines: Vec<_> = output.lines().collect();
        assert!(lines[0].contains("ERROR background_tasks_host: message=the program failed: broken"), "{output}");
        assert_eq!(output.matches("broken").count(), 1, "{output}");
        assert!(lines[lines.len() - 1].contains("drained"), "{output}");
    }
}

/// The host and the observer of the registry report the error of the program. The host and the observer must report the error before the
/// end of the drain.
#[cfg(feature = "tracing")]
fn error_in_drain_precedes_its_end() {
    let mut process = Program::new("traced_failure_in_drain").start_ready();
    process.signal(Signal::TERM);
    process.stderr_line("shutdown started");
    process.release();
    let output = process.wait().assert_code(2).output();
    assert!(output.contains("the program failed: broken"), "{output}");
    assert!(output.rfind("broken") < output.find("drained"), "{output}");
    assert!(output.find(ASKED_TO_STOP).unwrap() < output.find("shutdown started").unwrap(), "{output}");
}

/// The host must not report the start and the end of the drain if a `TracingObserver` reports them with the counts as fields.
#[cfg(feature = "tracing")]
fn start_and_end_are_reported_once() {
    for (program, start, end) in [
        ("traced_failure", "background task shutdown started", "background tasks drained"),
        ("traced_failure_without_observer", "draining: 1 in flight", "drained in "),
    ] {
        let output = Program::new(program).start().wait().assert_code(2).output();
        // If the drain takes long, a line with the oldest tasks follows, which contains a second colon.
        let lines: Vec<_> = output.lines().filter(|line| !line.contains("in flight:")).collect();
        let count = |texts: &[&str]| lines.iter().filter(|line| texts.iter().any(|text| line.contains(text))).count();
        assert_eq!((count(&[start]), count(&["shutdown started", "draining: "])), (1, 1), "{output}");
        assert_eq!((count(&[end]), count(&["drained"])), (1, 1), "{output}");
    }
}

#[cfg(feature = "tracing")]
fn stragglers_are_one_event_each() {
    let process = Program::new("traced_many_tasks").with("GRACE", GRACE).start_ready();
    process.signal(Signal::TERM);
    let output = process.wait().assert_code(1).output();
    let expired = "WARN background_tasks_host: message=the grace period of 500ms has expired in_flight=3 completed=1 ";
    assert!(output.contains(expired), "{output}");
    for (name, count) in [("mail", 2), ("upload", 1)] {
        let straggler = format!("WARN background_tasks_host: message=background task still in flight task.name=\"{name}\" ");
        let events = output.lines().filter(|line| line.starts_with(&straggler));
        let is_complete = |line: &&str| {
            ["task.location=", "task.kind=", "task.id=", "task.age_seconds="].iter().all(|field| line.contains(field))
        };
        assert_eq!(events.filter(is_complete).count(), count, "{output}");
    }
}

/// After the abort, the event of a blocked task reports that the abort was requested.
#[cfg(feature = "tracing")]
fn blocked_task_has_an_abort_requested() {
    let process = Program::new("traced_blocked_task").with("GRACE", GRACE).start_ready();
    process.signal(Signal::TERM);
    let output = process.wait().assert_code(1).output();
    let events: Vec<_> = output.lines().filter(|line| line.contains("message=background task still in flight")).collect();
    let requested: Vec<_> = events.iter().map(|line| line.contains(" task.abort_requested=true")).collect();
    assert_eq!(requested, [false, true], "{output}");
}

/// If the subscriber writes to the terminal, its lines would overwrite the bar, so the host hides the bar.
#[cfg(all(unix, feature = "bar", feature = "tracing"))]
fn bar_is_hidden_if_the_host_emits_events() {
    use nix::pty::{OpenptyResult, Winsize, openpty};
    use std::fs::File;
    use std::io::Read;
    use std::sync::{Arc, Mutex};
    use testing::poll_until_some;

    const BAR: &str = "draining [";
    for (program, has_bar) in [("task", true), ("traced_bar", false), ("traced_bar_on_request", true)] {
        let OpenptyResult { master, slave } =
            openpty(&Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }, None).unwrap();
        let mut process = Program::new(program).with("TERM", "xterm").start_with(slave);
        process.stdout_line("ready");
        process.signal(Signal::TERM);
        let terminal = Arc::new(Mutex::new(Vec::new()));
        let output = terminal.clone();
        // The read fails after the process has exited.
        thread::spawn(move || {
            let (mut master, mut bytes) = (File::from(master), [0; 1024]);
            while let Ok(len @ 1..) = master.read(&mut bytes) {
                output.lock().unwrap().extend_from_slice(&bytes[..len]);
            }
        });
        // The output ends with the bar, or with the second line that the host prints instead of the bar.
        let shown = poll_until_some(&program, || {
            let shown = String::from_utf8_lossy(&terminal.lock().unwrap()).into_owned();
            (shown.contains(BAR) || shown.contains("draining: 1 in flight: 1 × task for ")).then_some(shown)
        });
        assert_eq!(shown.contains(BAR), has_bar, "{program}: {shown}");
        process.release();
        process.wait().assert_code(0);
    }
}

struct Program(Command);

impl Program {
    fn new(name: &str) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.env("PROGRAM", name).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command)
    }

    /// Returns a program that starts with these signals ignored.
    #[cfg(unix)]
    fn ignoring(signals: &str, name: &str) -> Self {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("trap '' {signals}; exec \"$0\" \"$@\"")).arg(env::current_exe().unwrap());
        command.env("PROGRAM", name).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    fn start(self) -> Running {
        self.start_with(Stdio::piped())
    }

    /// Starts the program, and waits until it prints `ready`.
    #[track_caller]
    fn start_ready(self) -> Running {
        let mut process = self.start();
        process.stdout_line("ready");
        process
    }

    fn start_with(mut self, stderr: impl Into<Stdio>) -> Running {
        let mut process = Process::spawn(self.0.stderr(stderr));
        let stdin = process.stdin();
        Running { stdin, process }
    }
}

/// A program that runs, and a pipe to its stdin.
struct Running {
    /// The pipe is the first field, so it is closed before the process is killed. A child of the process may wait for the end of the
    /// pipe.
    stdin: ChildStdin,
    process: Process,
}

impl Running {
    /// Sends a line to the program, so that it continues.
    fn release(&mut self) {
        // The write fails if the program has already ended. The test then examines how it ended.
        let _ = self.stdin.write_all(b"\n");
    }

    fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    #[track_caller]
    fn stdout_line(&mut self, text: &str) {
        self.process.stdout_line(text);
    }

    #[track_caller]
    fn stderr_line(&mut self, text: &str) {
        self.process.stderr_line(text);
    }

    #[track_caller]
    fn wait(self) -> Ended {
        // Keeps the pipe to stdin open until the program has ended.
        let Self { stdin, process } = self;
        let _stdin = stdin;
        process.wait()
    }
}
