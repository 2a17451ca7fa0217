//! A blocking HTTP/1.1 client with one connection, which is kept alive. It covers only what the tests need.

use crate::PATIENCE;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

#[derive(Debug)]
pub struct Client(BufReader<TcpStream>);

#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Response {
    /// Returns the body as text.
    pub fn text(self) -> String {
        String::from_utf8(self.body).unwrap()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[])
    }

    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        self.head(method, path, &[&format!("content-length: {}", body.len())])?;
        // A server that rejects a body may respond before it has read all of it.
        let sent = self.send(body);
        self.response().or_else(|error| sent.and(Err(error)))
    }

    /// Sends a request with a chunked body.
    pub fn request_in_chunks(&mut self, method: &str, path: &str, chunks: &[&[u8]]) -> io::Result<Response> {
        self.head(method, path, &["transfer-encoding: chunked"])?;
        let sent = chunks.iter().chain(&[&[][..]]).try_for_each(|chunk| {
            self.send(format!("{:x}\r\n", chunk.len()).as_bytes())?;
            self.send(chunk)?;
            self.send(b"\r\n")
        });
        self.response().or_else(|error| sent.and(Err(error)))
    }

    /// Sends the head of a request, and returns once the server waits for its body of `len` bytes.
    pub fn start_request(&mut self, method: &str, path: &str, len: usize) -> io::Result<()> {
        self.head(method, path, &[&format!("content-length: {len}"), "expect: 100-continue"])?;
        assert_eq!(self.line()?, "HTTP/1.1 100 Continue");
        assert_eq!(self.line()?, "");
        Ok(())
    }

    /// Sends a part of a body.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.get_mut().write_all(bytes)
    }

    pub fn response(&mut self) -> io::Result<Response> {
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
        self.send(format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n\r\n").as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?.to_owned())
    }
}
