//! Catching, where there is something to catch with. Without `std` a panic ends the program, or passes through.

#[cfg(feature = "std")]
mod with_std {
    use std::any::Any;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    pub(crate) use std::panic::resume_unwind as resume;
    pub(crate) use std::thread::panicking;

    pub(crate) type Payload = Box<dyn Any + Send>;

    /// What a panic says, if it says it as `panic!` does.
    pub(crate) fn message(payload: &Payload) -> &str {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("(a payload that is no text)")
    }

    /// Runs `f` and stops a panic of it.
    #[inline]
    pub(crate) fn contain<T>(f: impl FnOnce() -> T) -> Result<T, Payload> {
        catch_unwind(AssertUnwindSafe(f))
    }

    /// Runs foreign code whose panic concerns nobody here. The payload may panic in turn when dropped: the second one is leaked.
    pub(crate) fn shield(f: impl FnOnce()) {
        if let Err(payload) = contain(f) {
            if let Err(second) = contain(|| drop(payload)) {
                core::mem::forget(second);
            }
        }
    }
}
#[cfg(feature = "std")]
pub(crate) use with_std::*;

#[cfg(not(feature = "std"))]
mod without_std {
    pub(crate) type Payload = core::convert::Infallible;

    #[expect(clippy::unnecessary_wraps, reason = "the shape of the one that catches")]
    pub(crate) fn contain<T>(f: impl FnOnce() -> T) -> Result<T, Payload> {
        Ok(f())
    }

    pub(crate) fn shield(f: impl FnOnce()) {
        f();
    }

    pub(crate) fn resume(payload: Payload) -> ! {
        match payload {}
    }

    pub(crate) fn panicking() -> bool {
        false
    }
}
#[cfg(not(feature = "std"))]
pub(crate) use without_std::*;

/// Wakes somebody, if there is somebody.
#[cfg(feature = "std")]
pub(crate) fn wake(waker: Option<core::task::Waker>) {
    if let Some(waker) = waker {
        shield(|| waker.wake());
    }
}

/// Drops something of the user's.
pub(crate) fn discard<T>(foreign: T) {
    shield(|| drop(foreign));
}
