//! Sends Ctrl-C to a process on Windows.
//!
//! Windows has no function that sends Ctrl-C to a single process: all processes of a console receive Ctrl-C. Therefore each process
//! under test has its own console without a window. When the test requests Ctrl-C over a TCP connection, the process raises Ctrl-C
//! in its own console. This also works under Wine.

use crate::PATIENCE;
use std::cell::OnceCell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::windows::process::CommandExt;
use std::process::Command;
use std::{env, thread};
use windows_sys::Win32::System::Console::{CTRL_C_EVENT, GenerateConsoleCtrlEvent};

/// The environment variable that contains a TCP address on which the test listens. The process under test connects to this address.
const ADDRESS: &str = "CTRL_C_ADDRESS";

/// A signal that a test sends to a process. On Windows, every signal is Ctrl-C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal;

impl Signal {
    pub const TERM: Self = Self;
    pub const INT: Self = Self;
}

/// The connection through which a test requests Ctrl-C from a process.
#[derive(Debug)]
pub(crate) struct CtrlC {
    listener: TcpListener,
    stream: OnceCell<TcpStream>,
}

impl CtrlC {
    /// Sets the console and the environment of a command. The program must call [`raise_ctrl_c_on_request`].
    pub(crate) fn new(command: &mut Command) -> Self {
        const CREATE_NO_WINDOW: u32 = 0x0800_0000;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        command.env(ADDRESS, listener.local_addr().unwrap().to_string()).creation_flags(CREATE_NO_WINDOW);
        Self { listener, stream: OnceCell::new() }
    }

    /// Makes the process raise Ctrl-C, and waits until the process has raised it. Does nothing if the process has ended.
    pub(crate) fn request(&self) {
        let mut stream = self.stream.get_or_init(|| {
            let (stream, _) = self.listener.accept().unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        });
        let _ = stream.write_all(&[0]).and_then(|()| stream.read_exact(&mut [0]));
    }
}

/// Makes this process raise Ctrl-C each time its test calls [`Process::signal`](crate::Process::signal). A program under test must call
/// this function at its start.
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
    // SAFETY: `GenerateConsoleCtrlEvent` takes two integers and has no preconditions.
    let raised = unsafe { GenerateConsoleCtrlEvent(CTRL_C_EVENT, 0) };
    assert_ne!(raised, 0, "{}", std::io::Error::last_os_error());
}
