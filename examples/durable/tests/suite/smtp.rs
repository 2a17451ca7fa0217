//! A mail server for tests. The server records the mails, and can reject a mail or not respond.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use testing::PATIENCE;

/// The response of the server to one mail.
#[derive(Clone, Copy)]
pub(crate) enum Reply {
    Line(&'static str),
    /// The server never responds.
    Nothing,
}

pub(crate) struct MailServer {
    pub(crate) address: SocketAddr,
    mails: Receiver<String>,
}

impl MailServer {
    /// Starts a server. The first connection gets the first reply, the second connection the second reply, and so on. The mails of later
    /// connections are accepted.
    pub(crate) fn start(replies: &'static [Reply]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, mails) = channel();
        thread::spawn(move || {
            for (number, connection) in listener.incoming().enumerate() {
                let reply = replies.get(number).copied().unwrap_or(Reply::Line("250 accepted"));
                let (connection, sender) = (connection.unwrap(), sender.clone());
                // The server gets an error if the client has disconnected.
                thread::spawn(move || drop(converse(&connection, reply, &sender)));
            }
        });
        Self { address, mails }
    }

    /// Waits for the next mail, and returns it.
    #[track_caller]
    pub(crate) fn next(&self) -> String {
        self.mails.recv_timeout(PATIENCE).expect("a mail")
    }

    pub(crate) fn has_no_more(&self) -> bool {
        self.mails.try_recv().is_err()
    }
}

fn converse(connection: &TcpStream, reply: Reply, sender: &Sender<String>) -> io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(connection), connection);
    let mut say = |text: &str| writer.write_all(format!("{text}\r\n").as_bytes());
    say("220 test mail server")?;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.get(..4) {
            Some("DATA") => {
                say("354 continue")?;
                let mail: Vec<_> = reader.by_ref().lines().map_while(Result::ok).take_while(|line| line != ".").collect();
                sender.send(mail.join("\n")).map_err(io::Error::other)?;
                match reply {
                    Reply::Line(text) => say(text)?,
                    Reply::Nothing => drop(reader.read_to_end(&mut Vec::new())?),
                }
            }
            Some("QUIT") => return say("221 bye"),
            _ => say("250 ok")?,
        }
    }
}
