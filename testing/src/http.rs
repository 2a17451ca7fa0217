//! A blocking HTTP/1.1 client with one persistent connection. It supports only the features that the tests need.

use crate::{PATIENCE, poll_until_ok};
use std::fmt::{self, Debug, Formatter};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
    /// The header lines that the client adds to each request.
    headers: String,
}

pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Debug for Response {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(&self.body))
    }
}

impl Response {
    /// Returns the value of the first header with this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|(other, value)| other.eq_ignore_ascii_case(name).then_some(&**value))
    }

    /// Returns the body as a string.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), headers: "host: localhost\r\n".into() })
    }

    /// Sets the headers of all later requests. Default: `host: localhost`.
    pub fn with_headers(mut self, headers: &[&str]) -> Self {
        self.headers = headers.iter().flat_map(|header| [header, "\r\n"]).collect();
        self
    }

    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[])
    }

    /// Requests a path again and again until the body of the response contains `text`. Returns the body. Each response must have the
    /// status 200.
    #[track_caller]
    pub fn get_until(&mut self, path: &str, text: &str) -> String {
        poll_until_ok(|| {
            let response = self.get(path).unwrap();
            assert_eq!(response.status, 200, "{response:?}");
            if response.text().contains(text) { Ok(response.text().to_owned()) } else { Err((path, text, response)) }
        })
    }

    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        self.head(method, path, &format!("content-length: {}", body.len()))?;
        // A server that rejects a body can respond and close the connection before it has read the whole body. The send then fails,
        // but the response can still be read.
        let sent = self.send(body);
        self.response().or_else(|error| sent.and(Err(error)))
    }

    /// Sends a request with a chunked body.
    pub fn request_in_chunks(&mut self, method: &str, path: &str, chunks: &[&[u8]]) -> io::Result<Response> {
        self.head(method, path, "transfer-encoding: chunked")?;
        let sent = chunks.iter().chain(&[&[][..]]).try_for_each(|chunk| {
            self.send(format!("{:x}\r\n", chunk.len()).as_bytes())?;
            self.send(chunk)?;
            self.send(b"\r\n")
        });
        self.response().or_else(|error| sent.and(Err(error)))
    }

    /// Sends a POST request without a body on a separate thread. Calls `then` after the response or an error.
    pub fn post_then(address: SocketAddr, path: &'static str, then: fn()) {
        thread::spawn(move || {
            let _ = Self::connect(address).and_then(|mut client| client.request("POST", path, b""));
            then();
        });
    }

    /// Sends the headers of a request that announce a body of `len` bytes. Waits until the server responds with `100 Continue`.
    pub fn start_request(&mut self, method: &str, path: &str, len: usize) -> io::Result<()> {
        self.head(method, path, &format!("content-length: {len}\r\nexpect: 100-continue"))?;
        assert_eq!(self.line()?, "HTTP/1.1 100 Continue");
        assert_eq!(self.line()?, "");
        Ok(())
    }

    /// Sends a part of a request body.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Waits until the first bytes of the response have arrived.
    pub fn wait_for_response(&mut self) -> io::Result<()> {
        self.stream.fill_buf().map(drop)
    }

    pub fn response(&mut self) -> io::Result<Response> {
        let status = self.line()?.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or(ErrorKind::InvalidData)?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").ok_or(ErrorKind::InvalidData)?;
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut response = Response { status, headers, body: Vec::new() };
        if let Some(len) = response.header("content-length") {
            response.body.resize(len.parse().map_err(|_| ErrorKind::InvalidData)?, 0);
            self.stream.read_exact(&mut response.body)?;
        } else if response.header("transfer-encoding") == Some("chunked") {
            while self.chunk(&mut response.body)? > 0 {}
        } else {
            self.stream.read_to_end(&mut response.body)?;
        }
        Ok(response)
    }

    /// Reads the next chunk of a response body, and returns the length of the chunk.
    fn chunk(&mut self, body: &mut Vec<u8>) -> io::Result<u64> {
        let len = u64::from_str_radix(&self.line()?, 16).map_err(|_| ErrorKind::InvalidData)?;
        self.stream.by_ref().take(len).read_to_end(body)?;
        self.line()?;
        Ok(len)
    }

    fn head(&mut self, method: &str, path: &str, more: &str) -> io::Result<()> {
        let head = format!("{method} {path} HTTP/1.1\r\n{}{more}\r\n\r\n", self.headers);
        self.send(head.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?.to_owned())
    }
}
