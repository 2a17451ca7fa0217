//! Writes the mails into one file, the outbox.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// A regular file to which several tasks append at the same time.
///
/// The file stays open, so no mail needs a new file descriptor. So an accepted mail is written even if connections use all other
/// descriptors.
pub(crate) struct Outbox(File);

impl Outbox {
    /// Opens the file `outbox` in this folder. Creates the folder and the file if they are missing.
    pub(crate) fn open(folder: &Path) -> Result<Self, String> {
        fs::create_dir_all(folder).map_err(|error| format!("cannot write to '{}': {error}", folder.display()))?;
        let path = folder.join("outbox");
        let file = open(&path)
            .and_then(|file| if file.metadata()?.is_file() { Ok(Self(file)) } else { Err(io::ErrorKind::InvalidInput.into()) });
        file.map_err(|error| format!("cannot append to '{}', which must be a regular file: {error}", path.display()))
    }

    /// Appends a line to the file. Blocks while the disk is busy.
    pub(crate) fn append(&self, line: &str) -> io::Result<()> {
        // A write to a deleted file would succeed, but nobody could read the mail.
        #[cfg(unix)]
        if std::os::unix::fs::MetadataExt::nlink(&self.0.metadata()?) == 0 {
            return Err(io::Error::other("the outbox was deleted: restart the service"));
        }
        // One write for the whole line, because other tasks write to the file at the same time.
        (&self.0).write_all(format!("{line}\n").as_bytes())
    }
}

/// Opens the outbox. Fails if the path is a symbolic link, because the link could lead to another file. Also fails if the path is a named
/// pipe without a reader. Without `NONBLOCK`, this case would block.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o666))?.into())
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().append(true).create(true).open(path)
}
