//! Provides timestamps in nanoseconds since a fixed moment. This moment is the same for all threads of the program.

/// Whether the program has a clock. In a browser, `Instant::now` of `std` panics, so the program has a clock only with the feature
/// `wasm-bindgen-futures`. With this feature, the program uses JavaScript's clock.
pub(crate) const HAS_CLOCK: bool =
    cfg!(any(feature = "wasm-bindgen-futures", not(all(target_family = "wasm", target_os = "unknown"))));

/// Returns the time of the kernel's last tick. This time is up to a few milliseconds old, but it is cheaper to read than the
/// precise time.
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
    // This code does not call `elapsed` of the crate `web-time`. The clocks of two web workers can differ by a rounding error, and
    // `elapsed` panics if the difference is negative.
    let first = *FIRST.get_or_init(Instant::now);
    let since = Instant::now().duration_since(first);
    since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
}
