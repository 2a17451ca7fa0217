//! Runs the service under real service managers, runit and systemd. One runtime is enough, because these tests do not depend on the
//! runtime.

#![cfg(target_os = "linux")]

notes::service_tests! { env!("CARGO_BIN_EXE_notes-tokio");
    under_runit
    under_systemd
}
