#![cfg(unix)]

notes::service_tests!(env!("CARGO_BIN_EXE_notes-async-std"));
