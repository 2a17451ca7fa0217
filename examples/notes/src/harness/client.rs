//! As much of HTTP/1.1 as the tests speak: blocking, over one connection that is kept alive.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(crate) struct Client(BufReader<TcpStream>);

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub(crate) fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[])
    }

    pub(crate) fn put(&mut self, name: &str, body: &[u8]) -> io::Result<Response> {
        self.request("PUT", &format!("/notes/{name}"), body)
    }

    pub(crate) fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        self.head(method, path, &[&format!("content-length: {}", body.len())])?;
        // A server that refuses a body may have answered before it has read it all.
        let sent = self.send(body);
        self.response().or_else(|error| sent.and(Err(error)))
    }

    pub(crate) fn put_in_chunks(&mut self, name: &str, chunks: &[&[u8]]) -> io::Result<Response> {
        self.head("PUT", &format!("/notes/{name}"), &["transfer-encoding: chunked"])?;
        let sent = chunks.iter().chain(&[&[][..]]).try_for_each(|chunk| {
            self.send(format!("{:x}\r\n", chunk.len()).as_bytes())?;
            self.send(chunk)?;
            self.send(b"\r\n")
        });
        self.response().or_else(|error| sent.and(Err(error)))
    }

    /// Begins a `PUT` and returns once the service waits for its body, of `len` bytes.
    pub(crate) fn begin_put(&mut self, name: &str, len: usize) -> io::Result<()> {
        self.head("PUT", &format!("/notes/{name}"), &[&format!("content-length: {len}"), "expect: 100-continue"])?;
        assert_eq!(self.line()?, "HTTP/1.1 100 Continue");
        assert_eq!(self.line()?, "");
        Ok(())
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    pub(crate) fn response(&mut self) -> io::Result<Response> {
        let status = self.line()?.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or(ErrorKind::InvalidData)?;
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some(len) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                body.resize(len.parse().map_err(|_| ErrorKind::InvalidData)?, 0);
            }
        }
        self.0.read_exact(&mut body)?;
        Ok(Response { status, body })
    }

    fn head(&mut self, method: &str, path: &str, headers: &[&str]) -> io::Result<()> {
        let headers = headers.join("\r\n");
        self.send(format!("{method} {path} HTTP/1.1\r\nhost: notes\r\n{headers}\r\n\r\n").as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?.to_owned())
    }
}
