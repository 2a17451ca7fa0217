//! Writes mails to a folder, or sends them to a mail server.

use crate::values::Relay;
use lettre::message::header::ContentType;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::task::spawn_blocking;
use tracing::warn;

/// A temporary file that is older than this was left by a killed worker, because a worker needs only seconds to write a mail.
const STALE: Duration = Duration::from_hours(1);

pub(crate) enum Mailer {
    Folder(PathBuf),
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
}

/// The reason why a mail was not sent, as a message for the user.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A later attempt may succeed.
    Temporary(String),
    Permanent(String),
}

impl Mailer {
    /// Without a mail server, creates the folder if it is missing, and removes old temporary files from the folder.
    ///
    /// # Errors
    ///
    /// Returns an error if the folder cannot be created or read.
    pub(crate) fn new(outbox: &Path, smtp: Option<&Relay>) -> Result<Self, String> {
        let Some(Relay { host, port }) = smtp else {
            fs::create_dir_all(outbox)
                .and_then(|()| remove_stale(outbox))
                .map_err(|error| format!("cannot write to '{}': {error}", outbox.display()))?;
            return Ok(Self::Folder(outbox.to_owned()));
        };
        // The connection is not encrypted. Use only a mail server on the same machine or in the same network.
        let relay = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host).port(*port);
        Ok(Self::Smtp(relay.timeout(Some(Duration::from_secs(20))).build()))
    }

    /// Sends a mail. A repeated call with the same ID does no harm: if the mail is already in the folder, the call changes nothing.
    /// A mail server may receive the mail twice. Both mails have the same `Message-ID`, so the server can recognize the duplicate.
    pub(crate) async fn send(&self, id: &str, attempt: u32, to: &str) -> Result<(), Refusal> {
        let mail = compose(id, to).map_err(Refusal::Permanent)?;
        match self {
            Self::Folder(outbox) => {
                let (path, temporary) = (outbox.join(format!("{id}.eml")), outbox.join(format!(".{id}-{attempt}.tmp")));
                let folder = outbox.clone();
                let written = spawn_blocking(move || {
                    fs::create_dir_all(folder)?; // the folder may have been deleted
                    put(&path, &temporary, &mail.formatted())
                });
                written.await.map_err(io::Error::other).and_then(|written| written).map_err(|error| {
                    warn!("cannot write a mail into '{}': {error}", outbox.display());
                    Refusal::Temporary("the outbox is not writable".into())
                })
            }
            Self::Smtp(relay) => match relay.send(mail).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_permanent() => {
                    Err(Refusal::Permanent(format!("the mail server rejected it ({})", cause(&error))))
                }
                Err(error) => Err(Refusal::Temporary(format!("the mail server did not accept it ({})", cause(&error)))),
            },
        }
    }
}

/// Returns whether a mail to this address can be composed.
pub(crate) fn is_valid(to: &str) -> bool {
    compose("valid", to).is_ok()
}

fn compose(id: &str, to: &str) -> Result<Message, String> {
    // Some mail servers and mail programs treat U+0085 or U+2028 as the end of the header.
    if to.contains(|letter: char| letter.is_control() || letter.is_whitespace()) {
        return Err("the address contains white space or control characters".into());
    }
    let to: Address = to.parse().map_err(|error| format!("invalid address {to}: {error}"))?;
    let from: Address = "signups@example.com".parse().expect("the address is valid");
    Message::builder()
        .from(from.into())
        .to(to.into())
        .subject("Welcome")
        .message_id(Some(format!("<{id}@signups.example.com>")))
        .header(ContentType::TEXT_PLAIN)
        .body("You have signed up. Welcome.\r\n".to_owned())
        .map_err(|error| error.to_string())
}

/// Writes a file atomically, unless it exists. Each attempt uses its own temporary file, because a worker that is treated as dead
/// may still be writing the file of an earlier attempt. If `path` is a link or a named pipe, the file replaces the link or the
/// pipe.
fn put(path: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    if is_file(path) {
        return Ok(());
    }
    // `create_new` fails if the name exists, even if the name is a link. A link can therefore not make this function overwrite
    // another file.
    let mut file = File::create_new(temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(temporary);
    }
    written?;
    // Before the job is done, the name of the file must be on the disk too. The folder contains this name, so this code syncs the
    // folder. Only Unix can open and sync a folder.
    #[cfg(unix)]
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

/// Returns whether the path is a regular file. A link to a regular file does not count.
fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Removes temporary files that killed workers have left. Recent files stay, because other workers may still be writing to these files.
fn remove_stale(outbox: &Path) -> io::Result<()> {
    for file in fs::read_dir(outbox)? {
        let path = file?.path();
        let is_temporary = path.extension().is_some_and(|extension| extension == "tmp") && is_file(&path);
        // Another worker may have removed the file in the meantime. In this case, `metadata` fails, and the file is skipped.
        let modified = if is_temporary { fs::metadata(&path).and_then(|found| found.modified()).ok() } else { None };
        if modified.is_some_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|age| age > STALE)) {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Returns the innermost cause of an error, because this cause is the most specific.
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
    fn second_write_changes_nothing() {
        let outbox = tempfile::tempdir().unwrap();
        let (path, temporary) = (outbox.path().join("1.eml"), |attempt| outbox.path().join(format!(".1-{attempt}.tmp")));
        put(&path, &temporary(1), b"the first").unwrap();
        put(&path, &temporary(2), b"the second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"the first");
        assert_eq!(fs::read_dir(outbox.path()).unwrap().count(), 1);
    }

    #[test]
    fn address_cannot_add_a_header() {
        for address in ["ada", "ada@", "ada@example.com\r\nBcc: eve@example.com", "ada@example.com, eve@example.com"] {
            assert!(compose("1", address).is_err(), "{address:?}");
        }
        let mail = compose("1", "ada@example.com").unwrap().formatted();
        assert!(String::from_utf8(mail).unwrap().contains("Message-ID: <1@signups.example.com>\r\n"));
    }
}
