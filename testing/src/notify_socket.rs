//! Receives the notifications that a service sends to systemd.

use crate::PATIENCE;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A socket that receives the notifications of a service in place of systemd. Pass the path of this socket to the service in the
/// environment variable `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    dir: TempDir,
    address: PathBuf,
}

impl NotifySocket {
    #[expect(clippy::new_without_default, reason = "it creates a file")]
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let address = dir.path().join("notify");
        Self::with(UnixDatagram::bind(&address).unwrap(), dir, address)
    }

    /// Creates a socket that has a name instead of a file, as some service managers do.
    #[cfg(target_os = "linux")]
    pub fn in_abstract_namespace() -> Self {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;
        let dir = TempDir::new().unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        let address = format!("@{name}").into();
        Self::with(socket, dir, address)
    }

    fn with(socket: UnixDatagram, dir: TempDir, address: PathBuf) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, dir, address }
    }

    /// Returns the value of the environment variable.
    pub fn address(&self) -> &Path {
        &self.address
    }

    /// Waits for the next notification and returns it.
    #[track_caller]
    pub fn receive(&self) -> String {
        self.try_receive().expect("the service sends no notification")
    }

    fn try_receive(&self) -> io::Result<String> {
        let mut message = [0; 1024];
        let len = self.socket.recv(&mut message)?;
        Ok(String::from_utf8(message[..len].to_vec()).unwrap())
    }

    /// Waits for a notification that contains all strings in `parts`.
    #[track_caller]
    pub fn receive_with(&self, parts: &[&str]) -> String {
        loop {
            let message = self.receive();
            if parts.iter().all(|part| message.contains(part)) {
                return message;
            }
        }
    }

    /// Returns the notifications that have arrived.
    pub fn receive_all(&self) -> Vec<String> {
        self.socket.set_nonblocking(true).unwrap();
        let notifications = std::iter::from_fn(|| self.try_receive().ok()).collect();
        self.socket.set_nonblocking(false).unwrap();
        notifications
    }

    /// Fills the queue of the socket. Until the test receives notifications, the service can then send none.
    pub fn fill(&self) {
        let send = || {
            // A socket limits the datagrams that it has sent, so each datagram has its own socket.
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.send_to(b"FILLED=1", &self.address)
        };
        let error = std::iter::repeat_with(send).find_map(Result::err).unwrap();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    }

    /// Removes the socket. The service can then send no more notifications.
    pub fn remove(&self) {
        std::fs::remove_dir_all(self.dir.path()).unwrap();
    }
}
