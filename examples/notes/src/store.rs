//! Stores notes: in memory until they are on disk.

use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The largest number of bytes that wait to be written.
const MAX_MEMORY: usize = 256 << 20;
/// The number of names that the page shows.
const RECENT: usize = 20;

/// The name of a note, which is also the name of its file. It is neither a path nor the name of a temporary file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn new(name: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_valid = (1..=100).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_allowed);
        is_valid.then(|| Self(name.to_owned()))
    }

    /// Returns the error of a note that could not be written or read. It names the note, because all tasks of a kind have the same name.
    fn error(&self, error: &io::Error) -> String {
        format!("note {self}: {error}")
    }
}

impl AsRef<Path> for Name {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Store {
    dir: PathBuf,
    memory: Mutex<Memory>,
    /// Locked while a draft's version is checked and its file is renamed, so that an older body cannot replace a newer one. It is not the lock of
    /// `memory`: requests would wait for the disk.
    renames: Mutex<()>,
}

#[derive(Default)]
struct Memory {
    /// The version of the newest draft of all names.
    version: u64,
    /// The latest draft of each name.
    drafts: BTreeMap<Name, (u64, Bytes)>,
    /// The bytes of all drafts, including drafts that newer ones have superseded.
    bytes: usize,
    recent: VecDeque<Name>,
    written: u64,
}

impl Memory {
    /// Returns whether no newer draft of the same name has been accepted.
    fn is_latest(&self, draft: &Draft) -> bool {
        self.drafts.get(&draft.name).is_some_and(|(version, _)| *version == draft.version)
    }
}

/// The contents of the page.
pub(crate) struct Overview {
    pub(crate) waiting: usize,
    pub(crate) next: Vec<Name>,
    pub(crate) written: u64,
    pub(crate) recent: Vec<Name>,
}

impl Store {
    /// Creates the folder, and checks that files can be created and removed there.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let store = Self { dir: dir.to_owned(), memory: Mutex::default(), renames: Mutex::default() };
        let probe = store.temporary(0);
        File::create(&probe)?;
        fs::remove_file(probe)?;
        sync_dir(&store.dir)?;
        Ok(store)
    }

    /// Stores a note in memory. Returns `None` if the memory is full.
    pub(crate) fn draft(self: &Arc<Self>, name: Name, body: Bytes) -> Option<Draft> {
        let mut memory = self.memory();
        if memory.bytes + body.len() > MAX_MEMORY {
            return None;
        }
        memory.version += 1;
        memory.bytes += body.len();
        let version = memory.version;
        memory.drafts.insert(name.clone(), (version, body.clone()));
        Some(Draft { store: self.clone(), name, version, body })
    }

    /// Returns a note that is not on disk yet.
    pub(crate) fn recall(&self, name: &Name) -> Option<Bytes> {
        self.memory().drafts.get(name).map(|(_, body)| body.clone())
    }

    /// Reads a note from disk. Blocks.
    pub(crate) fn read(&self, name: &Name) -> Result<Option<Bytes>, String> {
        match fs::read(self.dir.join(name)) {
            Ok(body) => Ok(Some(body.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(name.error(&error)),
        }
    }

    pub(crate) fn overview(&self) -> Overview {
        let memory = self.memory();
        Overview {
            waiting: memory.drafts.len(),
            next: memory.drafts.keys().take(RECENT).cloned().collect(),
            written: memory.written,
            recent: memory.recent.iter().cloned().collect(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    fn temporary(&self, version: u64) -> PathBuf {
        self.dir.join(format!(".{}-{version}.tmp", process::id()))
    }
}

/// A note that is not on disk yet. Dropping it removes the note from memory, whether or not it was written.
pub(crate) struct Draft {
    store: Arc<Store>,
    name: Name,
    version: u64,
    body: Bytes,
}

impl Draft {
    /// Writes the note to disk, unless a newer one of the same name has been accepted. Blocks.
    pub(crate) fn write(self) -> Result<(), String> {
        if !self.is_latest() {
            return Ok(());
        }
        let temporary = self.store.temporary(self.version);
        let written = self.write_through(&temporary);
        if !matches!(written, Ok(true)) {
            // The draft has been superseded, or the file is incomplete.
            let _ = fs::remove_file(&temporary);
        }
        written.map(drop).map_err(|error| self.name.error(&error))
    }

    /// Writes a temporary file and renames it, so that the note is on disk completely or not at all. Returns false if the draft was superseded.
    fn write_through(&self, temporary: &Path) -> io::Result<bool> {
        let mut file = File::create(temporary)?;
        file.write_all(&self.body)?;
        file.sync_all()?;
        {
            let _renames = lock(&self.store.renames);
            if !self.is_latest() {
                return Ok(false);
            }
            fs::rename(temporary, self.store.dir.join(&self.name))?;
        }
        sync_dir(&self.store.dir)?;
        let mut memory = self.store.memory();
        memory.written += 1;
        memory.recent.push_front(self.name.clone());
        memory.recent.truncate(RECENT);
        Ok(true)
    }

    fn is_latest(&self) -> bool {
        self.store.memory().is_latest(self)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let mut memory = self.store.memory();
        memory.bytes -= self.body.len();
        if memory.is_latest(self) {
            memory.drafts.remove(&self.name);
        }
    }
}

/// Syncs the folder to disk, and with it the renames in it.
#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "the signature on Unix")]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}
