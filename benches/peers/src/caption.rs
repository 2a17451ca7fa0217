//! Describes the machine, and lists the versions of the compared crates.

use crate::cargo;
use serde_json::{Value, json};
use std::fmt;
use std::fs::read_to_string;
use std::process::Command;
use std::thread::available_parallelism;

const PEERS: [&str; 6] = ["async-executor", "async-shutdown", "swansong", "tokio", "tokio-graceful", "tokio-util"];

pub struct Caption {
    cpu: String,
    cores: String,
    kernel: String,
    rustc: String,
    peers: Vec<(String, String)>,
}

impl Caption {
    pub fn new() -> Self {
        Self {
            cpu: or_unknown(cpu()),
            cores: or_unknown(available_parallelism().ok().map(|cores| cores.to_string())),
            kernel: or_unknown(read_to_string("/proc/sys/kernel/osrelease").ok()),
            rustc: or_unknown(rustc()),
            peers: cargo::versions(&PEERS).unwrap_or_default(),
        }
    }

    fn machine(&self) -> String {
        format!("{}, {} core{}", self.cpu, self.cores, if self.cores == "1" { "" } else { "s" })
    }

    fn peers(&self) -> String {
        let peers: Vec<_> = self.peers.iter().map(|(name, version)| format!("{name} {version}")).collect();
        if peers.is_empty() { or_unknown(None) } else { peers.join(", ") }
    }

    pub fn json(&self) -> Value {
        let peers: serde_json::Map<_, _> = self.peers.iter().map(|(name, version)| (name.clone(), json!(version))).collect();
        json!({ "cpu": self.cpu, "cores": self.cores, "kernel": self.kernel, "rustc": self.rustc, "peers": peers })
    }
}

impl fmt::Display for Caption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Machine: {}, with kernel {} and {}.", self.machine(), self.kernel, self.rustc)?;
        writeln!(f, "The compared crates are {}.", self.peers())
    }
}

fn or_unknown(found: Option<String>) -> String {
    found.map(|found| found.trim().to_owned()).filter(|found| !found.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

fn cpu() -> Option<String> {
    let all = read_to_string("/proc/cpuinfo").ok()?;
    let line = all.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.to_owned())
}

fn rustc() -> Option<String> {
    let output = Command::new("rustc").arg("--version").output().ok()?;
    String::from_utf8(output.stdout).ok()
}
