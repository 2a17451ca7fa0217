//! Runs the service under real service managers. The managers stop the service.

use super::load::{check_notes, random_stop, rounds, send_notes};
use super::service::{NotesClient, address_in, stall};
use super::{Program, one_attempt_passes};
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use testing::{Client, Systemd, are_installed, poll_until, poll_until_some};

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
    one_attempt_passes(3, || {
        let folder = ServiceFolder::new(program);
        straggler_is_a_failure(&Runit::new(program, &folder, "0.5"), &folder, "1 0\n");
    });
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

fn must(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:#?}");
}

/// Runs the service under systemd.
pub fn under_systemd(program: Program) {
    let folder = ServiceFolder::new(program);
    if let Some(systemd) = boot_systemd(program, &folder, "3600") {
        every_accepted_note_is_written(&systemd, &folder, "success 0\n");
        drop(systemd);
        one_attempt_passes(3, || {
            let folder = ServiceFolder::new(program);
            straggler_is_a_failure(&boot_systemd(program, &folder, "0.5").unwrap(), &folder, "exit-code 1\n");
        });
    }
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

fn boot_systemd(program: Program, folder: &ServiceFolder, grace: &str) -> Option<Systemd> {
    let unit = UNIT.replace("COMMAND", &folder.command(program, grace)).replace("FOLDER", folder.path());
    fs::write(folder.join("notes.service"), unit).unwrap();
    folder.script("post", r#"echo "$SERVICE_RESULT $EXIT_STATUS" >"${0%post}ended""#);
    Systemd::boot(folder.0.path())
}

impl Manager for Systemd {
    fn start(&self) {
        self.systemctl("start", "notes");
    }

    fn stop(&self) {
        self.systemctl("stop", "notes");
    }
}
