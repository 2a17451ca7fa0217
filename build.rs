//! Sets the cfg `infallible_is_never` for Rust 1.100 and later, where `Infallible` is an alias of `!`. Fails if the
//! crate would have no locks.

use std::env::var_os;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // This error stops the build before the compiler starts. A `compile_error!` would be hidden by a hundred errors that follow it.
    if var_os("CARGO_FEATURE_STD").is_none()
        && var_os("CARGO_FEATURE_CRITICAL_SECTION").is_none()
        && var_os("CARGO_CFG_TARGET_OS").is_none_or(|os| os != "none")
    {
        println!(
            "cargo::error=the crate needs its default feature `std` on this target: remove `default-features = false`. \
             A program without the standard library needs the feature `critical-section`."
        );
    }
    println!("cargo::rustc-check-cfg=cfg(infallible_is_never)");
    let rustc = var_os("RUSTC").expect("cargo sets RUSTC");
    let output = Command::new(rustc).arg("--version").output().expect("rustc prints its version");
    // For example `rustc 1.95.0 (59807616e 2026-04-14)`.
    let version = String::from_utf8(output.stdout).expect("the version is UTF-8");
    let minor = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    if minor.is_some_and(|minor| minor >= 100) {
        println!("cargo::rustc-cfg=infallible_is_never");
    }
}
