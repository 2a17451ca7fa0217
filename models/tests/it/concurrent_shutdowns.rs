//! Two threads start the shutdown.

use crate::common::{Registry, check, counts, spawn_on_shard};
use std::sync::Arc;

/// S3, S4: When either call returns, a registry with nothing in flight rejects every entry. The registry drains once.
#[test]
fn each_shutdown_closes_every_gate() {
    fn close(registry: &Registry) {
        registry.start_shutdown();
        assert!(registry.is_shutting_down());
        assert!(registry.guard().is_err());
    }
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let other = spawn_on_shard(1, {
            let registry = registry.clone();
            move || close(&registry)
        });
        close(&registry);
        other.join().unwrap();
        assert_eq!(counts(registry.shutdown().wait()), [0, 0, 0, 2]);
    });
}
