//! Runs the service under real service managers. The managers stop the service.

use super::Program;
use super::load::{check_notes, random_stop, rounds, send_notes};
use super::service::{NotesClient, address_in, stall};
use std::env;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;
use testing::{Client, only_child, poll_until, poll_until_some, run_or_skip};

/// A service manager that manages the service `notes`.
trait Manager {
    /// Starts the service.
    fn start(&self);
    /// Stops the service. Returns after the manager has reported that the service has ended.
    fn stop(&self);
}

/// Sends notes while the manager stops the service. Every note that was answered 202 must be on disk, and the manager must record a
/// success.
///
/// The grace period and the manager's timeout are longer than the test waits.
fn every_accepted_note_is_written(manager: &dyn Manager, folder: &ServiceFolder, clean: &str) {
    for _ in 0..rounds() {
        manager.start();
        let accepted = send_notes(folder.address(), random_stop(), || manager.stop());
        let log = folder.read("log");
        assert_eq!(folder.read("ended"), clean, "{log}");
        println!("{} accepted; {}", accepted.len(), log.lines().last().unwrap());
        check_notes(&folder.notes(), &accepted);
        folder.clear();
    }
}

/// If the service has not drained, the manager must record a failure.
fn straggler_is_a_failure(manager: &dyn Manager, folder: &ServiceFolder, failed: &str) {
    manager.start();
    let mut client = Client::connect(folder.address()).unwrap();
    stall(&folder.stalls(), "note");
    assert_eq!(client.put("note", b"lost").unwrap().status, 202);
    manager.stop();
    let log = folder.read("log");
    assert_eq!(folder.read("ended"), failed, "{log}");
    assert!(log.contains("write at "), "{log}");
}

/// A folder that contains the notes, the log and the exit status of the service, and the files of its manager.
struct ServiceFolder(TempDir);

impl ServiceFolder {
    fn new(program: Program) -> Self {
        let folder = Self(program.dir());
        fs::create_dir(folder.notes()).unwrap();
        fs::create_dir(folder.stalls()).unwrap();
        folder
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn notes(&self) -> PathBuf {
        self.join("notes")
    }

    fn stalls(&self) -> PathBuf {
        self.join("stalls")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.join(name)).unwrap_or_default()
    }

    /// Waits until the service has printed its address, and returns the address.
    fn address(&self) -> SocketAddr {
        poll_until_some(&"no address", || self.read("log").lines().find_map(address_in))
    }

    fn clear(&self) {
        fs::remove_dir_all(self.notes()).unwrap();
        fs::create_dir(self.notes()).unwrap();
        fs::remove_file(self.join("log")).unwrap();
        fs::remove_file(self.join("ended")).unwrap();
    }

    fn script(&self, name: &str, lines: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn command(&self, program: Program, grace: &str) -> String {
        let (notes, stalls) = (self.notes(), self.stalls());
        format!("{} --listen 127.0.0.1:0 --dir {} --stall {} --grace {grace}", program.path, notes.display(), stalls.display())
    }
}

/// Runs the service under `runsv`, a program of runit that needs no privileges.
pub fn under_runit(program: Program) {
    if !are_installed("runit", &["sv", "runsv"]) {
        return;
    }
    let folder = ServiceFolder::new(program);
    every_accepted_note_is_written(&Runit::new(program, &folder, "3600"), &folder, "0 0\n");
    let folder = ServiceFolder::new(program);
    straggler_is_a_failure(&Runit::new(program, &folder, "0.5"), &folder, "1 0\n");
}

struct Runit {
    service: String,
    runsv: Child,
}

impl Runit {
    fn new(program: Program, folder: &ServiceFolder, grace: &str) -> Self {
        fs::create_dir(folder.join("service")).unwrap();
        // The file `down` prevents `runsv` from starting the service immediately.
        fs::write(folder.join("service/down"), "").unwrap();
        folder.script("service/run", &format!("exec {} >../log 2>&1", folder.command(program, grace)));
        // runit passes the exit code and the signal of the service to this script.
        folder.script("service/finish", r#"echo "$1 $2" >../ended"#);
        let service = format!("{}/service", folder.path());
        let runsv = Command::new("runsv").arg(&service).stdin(Stdio::null()).spawn().unwrap();
        let runit = Self { service, runsv };
        let answers = || Command::new("sv").args(["status", &runit.service]).output().unwrap().status.success();
        poll_until(&"no runsv", answers);
        runit
    }
}

impl Manager for Runit {
    fn start(&self) {
        must(&["sv", "-w", "120", "up", &self.service]);
    }

    fn stop(&self) {
        must(&["sv", "-w", "120", "down", &self.service]);
    }
}

impl Drop for Runit {
    fn drop(&mut self) {
        // This command ends `runsv`, and kills the service after a second.
        let _ = Command::new("sv").args(["-w", "1", "force-shutdown", &self.service]).stdout(Stdio::null()).status();
        let _ = self.runsv.wait();
    }
}

/// Returns whether all these programs are installed. If a program is missing, reports the tests of `what` as skipped.
fn are_installed(what: &str, programs: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_installed = |program: &&&str| env::split_paths(&path).any(|dir| dir.join(program).exists());
    let missing = programs.iter().find(|program| !is_installed(program));
    missing.inspect(|program| testing::skip(what, format_args!("{program} is not installed"))).is_none()
}

fn must(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:#?}");
}

/// Runs the service under systemd, which runs as process 1 of new namespaces. systemd finds only the units of the test. Only the folder
/// of the test is writable.
pub fn under_systemd(program: Program) {
    let folder = ServiceFolder::new(program);
    if let Some(systemd) = Systemd::boot(program, &folder, "3600") {
        every_accepted_note_is_written(&systemd, &folder, "success 0\n");
        drop(systemd);
        let folder = ServiceFolder::new(program);
        straggler_is_a_failure(&Systemd::boot(program, &folder, "0.5").unwrap(), &folder, "exit-code 1\n");
    }
}

const NAMESPACES: [&str; 8] = ["unshare", "--mount", "--mount-proc", "--pid", "--cgroup", "--uts", "--fork", "--kill-child"];

struct Systemd {
    /// The parent process of process 1 in the namespaces.
    unshare: Child,
    /// The cgroup of the processes in the namespaces.
    cgroup: PathBuf,
}

const UNIT: &str = "\
[Unit]
DefaultDependencies=no
[Service]
Type=notify
ExecStart=COMMAND
ExecStopPost=FOLDER/post
TimeoutStopSec=infinity
StandardOutput=append:FOLDER/log
StandardError=append:FOLDER/log
";

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
    /// Starts systemd. If systemd does not start, reports the reason and returns `None`.
    fn boot(program: Program, folder: &ServiceFolder, grace: &str) -> Option<Self> {
        if !are_installed("systemd", &["/lib/systemd/systemd", "systemctl", "nsenter"]) {
            return None;
        }
        run_or_skip("systemd", &[&NAMESPACES[..], &["true"]].concat())?;
        for target in TARGETS {
            fs::write(folder.join(&format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n").unwrap();
        }
        let unit = UNIT.replace("COMMAND", &folder.command(program, grace)).replace("FOLDER", folder.path());
        fs::write(folder.join("notes.service"), unit).unwrap();
        folder.script("post", r#"echo "$SERVICE_RESULT $EXIT_STATUS" >"${0%post}ended""#);
        let cgroup = cgroup2()?.join(folder.0.path().file_name().unwrap());
        run_or_skip("systemd", &["mkdir", cgroup.to_str().unwrap()])?;
        let log = File::create(folder.join("boot")).unwrap();
        let enter = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(&cgroup).args(NAMESPACES).args(["sh", "-c", BOOT, folder.path()]);
        let unshare = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut systemd = Self { unshare, cgroup };
        if systemd.is_up(folder) {
            return Some(systemd);
        }
        testing::skip("systemd", format_args!("it does not start: {}", folder.read("boot")));
        None
    }

    /// Waits until systemd responds or has failed to start. Returns whether it responds.
    fn is_up(&mut self, folder: &ServiceFolder) -> bool {
        poll_until_some(&"systemd neither starts nor gives up", || {
            let has_failed = self.unshare.try_wait().unwrap().is_some() || folder.read("boot").contains("Freezing execution");
            let answers = || Some(Command::new("nsenter").args(self.systemctl("show")?).output().unwrap().status.success());
            if has_failed { Some(false) } else { answers().filter(|answers| *answers) }
        })
    }

    /// Returns the arguments for `nsenter`, or `None` if process 1 does not exist yet.
    fn systemctl(&self, verb: &str) -> Option<Vec<String>> {
        let process_1 = only_child(self.unshare.id())?.to_string();
        Some(["-t", &process_1, "-m", "-p", "-C", "systemctl", verb, "notes"].map(str::to_owned).into())
    }

    fn run_systemctl(&self, verb: &str) {
        let output = Command::new("timeout").args(["120", "nsenter"]).args(self.systemctl(verb).unwrap()).output().unwrap();
        assert!(output.status.success(), "{verb}: {output:#?}");
    }
}

impl Manager for Systemd {
    fn start(&self) {
        self.run_systemctl("start");
    }

    fn stop(&self) {
        self.run_systemctl("stop");
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
        testing::skip("systemd", "cgroups version 2 are not mounted");
    }
    found
}
