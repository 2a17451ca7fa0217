//! Tests the service with the service control manager of Windows or Wine. On Windows, run the test as an administrator.
#![cfg(windows)]

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;
use testing::{poll_until, poll_until_ok};
use windows_service::service::{
    Service, ServiceAccess, ServiceActionType, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

/// Runs a command of the program `invoices`. Returns whether the command succeeded.
fn run(command: &str) -> bool {
    program(&[command]).status().unwrap().success()
}

fn program(arguments: &[&str]) -> Command {
    // This test is in the folder `deps`, and `invoices.exe` is in the parent folder.
    let mut program = Command::new(env::current_exe().unwrap().parent().unwrap().with_file_name("invoices.exe"));
    program.args(arguments);
    program
}

/// Queries the state of the service until it is `expected`. Returns the sequence of states, without repetitions.
fn states_until(service: &Service, expected: ServiceState) -> Vec<ServiceStatus> {
    let mut states: Vec<ServiceStatus> = Vec::new();
    poll_until_ok(|| {
        let state = service.query_status().unwrap();
        let is_expected = state.current_state == expected;
        if states.last() != Some(&state) {
            states.push(state);
        }
        if is_expected { Ok(()) } else { Err(states.clone()) }
    });
    states
}

fn log() -> PathBuf {
    env::temp_dir().join("invoices.log")
}

fn pending(states: &[ServiceStatus]) -> Vec<&ServiceStatus> {
    states.iter().filter(|state| state.current_state == ServiceState::StopPending).collect()
}

#[test]
fn grace_period_that_windows_cannot_wait_is_refused() {
    let output = program(&["install", "--grace", "4294964"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("invalid value '4294964' for '--grace <SECONDS>'"), "{output:?}");
}

/// Only this test installs the service, because a computer can have only one service with this name.
#[test]
fn service_reports_its_states_and_finishes_its_tasks() {
    // An earlier run of the test may have failed, so the service may still be installed and running.
    run("uninstall");
    poll_until(&"the service is not installed", || run("install"));
    let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CONNECT).unwrap();
    let service = manager.open_service("invoices", ServiceAccess::all()).unwrap();

    // Windows restarts the service after an exit code other than 0. Wine cannot return these settings.
    if let Ok(failure) = service.get_failure_actions() {
        let actions = failure.actions.unwrap();
        assert_eq!(actions.iter().map(|action| action.action_type).collect::<Vec<_>>(), [ServiceActionType::Restart]);
        assert!(service.get_failure_actions_on_non_crash_failures().unwrap());
    }

    service.start(&["slow-start"]).unwrap();
    let states = states_until(&service, ServiceState::Running);
    let is_host = |state: &ServiceStatus| state.current_state == ServiceState::StartPending && state.wait_hint.as_secs() == 30;
    assert!(states.iter().any(is_host), "{states:#?}");
    let controls = ServiceControlAccept::STOP | ServiceControlAccept::SHUTDOWN | ServiceControlAccept::PRESHUTDOWN;
    assert_eq!(states.last().unwrap().controls_accepted, controls);
    // After two seconds, some invoices are in flight. They end one after the other.
    thread::sleep(Duration::from_secs(2));
    service.stop().unwrap();
    let states = states_until(&service, ServiceState::Stopped);
    let stopping = pending(&states);
    assert!(stopping.len() > 1 && stopping.is_sorted_by(|a, b| a.checkpoint < b.checkpoint), "{states:#?}");
    let limits = Duration::from_secs(1)..=Duration::from_secs(9);
    assert!(stopping.iter().all(|state| limits.contains(&state.wait_hint)), "{states:#?}");
    assert!(stopping.iter().all(|state| state.controls_accepted.is_empty()), "{states:#?}");
    assert_eq!(states.last().unwrap().exit_code, ServiceExitCode::Win32(0), "{states:#?}");
    let text = fs::read_to_string(log()).unwrap();
    let started: usize = text.lines().find_map(|line| line.strip_suffix(" invoices were started")?.parse().ok()).unwrap();
    assert!(started > 1 && text.matches("is sent").count() == started, "{text}");

    // A task hangs, so the service exits with the code of a missed deadline. The checkpoint rises when the shutdown starts, at the first
    // report, and when the program ends. During the rest of the eight seconds, there is no progress.
    service.start(&["hang"]).unwrap();
    states_until(&service, ServiceState::Running);
    service.stop().unwrap();
    let states = states_until(&service, ServiceState::Stopped);
    assert!(pending(&states).len() <= 3, "{states:#?}");
    assert_eq!(states.last().unwrap().exit_code, ServiceExitCode::ServiceSpecific(1), "{states:#?}");

    // The program runs, but is not ready until a file exists.
    let ready = log().with_extension("ready");
    let _ = fs::remove_file(&ready);
    fs::remove_file(log()).unwrap();
    service.start(&["slow-ready"]).unwrap();
    poll_until(&"the program does not run", || log().exists());
    let state = service.query_status().unwrap();
    assert_eq!((state.current_state, state.controls_accepted), (ServiceState::StartPending, ServiceControlAccept::empty()));
    fs::write(&ready, "").unwrap();
    states_until(&service, ServiceState::Running);
    service.stop().unwrap();
    states_until(&service, ServiceState::Stopped);
    fs::remove_file(ready).unwrap();

    // The program drops its host, so that nothing can stop the service.
    service.start(&["forget-host"]).unwrap();
    let states = states_until(&service, ServiceState::Stopped);
    assert_eq!(states.last().unwrap().exit_code, ServiceExitCode::ServiceSpecific(2), "{states:#?}");
    drop(service);
    assert!(run("uninstall"));
    // This call must fail, because Windows has not started this process as a service.
    assert!(!run("service"));
}
