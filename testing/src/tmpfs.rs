//! Mounts small file systems in memory. Tests fill them or make them read-only.

use crate::{poll_until, run_or_skip};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A small file system in memory. When this value is dropped, the file system is unmounted.
#[derive(Debug)]
pub struct Tmpfs(TempDir);

impl Tmpfs {
    /// Mounts a file system of `size` bytes. If the mount fails, reports the test as skipped and returns `None`.
    pub fn mount(size: usize) -> Option<Self> {
        let tmpfs = Self(TempDir::new().unwrap());
        let size = format!("size={size}");
        run_or_skip("tmpfs", &["mount", "-t", "tmpfs", "-o", &size, "tmpfs", tmpfs.path().to_str().unwrap()])?;
        Some(tmpfs)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes the file system read-only (`ro`) or writable (`rw`). Waits until no file is open for writing.
    pub fn remount(&self, mode: &str) {
        let options = format!("remount,{mode}");
        let mount = || Command::new("mount").args(["-o", &options]).arg(self.path()).status().unwrap();
        poll_until(&"the file system is busy", || mount().success());
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // `--lazy` detaches the file system immediately, even if files are open.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).stderr(Stdio::null()).status();
    }
}
