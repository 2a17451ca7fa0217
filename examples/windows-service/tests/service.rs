//! Tests the service with the service control manager of Windows or Wine. On Windows, run the test as an administrator.
#![cfg(windows)]

use std::env;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use windows_service::service::{Service, ServiceAccess, ServiceExitCode, ServiceState, ServiceStatus};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a command of the program `invoices`. Returns whether the command succeeded.
fn run(command: &str) -> bool {
    // This test is in the folder `deps`, and `invoices.exe` is in the parent folder.
    let program = env::current_exe().unwrap().parent().unwrap().with_file_name("invoices.exe");
    Command::new(program).arg(command).status().unwrap().success()
}

/// Queries the state of the service until it is `expected`. Returns the sequence of states, without repetitions.
fn states_until(service: &Service, expected: ServiceState) -> Vec<ServiceStatus> {
    let deadline = Instant::now() + PATIENCE;
    let mut states: Vec<ServiceStatus> = Vec::new();
    loop {
        let state = service.query_status().unwrap();
        if states.last() != Some(&state) {
            states.push(state.clone());
        }
        if state.current_state == expected {
            return states;
        }
        assert!(Instant::now() < deadline, "{states:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn log() -> String {
    fs::read_to_string(env::temp_dir().join("invoices.log")).unwrap()
}

/// There is only one test, because a computer can have only one service with this name.
#[test]
fn service_reports_its_states_and_finishes_its_tasks() {
    // An earlier run of the test may have failed, so the service may still be installed and running.
    run("uninstall");
    let deadline = Instant::now() + PATIENCE;
    while !run("install") {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(100));
    }
    let manager = ServiceManager::local_computer(None::<&str>, ServiceManagerAccess::CONNECT).unwrap();
    let service = manager.open_service("invoices", ServiceAccess::all()).unwrap();

    service.start(&["slow-start"]).unwrap();
    let states = states_until(&service, ServiceState::Running);
    let is_host = |state: &ServiceStatus| state.current_state == ServiceState::StartPending && state.wait_hint.as_secs() == 30;
    assert!(states.iter().any(is_host), "{states:#?}");
    // After two seconds, some invoices are in flight. They end one after the other.
    thread::sleep(Duration::from_secs(2));
    service.stop().unwrap();
    let states = states_until(&service, ServiceState::Stopped);
    let pending: Vec<_> = states.iter().filter(|state| state.current_state == ServiceState::StopPending).collect();
    assert!(pending.len() > 1 && pending.is_sorted_by(|a, b| a.checkpoint < b.checkpoint), "{states:#?}");
    assert!(pending.iter().all(|state| state.wait_hint <= Duration::from_secs(9)), "{states:#?}");
    assert_eq!(states.last().unwrap().exit_code, ServiceExitCode::Win32(0), "{states:#?}");
    let log = log();
    let started: usize = log.lines().find_map(|line| line.strip_suffix(" invoices were started")?.parse().ok()).unwrap();
    assert!(started > 1 && log.matches("is sent").count() == started, "{log}");

    // A task hangs, so the service exits with the code of a missed deadline.
    service.start(&["hang"]).unwrap();
    states_until(&service, ServiceState::Running);
    service.stop().unwrap();
    let states = states_until(&service, ServiceState::Stopped);
    assert_eq!(states.last().unwrap().exit_code, ServiceExitCode::ServiceSpecific(1), "{states:#?}");
    drop(service);
    assert!(run("uninstall"));
    // This call must fail, because Windows has not started this process as a service.
    assert!(!run("service"));
}
