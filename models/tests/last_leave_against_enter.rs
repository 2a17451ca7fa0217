//! The last one leaves a draining registry while another comes.

mod common;

use background_tasks::RejectReason;
use common::{Polled, Registry, check, counts, on_shard};
use std::sync::Arc;

/// S3, S4, S5: the newcomer is refused, and so is everybody after it; or it is accepted, and nothing has drained while it is there.
#[test]
fn in_or_out() {
    check(1, || {
        let registry = Registry::new(());
        let guard = registry.guard().unwrap();
        registry.shutdown();
        let leaver = on_shard(0, move || drop(guard));
        let accepted = match registry.guard() {
            Ok(newcomer) => {
                assert!(!registry.is_drained());
                drop(newcomer);
                1
            }
            Err(rejected) => {
                assert_eq!(rejected.reason(), RejectReason::Drained);
                0
            }
        };
        assert!(accepted == 1 || registry.guard().is_err());
        leaver.join().unwrap();
        assert!(registry.is_drained());
        assert!(registry.guard().is_err());
        let rejected = if accepted == 1 { 1 } else { 3 };
        assert_eq!(counts(registry.summary()), [1 + accepted, 0, 0, rejected]);
    });
}

/// S3: who is told that it has drained is told so for ever, and the summary changes no more but for what is refused.
#[test]
fn drained_is_final() {
    check(2, || {
        let registry = Arc::new(Registry::new(()));
        let guard = registry.guard().unwrap();
        registry.shutdown();
        let leaver = on_shard(0, move || drop(guard));
        let newcomer = on_shard(1, {
            let registry = registry.clone();
            move || u64::from(registry.guard().is_ok())
        });
        let drained = registry.is_drained().then(|| {
            assert!(registry.guard().is_err());
            registry.summary()
        });
        leaver.join().unwrap();
        let accepted = newcomer.join().unwrap();
        assert!(registry.is_drained());
        assert_eq!(registry.summary().completed, 1 + accepted);
        assert!(drained.is_none_or(|drained| drained.completed == 1 + accepted));
    });
}

/// S4: whoever is refused is counted by nobody, not even while it is refused. It would be the second, and flip the top bit of *accepted*.
#[test]
fn a_stray_is_not_seen() {
    check(1, || {
        let registry = Arc::new(Registry::new(()));
        drop(registry.guard().unwrap());
        registry.shutdown();
        let newcomer = on_shard(0, {
            let registry = registry.clone();
            move || assert!(registry.guard().is_err())
        });
        let summary = registry.summary();
        assert_eq!((summary.completed, registry.in_flight()), (1, 0));
        assert!(Polled::new(registry.wait_idle()).poll().is_ready());
        newcomer.join().unwrap();
        assert_eq!(counts(registry.summary()), [1, 0, 0, 1]);
    });
}
