use core::fmt::Display;

/// What a background task may return: `()`, `Result<(), E>` where `E: Display`, or nothing ever (`!`).
///
/// An `Err` counts the task as failed. The trait is sealed: what nobody would read should not be returned in silence.
///
/// ```
/// # fn main() {}
/// # #[cfg(feature = "smol")]
/// # async fn kinds(registry: background_tasks::Registry<background_tasks::SmolSpawner>) {
/// registry.run(async {});
/// registry.run(async { std::fs::remove_file("cache.tmp") });
/// registry.run(async { loop { smol::future::yield_now().await } });
/// registry.run(async { panic!("caught, and counted") });
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a background task cannot return `{Self}`",
    label = "this task returns `{Self}`",
    note = "a task returns `()`, `Result<(), E>` with `E: Display`, or never; end it with `;` or `.map(drop)` if nobody needs the value"
)]
pub trait TaskOutput: sealed::Sealed {
    #[doc(hidden)]
    fn error(&self) -> Option<&dyn Display>;
}

impl TaskOutput for () {
    fn error(&self) -> Option<&dyn Display> {
        None
    }
}

impl<E: Display> TaskOutput for Result<(), E> {
    fn error(&self) -> Option<&dyn Display> {
        self.as_ref().err().map(|error| error as &dyn Display)
    }
}

impl TaskOutput for Never {
    fn error(&self) -> Option<&dyn Display> {
        match *self {}
    }
}

/// `!`, which stable Rust lets nobody write as a type of its own: what a function that never returns returns.
type Never = <fn() -> ! as sealed::Return>::Output;

mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl<E: core::fmt::Display> Sealed for Result<(), E> {}
    impl Sealed for super::Never {}

    pub trait Return {
        type Output;
    }
    impl<T> Return for fn() -> T {
        type Output = T;
    }
}
