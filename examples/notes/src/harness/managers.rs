//! The service in the care of a service manager, real ones: what stops it is theirs.

use super::Program;
use super::client::Client;
use super::load::{anytime, check_notes, rounds, send_notes};
use super::places::run;
use super::service::{address_in, child_of, patiently};
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

/// Of the service `notes`.
trait Manager {
    /// Starts the service.
    fn start(&self);
    /// Stops it, and returns once the manager says that it has ended.
    fn stop(&self);
}

/// Loads the service and has it stopped: what was answered 202 is on disk, and the manager knows of a clean end.
///
/// The grace and the manager's own are longer than the test's patience.
fn every_accepted_note_is_written(manager: &dyn Manager, place: &Place, clean: &str) {
    for _ in 0..rounds() {
        manager.start();
        let accepted = send_notes(place.address(), anytime(), || manager.stop());
        let log = place.read("log");
        assert_eq!(place.read("ended"), clean, "{log}");
        println!("{} accepted; {}", accepted.len(), log.lines().last().unwrap());
        check_notes(&place.notes(), &accepted);
        place.clear();
    }
}

/// The manager knows that it has not drained.
fn a_straggler_is_a_failure(manager: &dyn Manager, place: &Place, failed: &str) {
    manager.start();
    let mut client = Client::connect(place.address()).unwrap();
    client.begin_put("half", 8).unwrap();
    manager.stop();
    let log = place.read("log");
    assert_eq!(place.read("ended"), failed, "{log}");
    assert!(log.contains("connection at "), "{log}");
}

/// A folder with the notes, with what the service says and how it has ended, and with what its manager keeps.
struct Place(TempDir);

impl Place {
    fn new(program: Program) -> Self {
        let place = Self(program.dir());
        fs::create_dir(place.notes()).unwrap();
        place
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

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.join(name)).unwrap_or_default()
    }

    /// Waits until the service tells where it listens.
    fn address(&self) -> SocketAddr {
        patiently(&"no address", || self.read("log").lines().find_map(address_in))
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
        format!("{} --port 0 --dir {} --grace {grace}", program.path, self.notes().display())
    }
}

/// Under runit's `runsv`, which needs no privilege.
pub fn under_runit(program: Program) {
    if !are_there(&["sv", "runsv"]) {
        return;
    }
    let place = Place::new(program);
    every_accepted_note_is_written(&Runit::new(program, &place, "3600"), &place, "0 0\n");
    let place = Place::new(program);
    a_straggler_is_a_failure(&Runit::new(program, &place, "0.5"), &place, "1 0\n");
}

struct Runit {
    service: String,
    runsv: Child,
}

impl Runit {
    fn new(program: Program, place: &Place, grace: &str) -> Self {
        fs::create_dir(place.join("service")).unwrap();
        // It is not to be started before that is asked for.
        fs::write(place.join("service/down"), "").unwrap();
        place.script("service/run", &format!("exec {} >../log 2>&1", place.command(program, grace)));
        // The exit code and the signal.
        place.script("service/finish", r#"echo "$1 $2" >../ended"#);
        let service = format!("{}/service", place.path());
        let runsv = Command::new("runsv").arg(&service).stdin(Stdio::null()).spawn().unwrap();
        let runit = Self { service, runsv };
        let answers = || Command::new("sv").args(["status", &runit.service]).output().unwrap().status.success();
        patiently(&"no runsv", || answers().then_some(()));
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
        // It has runsv end after the service, which is killed when that takes long.
        let _ = Command::new("sv").args(["-w", "1", "force-shutdown", &self.service]).stdout(Stdio::null()).status();
        let _ = self.runsv.wait();
    }
}

/// Says which is not.
fn are_there(programs: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &&&str| env::split_paths(&path).any(|dir| dir.join(program).exists());
    let missing = programs.iter().find(|program| !is_there(program));
    missing.inspect(|program| println!("skipped: {program} is not installed")).is_none()
}

fn must(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:#?}");
}

/// Under systemd, as the first process of namespaces of its own. It has our unit alone, and nothing to write to but our folder.
pub fn under_systemd(program: Program) {
    let place = Place::new(program);
    if let Some(systemd) = Systemd::boot(program, &place, "3600") {
        every_accepted_note_is_written(&systemd, &place, "success 0\n");
        drop(systemd);
        let place = Place::new(program);
        a_straggler_is_a_failure(&Systemd::boot(program, &place, "0.5").unwrap(), &place, "exit-code 1\n");
    }
}

const NAMESPACES: [&str; 8] = ["unshare", "--mount", "--mount-proc", "--pid", "--cgroup", "--uts", "--fork", "--kill-child"];

struct Systemd {
    /// The parent of the first process.
    unshare: Child,
    /// Its own.
    cgroup: PathBuf,
}

const UNIT: &str = "\
[Unit]
DefaultDependencies=no
[Service]
Type=notify
ExecStart=COMMAND
ExecStopPost=PLACE/post
TimeoutStopSec=infinity
StandardOutput=append:PLACE/log
StandardError=append:PLACE/log
";

/// The units that systemd looks for by itself, with nothing in them.
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
    /// Says why not if that cannot be had here.
    fn boot(program: Program, place: &Place, grace: &str) -> Option<Self> {
        if !are_there(&["/lib/systemd/systemd", "systemctl", "nsenter"]) {
            return None;
        }
        run(&[&NAMESPACES[..], &["true"]].concat())?;
        for target in TARGETS {
            fs::write(place.join(&format!("{target}.target")), "[Unit]\nDefaultDependencies=no\n").unwrap();
        }
        let unit = UNIT.replace("COMMAND", &place.command(program, grace)).replace("PLACE", place.path());
        fs::write(place.join("notes.service"), unit).unwrap();
        place.script("post", r#"echo "$SERVICE_RESULT $EXIT_STATUS" >"${0%post}ended""#);
        let cgroup = cgroup2()?.join(place.0.path().file_name().unwrap());
        run(&["mkdir", cgroup.to_str().unwrap()])?;
        let log = File::create(place.join("boot")).unwrap();
        let enter = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(&cgroup).args(NAMESPACES).args(["sh", "-c", BOOT, place.path()]);
        let unshare = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut systemd = Self { unshare, cgroup };
        if systemd.is_up(place) {
            return Some(systemd);
        }
        println!("skipped: systemd does not come up: {}", place.read("boot"));
        None
    }

    /// Waits until it answers, or has given up.
    fn is_up(&mut self, place: &Place) -> bool {
        patiently(&"systemd neither comes up nor gives up", || {
            let gone = self.unshare.try_wait().unwrap().is_some() || place.read("boot").contains("Freezing execution");
            let answers = || Some(Command::new("nsenter").args(self.systemctl("show")?).output().unwrap().status.success());
            if gone { Some(false) } else { answers().filter(|answers| *answers) }
        })
    }

    /// Returns what `nsenter` is to be given, once there is somebody to ask.
    fn systemctl(&self, what: &str) -> Option<Vec<String>> {
        let first = child_of(self.unshare.id())?.as_raw_pid().to_string();
        Some(["-t", &first, "-m", "-p", "-C", "systemctl", what, "notes"].map(str::to_owned).into())
    }

    fn tell(&self, what: &str) {
        let output = Command::new("timeout").args(["120", "nsenter"]).args(self.systemctl(what).unwrap()).output().unwrap();
        assert!(output.status.success(), "{what}: {output:#?}");
    }
}

impl Manager for Systemd {
    fn start(&self) {
        self.tell("start");
    }

    fn stop(&self) {
        self.tell("stop");
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // With it go the first process of the namespaces, all others in them, and their mounts.
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

/// Removes a cgroup and those below it, if no process is left in them.
fn remove(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Returns where the cgroups of the second version are.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let found = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, path, "cgroup2", ..] => Some(path.into()),
        _ => None,
    });
    if found.is_none() {
        println!("skipped: there are no cgroups of the second version");
    }
    found
}
