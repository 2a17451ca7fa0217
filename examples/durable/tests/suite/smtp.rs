//! A mail server of a test's own.

use crate::process::PATIENCE;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// What it says of the mail of a connection.
#[derive(Clone, Copy)]
pub(crate) enum Reply {
    Says(&'static str),
    /// It never does.
    Nothing,
}

pub(crate) struct MailServer {
    pub(crate) address: SocketAddr,
    mails: Receiver<String>,
}

impl MailServer {
    /// It has these replies to the first connections, and takes the mails of the others.
    pub(crate) fn start(replies: &'static [Reply]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, mails) = channel();
        thread::spawn(move || {
            for (number, connection) in listener.incoming().enumerate() {
                let reply = replies.get(number).copied().unwrap_or(Reply::Says("250 taken"));
                let (connection, tell) = (connection.unwrap(), tell.clone());
                // An error is the client's end.
                thread::spawn(move || drop(converse(&connection, reply, &tell)));
            }
        });
        Self { address, mails }
    }

    /// The next mail that it was handed.
    #[track_caller]
    pub(crate) fn next(&self) -> String {
        self.mails.recv_timeout(PATIENCE).expect("a mail")
    }

    pub(crate) fn has_no_more(&self) -> bool {
        self.mails.try_recv().is_err()
    }
}

fn converse(connection: &TcpStream, reply: Reply, tell: &Sender<String>) -> io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(connection), connection);
    let mut say = |text: &str| writer.write_all(format!("{text}\r\n").as_bytes());
    say("220 mail server of a test")?;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.get(..4) {
            Some("DATA") => {
                say("354 go on")?;
                let mail: Vec<_> = reader.by_ref().lines().map_while(Result::ok).take_while(|line| line != ".").collect();
                tell.send(mail.join("\n")).map_err(io::Error::other)?;
                match reply {
                    Reply::Says(text) => say(text)?,
                    Reply::Nothing => drop(reader.read_to_end(&mut Vec::new())?),
                }
            }
            Some("QUIT") => return say("221 bye"),
            _ => say("250 well")?,
        }
    }
}
