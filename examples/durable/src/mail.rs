//! Where mails go: a folder, or a mail server.

use crate::options::Relay;
use lettre::message::header::ContentType;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tracing::warn;

pub(crate) enum Mailer {
    Folder(PathBuf),
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
}

/// Why a mail was not sent, for its addressee to read.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It may be tried again.
    NotNow(String),
    Never(String),
}

impl Mailer {
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub(crate) fn new(outbox: &Path, smtp: Option<&Relay>) -> Result<Self, String> {
        let Some(Relay { host, port }) = smtp else {
            fs::create_dir_all(outbox).map_err(|error| format!("cannot write to '{}': {error}", outbox.display()))?;
            return Ok(Self::Folder(outbox.to_owned()));
        };
        // Without encryption, which is for a relay on the same machine or network.
        let relay = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host).port(*port);
        Ok(Self::Smtp(relay.timeout(Some(Duration::from_secs(20))).build()))
    }

    /// Sends a mail. Its id tells mails apart: in the folder the second one of the same id changes nothing, and a mail server, which
    /// may be handed it twice, finds it in the `Message-ID`.
    pub(crate) async fn send(&self, id: &str, attempt: u32, to: &str) -> Result<(), Refusal> {
        let mail = compose(id, to).map_err(Refusal::Never)?;
        match self {
            Self::Folder(outbox) => {
                let (path, temporary) = (outbox.join(format!("{id}.eml")), outbox.join(format!(".{id}-{attempt}.tmp")));
                let folder = outbox.clone();
                let written = spawn_blocking(move || {
                    fs::create_dir_all(folder)?; // somebody may have tidied up
                    put(&path, &temporary, &mail.formatted())
                });
                written.await.map_err(io::Error::other).and_then(|written| written).map_err(|error| {
                    warn!("cannot write a mail into '{}': {error}", outbox.display());
                    Refusal::NotNow("the outbox cannot be written to".into())
                })
            }
            Self::Smtp(relay) => match relay.send(mail).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_permanent() => {
                    Err(Refusal::Never(format!("the mail server refused it ({})", cause(&error))))
                }
                Err(error) => Err(Refusal::NotNow(format!("the mail server did not take it ({})", cause(&error)))),
            },
        }
    }
}

fn compose(id: &str, to: &str) -> Result<Message, String> {
    let to: Address = to.parse().map_err(|error| format!("{to} is no address: {error}"))?;
    let from: Address = "signups@example.com".parse().expect("it is one");
    Message::builder()
        .from(from.into())
        .to(to.into())
        .subject("Welcome")
        .message_id(Some(format!("<{id}@signups.example.com>")))
        .header(ContentType::TEXT_PLAIN)
        .body("You have signed up. Welcome.\r\n".to_owned())
        .map_err(|error| error.to_string())
}

/// Writes a file in one piece, unless it is there. Each attempt has a temporary file of its own: one of a worker that is taken for
/// dead may still be writing.
fn put(path: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut file = File::create(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    // The name is on the disk, too, before the job is told to be done. Elsewhere a folder is no file.
    #[cfg(unix)]
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

/// The innermost cause: the outer ones say that there is one.
fn cause(error: &dyn std::error::Error) -> impl Display {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_write_changes_nothing() {
        let outbox = tempfile::tempdir().unwrap();
        let (path, temporary) = (outbox.path().join("1.eml"), |attempt| outbox.path().join(format!(".1-{attempt}.tmp")));
        put(&path, &temporary(1), b"the first").unwrap();
        put(&path, &temporary(2), b"the second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"the first");
        assert_eq!(fs::read_dir(outbox.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_address_cannot_add_a_header() {
        for address in ["ada", "ada@", "ada@example.com\r\nBcc: eve@example.com", "ada@example.com, eve@example.com"] {
            assert!(compose("1", address).is_err(), "{address:?}");
        }
        let mail = compose("1", "ada@example.com").unwrap().formatted();
        assert!(String::from_utf8(mail).unwrap().contains("Message-ID: <1@signups.example.com>\r\n"));
    }
}
