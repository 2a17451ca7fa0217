//! Notes, in memory until they are on disk.

use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many bytes may wait for the disk.
const MEMORY: usize = 256 << 20;
/// How many names the page shows.
const RECENT: usize = 20;

/// A note's name, which is its file's name too: no path, and never that of a temporary file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn new(name: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=100).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain);
        fits.then(|| Self(name.to_owned()))
    }

    /// What is told of a note that could not be written or read: which one, as its task has the name of all its kind.
    fn lost(&self, error: &io::Error) -> String {
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

pub(crate) struct Store {
    dir: PathBuf,
    memory: Mutex<Memory>,
    /// Held from the look at a draft's version to its rename, so that no older body comes after a newer one. Not the lock of the
    /// memory, for which requests would then wait as long as the disk takes.
    renames: Mutex<()>,
}

#[derive(Default)]
struct Memory {
    /// The last version that was given to a draft, of any name.
    version: u64,
    /// The latest draft of each name.
    drafts: BTreeMap<Name, (u64, Bytes)>,
    /// In all drafts, those that a later one has superseded too.
    bytes: usize,
    recent: VecDeque<Name>,
    written: u64,
}

impl Memory {
    /// Returns whether no later draft of its name has been accepted.
    fn is_latest(&self, draft: &Draft) -> bool {
        self.drafts.get(&draft.name).is_some_and(|(version, _)| *version == draft.version)
    }
}

/// What the page shows.
pub(crate) struct Glance {
    pub(crate) waiting: usize,
    pub(crate) next: Vec<Name>,
    pub(crate) written: u64,
    pub(crate) recent: Vec<Name>,
}

impl Store {
    /// Creates the folder, and tries there what a write will do.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let store = Self { dir: dir.to_owned(), memory: Mutex::default(), renames: Mutex::default() };
        let probe = store.temporary(0);
        File::create(&probe)?;
        fs::remove_file(probe)?;
        sync_dir(&store.dir)?;
        Ok(store)
    }

    /// Takes a note into memory; `None` when that is full.
    pub(crate) fn draft(self: &Arc<Self>, name: Name, body: Bytes) -> Option<Draft> {
        let mut memory = self.memory();
        if memory.bytes + body.len() > MEMORY {
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

    /// Returns a note that is on disk. This blocks.
    pub(crate) fn read(&self, name: &Name) -> Result<Option<Bytes>, String> {
        match fs::read(self.dir.join(name)) {
            Ok(body) => Ok(Some(body.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(name.lost(&error)),
        }
    }

    pub(crate) fn glance(&self) -> Glance {
        let memory = self.memory();
        Glance {
            waiting: memory.drafts.len(),
            next: memory.drafts.keys().take(RECENT).cloned().collect(),
            written: memory.written,
            recent: memory.recent.iter().cloned().collect(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temporary(&self, version: u64) -> PathBuf {
        self.dir.join(format!(".{}-{version}.tmp", process::id()))
    }
}

/// A note that is not on disk yet. It leaves memory when this is dropped, written or not.
pub(crate) struct Draft {
    store: Arc<Store>,
    name: Name,
    version: u64,
    body: Bytes,
}

impl Draft {
    /// Puts the note on disk, unless a later one of its name has been accepted. This blocks.
    pub(crate) fn write(self) -> Result<(), String> {
        if !self.is_latest() {
            return Ok(());
        }
        let temporary = self.store.temporary(self.version);
        let written = self.write_through(&temporary);
        if !matches!(written, Ok(true)) {
            // Superseded meanwhile, or what there is of it is no use.
            let _ = fs::remove_file(&temporary);
        }
        written.map(drop).map_err(|error| self.name.lost(&error))
    }

    /// Returns whether it has come to its place, which it does whole or not at all.
    fn write_through(&self, temporary: &Path) -> io::Result<bool> {
        let mut file = File::create(temporary)?;
        file.write_all(&self.body)?;
        file.sync_all()?;
        {
            let _renames = self.store.renames.lock().unwrap_or_else(PoisonError::into_inner);
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

/// The rename is on disk once the folder is.
#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "the shape of the one that syncs")]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}
