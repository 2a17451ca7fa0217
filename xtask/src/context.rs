//! Holds the state that all jobs share: a shell in the repository's root, the arguments of the command line, and a list of skipped
//! checks.

use anyhow::{Context as _, Result};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use xshell::Shell;

pub(crate) struct Context {
    pub(crate) sh: Shell,
    /// The command-line arguments after the job's name.
    pub(crate) arguments: Vec<String>,
    /// In `ci`, the number of commits divided by 8; in other runs, `None`. Mutation jobs use this number to select a slice of their
    /// mutants.
    pub(crate) round: Option<usize>,
    target: PathBuf,
    skips: RefCell<Vec<String>>,
}

impl Context {
    pub(crate) fn new(arguments: Vec<String>) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
        let sh = Shell::new()?;
        sh.change_dir(root);
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |target| root.join(target));
        // Each test that skips itself writes a file into this folder.
        let skips = target.join("skips");
        let _ = fs::remove_dir_all(&skips);
        fs::create_dir_all(&skips)?;
        sh.set_var("SKIPS", &skips);
        sh.set_var("CARGO_TARGET_DIR", &target);
        // Some tests panic on purpose, and a backtrace would only make the output longer.
        sh.set_var("RUST_BACKTRACE", "0");
        Ok(Self { sh, arguments, round: None, target, skips: RefCell::default() })
    }

    /// Returns the index of the slice of mutants that a mutation job tests (the first slice has index 0), and the number of slices. In
    /// `ci`, the number is `slices`. In other runs, the only slice contains all mutants.
    pub(crate) fn slice(&self, slices: usize) -> (usize, usize) {
        self.round.map_or((0, 1), |round| (round % slices, slices))
    }

    /// Returns the path `path` in the target folder.
    pub(crate) fn built(&self, path: &str) -> PathBuf {
        self.target.join(path)
    }

    /// Prints that this machine cannot run a part of a job, and stores the message for `print_skips`.
    pub(crate) fn skip(&self, reason: &str) {
        println!("skipped: {reason}");
        self.skips.borrow_mut().push(format!("skipped: {reason}"));
    }

    /// Prints each message about a skipped check or test one time.
    pub(crate) fn print_skips(&self) -> Result<()> {
        let mut skips = self.skips.borrow().clone();
        for file in fs::read_dir(self.target.join("skips"))? {
            skips.extend(fs::read_to_string(file?.path())?.lines().map(str::to_owned));
        }
        skips.sort();
        skips.dedup();
        for skip in skips {
            println!("{skip}");
        }
        Ok(())
    }
}
