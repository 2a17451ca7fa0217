//! Ctrl-C on Windows.
//!
//! On Windows, all processes of a console receive Ctrl-C: no call sends it to a single process. Therefore each process under test has its
//! own console, without a window, and raises Ctrl-C there when the test requests it. This also works under Wine.

use crate::PATIENCE;
use std::cell::OnceCell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::windows::process::CommandExt;
use std::process::Command;
use std::{env, thread};
use windows_sys::Win32::System::Console::{CTRL_C_EVENT, GenerateConsoleCtrlEvent};

/// The environment variable with the address to which the process under test connects.
const ADDRESS: &str = "CTRL_C_ADDRESS";

/// A signal. All signals are Ctrl-C on Windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal;

impl Signal {
    pub const TERM: Self = Self;
    pub const INT: Self = Self;
}

/// Requests that a process raises Ctrl-C.
#[derive(Debug)]
pub(crate) struct CtrlC {
    listener: TcpListener,
    stream: OnceCell<TcpStream>,
}

impl CtrlC {
    /// Prepares the command of a process that calls [`raise_ctrl_c_on_request`].
    pub(crate) fn new(command: &mut Command) -> Self {
        const CREATE_NO_WINDOW: u32 = 0x0800_0000;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        command.env(ADDRESS, listener.local_addr().unwrap().to_string()).creation_flags(CREATE_NO_WINDOW);
        Self { listener, stream: OnceCell::new() }
    }

    /// Returns once the process has raised Ctrl-C. Does nothing if the process has ended.
    pub(crate) fn request(&self) {
        let mut stream = self.stream.get_or_init(|| {
            let (stream, _) = self.listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        });
        let _ = stream.write_all(&[0]).and_then(|()| stream.read_exact(&mut [0]));
    }
}

/// Makes this process raise Ctrl-C whenever its test calls [`Process::signal`](crate::Process::signal). A program under test calls this
/// function first.
pub fn raise_ctrl_c_on_request() {
    let mut stream = TcpStream::connect(env::var(ADDRESS).unwrap()).unwrap();
    thread::spawn(move || {
        while stream.read_exact(&mut [0]).is_ok() {
            raise_ctrl_c();
            let _ = stream.write_all(&[0]);
        }
    });
}

/// Raises Ctrl-C in all processes of this console.
pub fn raise_ctrl_c() {
    // SAFETY: the function takes two integers, and has no preconditions.
    let raised = unsafe { GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0) };
    assert_ne!(raised, 0, "{}", std::io::Error::last_os_error());
}
