//! Stores notes in memory until they are on disk.

use crate::folder::{Folder, ReadError};
use crate::memory::Memory;
use crate::options::Options;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The maximum number of names in each list of the page.
const RECENT: usize = 20;

/// The name of a note, which is also the name of the note's file. A name is never a path or the name of a temporary file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn new(name: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_valid = (1..=100).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_allowed);
        is_valid.then(|| Self(name.to_owned()))
    }

    /// Returns an error message for a note that could not be written or read. The message contains the note's name, because all tasks of
    /// a kind have the same task name.
    pub(crate) fn error(&self, error: &io::Error) -> String {
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
    folder: Folder,
    pub(crate) memory: Arc<Memory>,
    drafts: Mutex<Drafts>,
    /// A lock that a task holds while it checks the version of a draft and renames its file. Without this lock, an older body could
    /// replace a newer body. The lock of `drafts` is not used for this, because requests also take this lock, and would wait for the
    /// disk.
    renames: Mutex<()>,
}

#[derive(Default)]
struct Drafts {
    /// The version number of the draft that was stored last.
    version: u64,
    /// The latest draft of each name.
    latest: BTreeMap<Name, (u64, Bytes)>,
    recent: VecDeque<Name>,
    written: u64,
}

impl Drafts {
    /// Returns whether this draft is the latest draft of its name.
    fn is_latest(&self, draft: &Draft) -> bool {
        self.latest.get(&draft.name).is_some_and(|(version, _)| *version == draft.version)
    }
}

/// The values that the page shows.
pub(crate) struct Overview {
    pub(crate) waiting: usize,
    pub(crate) next: Vec<Name>,
    pub(crate) written: u64,
    pub(crate) recent: Vec<Name>,
}

impl Store {
    /// Opens the folder of the notes; see [`Folder::open`].
    pub(crate) fn open(options: &Options) -> io::Result<Self> {
        Ok(Self {
            folder: Folder::open(&options.dir, options.stall.clone())?,
            memory: Memory::new(options.memory),
            drafts: Mutex::default(),
            renames: Mutex::default(),
        })
    }

    /// Stores a note in memory.
    pub(crate) fn draft(self: &Arc<Self>, name: Name, body: Bytes) -> Draft {
        let mut drafts = self.drafts();
        drafts.version += 1;
        let version = drafts.version;
        drafts.latest.insert(name.clone(), (version, body.clone()));
        Draft { store: self.clone(), name, version, body }
    }

    /// Returns a note that is not on disk yet.
    pub(crate) fn recall(&self, name: &Name) -> Option<Bytes> {
        self.drafts().latest.get(name).map(|(_, body)| body.clone())
    }

    /// Reads a note from disk. Blocks the thread.
    pub(crate) fn read(&self, name: &Name) -> Result<Option<Bytes>, ReadError> {
        self.folder.read(name, &self.memory)
    }

    pub(crate) fn overview(&self) -> Overview {
        let drafts = self.drafts();
        Overview {
            waiting: drafts.latest.len(),
            next: drafts.latest.keys().take(RECENT).cloned().collect(),
            written: drafts.written,
            recent: drafts.recent.iter().cloned().collect(),
        }
    }

    fn drafts(&self) -> MutexGuard<'_, Drafts> {
        lock(&self.drafts)
    }
}

/// A note that is not on disk yet. Dropping the draft removes the note from memory, even if the note was not written.
pub(crate) struct Draft {
    store: Arc<Store>,
    name: Name,
    version: u64,
    body: Bytes,
}

impl Draft {
    /// Writes the note to disk, unless a newer note with the same name has been accepted. Blocks the thread.
    pub(crate) fn write(self) -> Result<(), String> {
        self.write_through().map_err(|error| self.name.error(&error))
    }

    /// Writes and then renames a temporary file. Therefore the note is on disk completely or not at all.
    fn write_through(&self) -> io::Result<()> {
        let permit = self.store.folder.permit(&self.name);
        if !self.is_latest() {
            return Ok(());
        }
        let mut temporary = self.store.folder.create(permit)?;
        temporary.file.write_all(&self.body)?;
        temporary.file.sync_all()?;
        {
            let _renames = lock(&self.store.renames);
            if !self.is_latest() {
                return Ok(());
            }
            temporary.rename(&self.name)?;
        }
        self.store.folder.sync()?;
        let mut drafts = self.store.drafts();
        drafts.written += 1;
        drafts.recent.push_front(self.name.clone());
        drafts.recent.truncate(RECENT);
        Ok(())
    }

    fn is_latest(&self) -> bool {
        self.store.drafts().is_latest(self)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let mut drafts = self.store.drafts();
        if drafts.is_latest(self) {
            drafts.latest.remove(&self.name);
        }
    }
}
