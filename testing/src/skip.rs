//! Reports tests that cannot run on this machine.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process};

/// Reports that a test is skipped because `what` is missing. `what` is a short name, such as `postgres` or `systemd`.
///
/// Writes the line `skipped: {what}: {reason}` to stderr. The test harness does not capture this line. If the environment variable
/// `SKIPS` contains the absolute path of a folder, this function also writes the line to a new file in this folder.
///
/// # Panics
///
/// Panics if the environment variable `REQUIRE` contains `what`. `REQUIRE` is a list of names separated by commas.
#[track_caller]
pub fn skip(what: &str, reason: impl Display) {
    let (required, folder) = (env::var("REQUIRE").unwrap_or_default(), env::var_os("SKIPS"));
    report(what, &reason, &required, folder.as_deref(), &mut io::stderr());
}

/// Runs a command that needs `what`. If the command fails, calls [`skip`] with the reason and returns `None`.
#[track_caller]
pub fn run_or_skip(what: &str, words: &[&str]) -> Option<()> {
    let why = match Command::new(words[0]).args(&words[1..]).output() {
        Ok(output) if output.status.success() => return Some(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    skip(what, format_args!("{}: {why}", words[0]));
    None
}

/// Returns whether all these programs are installed. If a program is missing, reports the tests of `what` as skipped.
pub fn are_installed(what: &str, programs: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_installed = |program: &&&str| env::split_paths(&path).any(|dir| dir.join(program).exists());
    let missing = programs.iter().find(|program| !is_installed(program));
    missing.inspect(|program| skip(what, format_args!("{program} is not installed"))).is_none()
}

/// Does the same as [`skip`], but receives the values of the environment variables and the stderr as parameters.
#[track_caller]
fn report(what: &str, reason: &dyn Display, required: &str, folder: Option<&OsStr>, stderr: &mut dyn Write) {
    assert!(!required.split(',').any(|name| name.trim() == what), "{what} is required (REQUIRE) but missing: {reason}");
    let line = format!("skipped: {what}: {reason}\n");
    // Writes the line with one call, because other tests also write to stderr. If stderr is closed, the test does not fail.
    let _ = stderr.write_all(line.as_bytes());
    if let Some(folder) = folder {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{what}-{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(Path::new(folder).join(name), line))
            .expect("SKIPS is a writable folder");
    }
}

#[cfg(test)]
mod tests {
    use super::report;
    use std::fs;
    use std::panic::catch_unwind;
    use tempfile::TempDir;

    #[test]
    fn missing_requirement_panics() {
        for required in ["postgres", "systemd,postgres", "postgres, systemd"] {
            let panic = catch_unwind(|| report("postgres", &"not installed", required, None, &mut Vec::new())).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), "postgres is required (REQUIRE) but missing: not installed");
        }
    }

    #[test]
    fn skip_is_written_to_stderr() {
        for required in ["", "systemd", "systemd,postgres17"] {
            let mut stderr = Vec::new();
            report("postgres", &"not installed", required, None, &mut stderr);
            assert_eq!(String::from_utf8(stderr).unwrap(), "skipped: postgres: not installed\n");
        }
    }

    #[test]
    fn each_skip_is_written_to_a_new_file() {
        let parent = TempDir::new().unwrap();
        let folder = parent.path().join("skips");
        let mut stderr = Vec::new();
        for reason in ["first", "second"] {
            report("valgrind", &reason, "", Some(folder.as_os_str()), &mut stderr);
        }
        let files = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
        let mut lines: Vec<_> = files
            .map(|file| {
                let name = file.file_name().unwrap().to_str().unwrap();
                assert!(name.starts_with(&format!("valgrind-{}-", std::process::id())), "{name}");
                fs::read_to_string(file).unwrap()
            })
            .collect();
        lines.sort();
        assert_eq!(lines, ["skipped: valgrind: first\n", "skipped: valgrind: second\n"]);
        assert_eq!(String::from_utf8(stderr).unwrap(), lines.concat());
    }

    #[test]
    fn required_skip_writes_no_file() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().as_os_str();
        catch_unwind(|| report("runit", &"not installed", "runit", Some(path), &mut Vec::new())).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
