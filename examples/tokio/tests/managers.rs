//! On one runtime: what a service manager does is the same to all of them.

#![cfg(target_os = "linux")]

notes::service_tests! { env!("CARGO_BIN_EXE_notes-tokio");
    under_runit
    under_systemd
}
