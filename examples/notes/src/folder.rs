//! Reads and writes the files of the notes. The service does not follow links in the folder, and does not wait for pipes in the folder.

use crate::memory::{Memory, Reservation};
use crate::store::Name;
use bytes::Bytes;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The maximum size of a note, in bytes.
pub(crate) const MAX_NOTE: usize = 1 << 20;
/// The maximum number of files that the service opens at the same time. The server must leave more file descriptors than this number for
/// the service. If the service cannot open the file of a note, the note is lost, although its client was answered 202.
const MAX_FILES: usize = 16;

/// A folder that only one process of this service can use at a time.
pub(crate) struct Folder {
    path: PathBuf,
    /// The file that locks the folder until the process exits. On Unix, the folder itself is this file.
    lock: File,
    /// The number of the next temporary file.
    next: AtomicU64,
    permits: Permits,
    /// The folder of the option `--stall`. If this folder contains a named pipe, reads and writes of the note with the same name block.
    stall: Option<PathBuf>,
}

/// The reason why a note cannot be read.
pub(crate) enum ReadError {
    /// The memory that is reserved for bodies has reached its limit.
    Memory,
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Folder {
    /// Creates and locks the folder. Removes the temporary files of a process that was killed. Checks that files can be created and
    /// removed.
    pub(crate) fn open(path: &Path, stall: Option<PathBuf>) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let lock = lock(path)?;
        remove_temporaries(path)?;
        let folder = Self { path: path.to_owned(), lock, next: AtomicU64::new(0), permits: Permits::new(MAX_FILES), stall };
        drop(folder.create(folder.permits.acquire())?);
        folder.sync()?;
        Ok(folder)
    }

    /// Creates a temporary file. The returned value keeps the permit until the value is dropped.
    pub(crate) fn create<'a>(&'a self, permit: Permit<'a>) -> io::Result<Temporary<'a>> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.path.join(format!(".{}-{number}.tmp", process::id()));
            // `create_new` does not follow a link with this name.
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                result => return Ok(Temporary { file: result?, path, is_renamed: false, folder: self, _permit: permit }),
            }
        }
    }

    /// Reads a note. Returns `None` if the note does not exist. Blocks while `MAX_FILES` files are open.
    pub(crate) fn read(&self, name: &Name, memory: &Arc<Memory>) -> Result<Option<Bytes>, ReadError> {
        let _permit = self.permit(name);
        let file = match open_without_links(&self.path.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file").into());
        }
        let len = usize::try_from(metadata.len()).ok().filter(|len| *len <= MAX_NOTE);
        let len = len.ok_or_else(|| io::Error::other("larger than 1 MiB"))?;
        let reservation = memory.reserve(len).ok_or(ReadError::Memory)?;
        Ok(Some(read_up_to(&file, len, reservation)?))
    }

    /// Returns a permit to open a file. Blocks while `MAX_FILES` files are open, and while the option `--stall` stalls the note.
    pub(crate) fn permit(&self, name: &Name) -> Permit<'_> {
        let permit = self.permits.acquire();
        if let Some(stall) = &self.stall {
            // This call fails immediately if the folder contains no pipe for this note.
            let _ = File::open(stall.join(name));
        }
        permit
    }

    /// Syncs the folder to disk, so that renames in the folder are on disk. Does nothing on Windows.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // On Windows, `lock` is a file in the folder and not the folder itself.
        if cfg!(unix) { self.lock.sync_all() } else { Ok(()) }
    }
}

/// Reads at most `len` bytes, even if the file has become larger.
fn read_up_to(file: &File, len: usize, reservation: Reservation) -> io::Result<Bytes> {
    let mut body = Vec::with_capacity(len);
    file.take(len as u64).read_to_end(&mut body)?;
    Ok(reservation.hold(body))
}

/// A file that becomes a note when it is renamed. If the value is dropped before the file is renamed, the destructor removes the file.
pub(crate) struct Temporary<'a> {
    pub(crate) file: File,
    path: PathBuf,
    is_renamed: bool,
    folder: &'a Folder,
    _permit: Permit<'a>,
}

impl Temporary<'_> {
    /// Replaces the note that has this name. If a link has this name, replaces the link.
    pub(crate) fn rename(mut self, name: &Name) -> io::Result<()> {
        fs::rename(&self.path, self.folder.path.join(name))?;
        self.is_renamed = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_renamed {
            // If this removal fails, the next start of the service removes the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the temporary files of a process that was killed. No other process uses these files, because the folder is locked.
fn remove_temporaries(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_temporary) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Returns whether a file with this name is a temporary file. The name of a temporary file has the form `.PROCESS-NUMBER.tmp`.
fn is_temporary(name: &str) -> bool {
    let numbers = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")?.split_once('-'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(process, number)| is_number(process) && is_number(number))
}

/// Locks a folder until the returned file is closed. If the process is killed, the operating system closes the file.
#[cfg(unix)]
fn lock(path: &Path) -> io::Result<File> {
    use rustix::fs::{FlockOperation, flock};
    let folder = File::open(path)?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::other("another process uses this folder")),
        locked => Ok(locked.map(|()| folder)?),
    }
}

#[cfg(windows)]
fn lock(path: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;
    OpenOptions::new().write(true).create(true).truncate(false).share_mode(0).open(path.join(".lock"))
}

/// Opens a file for reading. Fails if the path is a link. Does not wait for the other end of a pipe.
#[cfg(unix)]
fn open_without_links(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?.into())
}

/// Opens a file for reading. If the path is a link, opens the link itself, not its target.
#[cfg(windows)]
fn open_without_links(path: &Path) -> io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;
    const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;
    OpenOptions::new().read(true).custom_flags(FILE_FLAG_OPEN_REPARSE_POINT).open(path)
}

/// A semaphore for threads.
struct Permits {
    free: Mutex<usize>,
    released: Condvar,
}

impl Permits {
    fn new(count: usize) -> Self {
        Self { free: Mutex::new(count), released: Condvar::new() }
    }

    fn acquire(&self) -> Permit<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.released.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Permit(self)
    }
}

/// A permit that allows one file to be open. Dropping the value releases the permit.
pub(crate) struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.released.notify_one();
    }
}
