//! Installs the tools that a job needs in addition to the Rust toolchain. If a tool is not available, records that checks are skipped.

use crate::context::Context;
use anyhow::Result;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use xshell::cmd;

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file() || folder.join(format!("{program}.exe")).is_file())
}

impl Context {
    /// Returns whether `test` succeeds. If `test` fails, tries to install Debian's `package` and runs `test` a second time.
    pub(crate) fn debian(&self, package: &str, test: impl Fn() -> bool) -> bool {
        if test() {
            return true;
        }
        let _ = cmd!(self.sh, "apt-get update").quiet().ignore_stdout().ignore_stderr().run();
        let _ = cmd!(self.sh, "apt-get install -y --no-install-recommends {package}").quiet().ignore_stdout().ignore_stderr().run();
        let is_available = test();
        if !is_available {
            self.skip(&format!("Debian's package {package} is not available"));
        }
        is_available
    }

    /// Returns whether `program` is installed. If the program is missing, tries to install Debian's `package`, which contains the
    /// program.
    pub(crate) fn program(&self, program: &str, package: &str) -> bool {
        self.debian(package, || is_installed(program))
    }

    /// Returns whether a Postgres server is installed. If there is no server, tries to install Postgres.
    pub(crate) fn postgres(&self) -> bool {
        let servers = || {
            let versions = Path::new("/usr/lib/postgresql").read_dir().into_iter().flatten().flatten();
            is_installed("postgres") || versions.into_iter().any(|version| version.path().join("bin/postgres").is_file())
        };
        self.debian("postgresql", servers)
    }

    /// Returns the names of the brokers that are installed. If a broker is missing, tries to install it. The tests use the same names in
    /// `REQUIRE`.
    pub(crate) fn brokers(&self) -> Vec<&'static str> {
        let mut available = Vec::new();
        available.extend(self.program("nats-server", "nats-server").then_some("nats-server"));
        let rabbitmq = || Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server").is_file();
        available.extend(self.debian("rabbitmq-server", rabbitmq).then_some("rabbitmq-server"));
        available
    }

    /// Returns the path of Azurite, the emulator of Azure Queue Storage. If Azurite is missing, tries to install it.
    pub(crate) fn azurite(&self) -> Result<Option<PathBuf>> {
        Ok(self.npm_package("azurite", "3.35.0")?.map(|root| root.join("node_modules/.bin/azurite-queue")))
    }

    /// Returns the path of a Python interpreter that can import moto, the emulator of Amazon SQS. If moto is missing, tries to install
    /// it.
    pub(crate) fn moto(&self) -> Option<PathBuf> {
        self.python_package("moto", "[server]", "5.2.5", "moto_server").map(|bin| bin.join("python3"))
    }

    /// Returns whether Node, Chromium and chromedriver are installed. If a program is missing, tries to install it.
    pub(crate) fn browser(&self) -> bool {
        let programs = [("node", "nodejs"), ("chromium", "chromium"), ("chromedriver", "chromium-driver")];
        programs.iter().all(|(program, package)| self.program(program, package))
    }

    /// Returns whether the standard library for `target` is installed. If the library is missing, tries to install it.
    pub(crate) fn target(&self, target: &str) -> bool {
        let is_available = cmd!(self.sh, "rustup target add {target}").quiet().ignore_stderr().run().is_ok();
        if !is_available {
            self.skip(&format!("the target {target} is not available"));
        }
        is_available
    }

    /// Returns whether the toolchain is installed with these components. If something is missing, tries to install it.
    pub(crate) fn toolchain(&self, toolchain: &str, components: &str) -> bool {
        let components = if components.is_empty() { vec![] } else { vec!["--component", components] };
        let install = cmd!(self.sh, "rustup toolchain install {toolchain} --profile minimal --no-self-update {components...}");
        let is_available = install.quiet().ignore_stderr().ignore_stdout().run().is_ok();
        if !is_available {
            self.skip(&format!("the toolchain {toolchain} is not available"));
        }
        is_available
    }

    /// Returns a `PATH` that includes the programs of a crate, or `None` if the crate cannot be installed. Each version is built only one
    /// time, without optimisation.
    pub(crate) fn cargo_tool(&self, name: &str, version: &str, arguments: &[&str]) -> Result<Option<OsString>> {
        let root = self.built(&format!("tools/{name}-{version}"));
        let bin = root.join("bin");
        if !bin.is_dir() {
            let build = self.built("tools/build");
            let install = |locked: &[&str]| {
                let install = cmd!(
                    self.sh,
                    "cargo install --quiet {locked...} {name} --version {version} --root {root} --debug {arguments...}"
                );
                install.env("CARGO_TARGET_DIR", &build).env("CARGO_INCREMENTAL", "0").run().is_ok()
            };
            // The registry in use may lack a version that the tool's lock file names.
            let is_installed = install(&["--locked"]) || install(&[]);
            let _ = std::fs::remove_dir_all(&build);
            if !is_installed {
                self.skip(&format!("{name} {version} is not available"));
                return Ok(None);
            }
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        Ok(Some(std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path)))?))
    }

    /// Returns the folder with the programs of a Python package. `program` is one of these programs. Each version is installed only one
    /// time.
    pub(crate) fn python_package(&self, name: &str, extra: &str, version: &str, program: &str) -> Option<PathBuf> {
        let root = self.built(&format!("tools/{name}-{version}"));
        let bin = root.join(if cfg!(windows) { "Scripts" } else { "bin" });
        // pip writes the programs last, so the package is complete if the program exists.
        if !bin.join(format!("{program}{}", std::env::consts::EXE_SUFFIX)).is_file() {
            let python = if cfg!(windows) { "python" } else { "python3" };
            let create = || cmd!(self.sh, "{python} -m venv {root}").quiet().ignore_stdout().ignore_stderr().run().is_ok();
            if !self.debian("python3-venv", create) {
                return None;
            }
            let pip = bin.join("pip");
            let install = cmd!(self.sh, "{pip} install --quiet --disable-pip-version-check {name}{extra}=={version}");
            if install.quiet().ignore_stdout().ignore_stderr().run().is_err() {
                self.skip(&format!("PyPI's package {name} {version} is not available"));
                return None;
            }
        }
        Some(bin)
    }

    /// Returns the folder that contains `node_modules` with an npm package. Each version is installed only one time.
    pub(crate) fn npm_package(&self, name: &str, version: &str) -> Result<Option<PathBuf>> {
        let root = self.built(&format!("tools/{name}-{version}"));
        if !root.join("node_modules").join(name).is_dir() {
            if !self.program("npm", "npm") {
                return Ok(None);
            }
            std::fs::create_dir_all(&root)?;
            let install = cmd!(self.sh, "npm install --prefix {root} --no-audit --no-fund {name}@{version}");
            if install.quiet().ignore_stdout().ignore_stderr().run().is_err() {
                self.skip(&format!("npm's package {name} {version} is not available"));
                return Ok(None);
            }
        }
        Ok(Some(root))
    }
}
