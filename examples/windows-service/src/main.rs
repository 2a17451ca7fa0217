//! A Win32 service that sends invoices. When Windows stops the service, it starts no new invoices, and finishes the invoices in flight.

#[cfg(windows)]
mod options;
#[cfg(windows)]
mod service;

#[cfg(windows)]
fn main() -> std::process::ExitCode {
    service::main()
}

#[cfg(not(windows))]
fn main() -> std::process::ExitCode {
    eprintln!("this program is a Windows service: build it for Windows");
    2.into()
}
