//! Timestamps in nanoseconds since a moment that is the same for the whole program.

/// In the browser `std` has no clock and panics when it is read. The feature `wasm-bindgen-futures` brings JavaScript's clock.
pub(crate) const HAS_CLOCK: bool =
    cfg!(any(feature = "wasm-bindgen-futures", not(all(target_family = "wasm", target_os = "unknown"))));

/// Returns the kernel's time of the last tick: a few milliseconds old, and cheaper to read than the precise clock.
#[cfg(all(feature = "coarse-clock", any(target_os = "linux", target_os = "android")))]
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(not(all(feature = "coarse-clock", any(target_os = "linux", target_os = "android"))))]
pub(crate) fn now() -> u64 {
    use std::sync::OnceLock;
    #[cfg(not(all(feature = "wasm-bindgen-futures", target_family = "wasm", target_os = "unknown")))]
    use std::time::Instant;
    #[cfg(all(feature = "wasm-bindgen-futures", target_family = "wasm", target_os = "unknown"))]
    use web_time::Instant;

    static FIRST: OnceLock<Instant> = OnceLock::new();
    if !HAS_CLOCK {
        return 0;
    }
    // Not `elapsed`: the clocks of two web workers can differ by a rounding, and `web-time` panics on a negative difference.
    let first = *FIRST.get_or_init(Instant::now);
    let since = Instant::now().duration_since(first);
    since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
}
