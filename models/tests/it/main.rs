//! Explores races with loom: one module for each race. The labels `S1` to `H4` name the invariants in `docs/invariants.md`.

mod common;

mod abort_races_poll;
mod abort_races_start;
mod accepted_count_wraps;
mod children;
mod close_races_enter;
mod concurrent_shutdowns;
mod concurrent_waiters;
mod drained_shows_effects;
mod join_races;
mod last_handle_dropped;
mod last_leave_races_enter;
mod last_leave_races_listen;
mod permit_races_waiter;
mod reported_before_drained;
mod service_runs;
mod slot_reuse;
mod state_reuse;
mod trigger_races_poll;
mod wait_idle;
mod without_permit_races_permit;
