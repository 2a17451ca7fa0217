//! Runs systemd as process 1 of new namespaces.

use crate::{are_installed, only_child, poll_until_some, run_or_skip, skip};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

const NAMESPACES: [&str; 8] = ["unshare", "--mount", "--mount-proc", "--pid", "--cgroup", "--uts", "--fork", "--kill-child"];

/// A running systemd. It finds only the units in the folder of the test. Its root file system is read-only, except this folder. When this
/// value is dropped, all processes of systemd end.
pub struct Systemd {
    /// The parent process of process 1 in the namespaces.
    unshare: Child,
    /// The cgroup of the processes in the namespaces.
    cgroup: PathBuf,
}

/// The names of target units that systemd always requires. The test creates them without content.
const TARGETS: [&str; 5] = ["default", "basic", "sysinit", "shutdown", "initrd"];

const BOOT: &str = r#"
set -e
mount --bind "$0" "$0"
mount -o remount,bind,ro /
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec env -i container=test SYSTEMD_UNIT_PATH="$0" SYSTEMD_GENERATOR_PATH=/run/none PATH="$PATH" \
    /lib/systemd/systemd --system --unit=default.target --show-status=no --log-target=console
"#;

impl Systemd {
    /// Starts systemd. The folder contains the units. If systemd does not start, reports the reason and returns `None`.
    pub fn boot(folder: &Path) -> Option<Self> {
        if !are_installed("systemd", &["/lib/systemd/systemd", "systemctl", "nsenter"]) {
            return None;
        }
        run_or_skip("systemd", &[&NAMESPACES[..], &["true"]].concat())?;
        for target in TARGETS {
            fs::write(folder.join(format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n").unwrap();
        }
        let cgroup = cgroup2()?.join(folder.file_name().unwrap());
        run_or_skip("systemd", &["mkdir", cgroup.to_str().unwrap()])?;
        let log = File::create(folder.join("boot")).unwrap();
        let enter = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(&cgroup).args(NAMESPACES).args(["sh", "-c", BOOT]).arg(folder);
        let unshare = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut systemd = Self { unshare, cgroup };
        let boot_log = || fs::read_to_string(folder.join("boot")).unwrap();
        if systemd.is_up(boot_log) {
            return Some(systemd);
        }
        skip("systemd", format_args!("it does not start: {}", boot_log()));
        None
    }

    /// Waits until systemd responds or has failed to start. Returns whether it responds.
    fn is_up(&mut self, boot_log: impl Fn() -> String) -> bool {
        poll_until_some(&"systemd neither starts nor gives up", || {
            let has_failed = self.unshare.try_wait().unwrap().is_some() || boot_log().contains("Freezing execution");
            let answers = || Some(self.command("show", "default.target")?.output().unwrap().status.success());
            if has_failed { Some(false) } else { answers().filter(|answers| *answers) }
        })
    }

    /// Runs `systemctl VERB UNIT`, which must succeed within two minutes.
    pub fn systemctl(&self, verb: &str, unit: &str) {
        let output = self.command(verb, unit).expect("systemd runs").output().unwrap();
        assert!(output.status.success(), "{verb} {unit}: {output:#?}");
    }

    /// Returns a command in the namespaces, or `None` if process 1 does not exist yet.
    fn command(&self, verb: &str, unit: &str) -> Option<Command> {
        let process_1 = only_child(self.unshare.id())?.to_string();
        let mut command = Command::new("timeout");
        command.args(["120", "nsenter", "-t", &process_1, "-m", "-p", "-C", "systemctl", verb, unit]);
        Some(command)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // This call also ends process 1 of the namespaces, all other processes in them, and their mounts.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        for _ in 0..5000 {
            if remove(&self.cgroup).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Removes a cgroup and its children. Returns an error while a process is in one of these cgroups.
fn remove(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Returns the mount point of cgroups version 2, or `None` if they are not mounted.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let found = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, path, "cgroup2", ..] => Some(path.into()),
        _ => None,
    });
    if found.is_none() {
        skip("systemd", "cgroups version 2 are not mounted");
    }
    found
}
