//! Writes the mails into one file, the outbox.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A regular file to which several tasks append at the same time.
///
/// The file stays open, so no mail needs a new file descriptor. So an accepted mail is written even if connections use all other
/// descriptors.
pub(crate) struct Outbox(Mutex<File>);

impl Outbox {
    /// Opens the file `outbox` in this folder. Creates the folder and the file if they are missing.
    pub(crate) fn open(folder: &Path) -> Result<Self, String> {
        fs::create_dir_all(folder).map_err(|error| format!("cannot write to '{}': {error}", folder.display()))?;
        let path = folder.join("outbox");
        let file = open(&path).and_then(|file| {
            if file.metadata()?.is_file() { Ok(Self(Mutex::new(file))) } else { Err(io::ErrorKind::InvalidInput.into()) }
        });
        file.map_err(|error| format!("cannot append to '{}', which must be a regular file: {error}", path.display()))
    }

    /// Appends a line to the file. Blocks while the disk is busy.
    pub(crate) fn append(&self, line: &str) -> io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A write to a deleted file would succeed, but nobody could read the mail.
        #[cfg(unix)]
        if std::os::unix::fs::MetadataExt::nlink(&file.metadata()?) == 0 {
            return Err(io::Error::other("the outbox was deleted: restart the service"));
        }
        // If the disk was full, an earlier write may have written only a part of its line.
        let start = if ends_with_line_break(&mut file)? { "" } else { "\n" };
        file.write_all(format!("{start}{line}\n").as_bytes())
    }
}

fn ends_with_line_break(file: &mut File) -> io::Result<bool> {
    let mut last = *b"\n";
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    Ok(last == *b"\n")
}

/// Opens the outbox. Fails if the path is a symbolic link, because the link could lead to another file. With `NONBLOCK`, the call does not
/// block if the path is a named pipe or a device.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o666))?.into())
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).append(true).create(true).open(path)
}
