//! When something began, in nanoseconds since some moment that is the same for all.

#[cfg(not(all(feature = "wasm-bindgen-futures", target_family = "wasm", target_os = "unknown")))]
pub(crate) use std::time::Instant;
#[cfg(all(feature = "wasm-bindgen-futures", target_family = "wasm", target_os = "unknown"))]
pub(crate) use web_time::Instant;

/// In the browser `std` has no clock: reading it panics. That of JavaScript comes with a feature.
pub(crate) const IS_THERE: bool =
    cfg!(any(feature = "wasm-bindgen-futures", not(all(target_family = "wasm", target_os = "unknown"))));

/// The kernel's clock of the last tick: a few milliseconds old, and read without asking the processor for the time.
#[cfg(all(feature = "coarse-clock", any(target_os = "linux", target_os = "android")))]
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(not(all(feature = "coarse-clock", any(target_os = "linux", target_os = "android"))))]
pub(crate) fn now() -> u64 {
    use std::sync::OnceLock;

    static FIRST: OnceLock<Instant> = OnceLock::new();
    if !IS_THERE {
        return 0;
    }
    // Not `elapsed`: two workers' clocks may differ by a rounding, and that of `web-time` panics then.
    let first = *FIRST.get_or_init(Instant::now);
    let since = Instant::now().duration_since(first);
    since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
}
