//! Hosts whose `run` is dropped.

use background_tasks::{Registry, SmolSpawner};
use background_tasks_host::Host;
use futures_lite::future::poll_once;
use std::future::pending;
use std::pin::pin;
use std::sync::mpsc::{RecvTimeoutError, channel};
use testing::{PATIENCE, poll_until};

/// A runtime can run the host as a task.
#[test]
fn future_of_run_is_send() {
    let is_send = |_: &dyn Send| ();
    is_send(&Host::new(&Registry::new(SmolSpawner)).run(pending::<()>()));
}

/// The drain's thread drops the function of `fail_if` when it ends.
#[test]
fn host_dropped_while_the_first_registry_drains_leaves_later_registries_open() {
    let (requests, workers) = (Registry::new(SmolSpawner), Registry::new(SmolSpawner));
    let request = requests.guard().unwrap();
    let (held, drain_ended) = channel::<()>();
    let host = Host::new(&requests).then(&workers).fail_if(move |_| held.send(()).is_err());
    {
        let mut run = pin!(host.run(pending::<()>()));
        assert!(smol::block_on(poll_once(run.as_mut())).is_none());
        requests.start_shutdown();
        // The program counts as in flight once the drain has started.
        poll_until(&"the drain has not started", || requests.in_flight() == 2);
    }
    drop(request);
    assert_eq!(drain_ended.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    assert!(requests.is_drained());
    assert!(!workers.is_shutting_down());
}
