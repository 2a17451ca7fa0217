//! Starts the brokers as child processes on free ports. Each broker has its own process group, which is killed when the test ends.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};
use tempfile::TempDir;

/// The time limit for the start of a server. It is longer than a server needs on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(100);

pub(crate) struct Server {
    guard: Option<Child>,
    script: String,
    port: u16,
    variables: Vec<(&'static str, String)>,
    folder: TempDir,
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

impl Server {
    pub(crate) fn folder() -> TempDir {
        TempDir::new().expect("a temporary folder")
    }

    /// Runs a shell script that starts a server, and waits until the server listens on `port`.
    ///
    /// # Errors
    ///
    /// Returns the reason if the server cannot start, with the server's output.
    pub(crate) fn start(script: &str, port: u16, folder: TempDir, variables: Vec<(&'static str, String)>) -> Result<Self, String> {
        // The shell reads from a pipe. When the test closes the pipe or dies, the read ends, and the shell kills its process group.
        let script = format!("({script}) </dev/null & read line; kill -KILL 0");
        let mut this = Self { guard: None, script, port, variables, folder };
        this.launch()?;
        Ok(this)
    }

    fn launch(&mut self) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let log = self.folder.path().join("server.log");
        let output = fs::File::create(&log).map_err(text)?;
        let mut command = Command::new("sh");
        command.args(["-c", &self.script]).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).process_group(0).current_dir(self.folder.path());
        command.stderr(output.try_clone().map_err(text)?).stdout(output);
        self.guard = Some(command.spawn().map_err(text)?);
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if start.elapsed() > START_TIMEOUT {
                let output = fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("it does not listen within {START_TIMEOUT:?}: {output}"));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn kill(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
    }

    /// Kills the server. After a pause, starts the server again with the same data.
    pub(crate) fn restart(&mut self) {
        self.kill();
        thread::sleep(Duration::from_secs(3));
        self.launch().expect("the server starts again");
    }

    /// Freezes the server's processes for the given time.
    pub(crate) fn freeze(&mut self, duration: Duration) {
        let group = self.guard.as_ref().map(|guard| format!("-{}", guard.id())).expect("the server runs");
        let signal = |signal: &str| Command::new("kill").args([signal, "--", &group]).status().expect("kill runs");
        signal("-STOP");
        thread::sleep(duration);
        signal("-CONT");
    }

    /// Runs a program with the environment variables of the server. Panics if the program fails.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(program);
        command.args(arguments).envs(self.variables.iter().map(|(name, value)| (name, value)));
        let output = command.output().expect("the program starts");
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the first of these paths at which a file exists.
///
/// # Errors
///
/// Returns an error with the name of the program if none of the files exists.
pub(crate) fn find(name: &str, paths: &[&str]) -> Result<String, String> {
    let path = paths.iter().find(|path| Path::new(path).is_file());
    path.map(ToString::to_string).ok_or_else(|| format!("{name} is not installed"))
}

/// Starts NATS with JetStream. Returns the address of the server.
///
/// # Errors
///
/// Returns the reason if the server cannot start.
pub(crate) fn nats() -> Result<(Server, String), String> {
    let program = find("nats-server", &["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"])?;
    let port = free_port();
    let server = Server::start(&format!("exec {program} -a 127.0.0.1 -p {port} -js -sd data"), port, Server::folder(), Vec::new())?;
    Ok((server, format!("127.0.0.1:{port}")))
}

/// Starts RabbitMQ. Returns the URI of the server.
///
/// # Errors
///
/// Returns the reason if the server cannot start.
pub(crate) fn rabbitmq() -> Result<(Server, String), String> {
    let program = find("rabbitmq-server", &["/usr/lib/rabbitmq/bin/rabbitmq-server"])?;
    let (port, distribution, epmd) = (free_port(), free_port(), free_port());
    // The script starts epmd, because an epmd that the broker starts would continue to run after the broker.
    let script = format!("epmd -port {epmd} -address 127.0.0.1 & exec {program}");
    let folder = Server::folder();
    let path = folder.path().to_owned();
    let at = |name: &str| path.join(name).display().to_string();
    let variables = vec![
        ("HOME", path.display().to_string()), // contains Erlang's cookie file
        ("RABBITMQ_NODENAME", format!("test{port}@localhost")),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODE_PORT", port.to_string()),
        ("RABBITMQ_DIST_PORT", distribution.to_string()),
        ("RABBITMQ_MNESIA_BASE", at("mnesia")),
        ("RABBITMQ_LOG_BASE", at("log")),
        ("RABBITMQ_PID_FILE", at("pid")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins")),
        ("RABBITMQ_CONFIG_FILE", at("rabbitmq")),
        ("ERL_EPMD_PORT", epmd.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2".into()),
    ];
    let server = Server::start(&script, port, folder, variables)?;
    Ok((server, format!("amqp://guest:guest@127.0.0.1:{port}/%2f")))
}

/// Prints a shared access signature for azurite's account. The signature uses the key of this account, which is public.
const SIGN: &str = r"
const key = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
const fields = ['devstoreaccount1', 'rwdlacup', 'q', 'sco', '', '2099-01-01T00:00:00Z', '', 'https,http', '2021-12-02', '', ''];
const signature = require('crypto').createHmac('sha256', Buffer.from(key, 'base64')).update(fields.join('\n')).digest('base64');
console.log('sv=2021-12-02&ss=q&srt=sco&sp=rwdlacup&se=2099-01-01T00:00:00Z&spr=https,http&sig=' + encodeURIComponent(signature));
";

/// Starts azurite. Returns the URL of a queue named `QUEUE`, with a shared access signature.
///
/// If the program `azurite-queue` is not in one of the usual folders, set the environment variable `AZURITE` to its path.
///
/// # Errors
///
/// Returns the reason if the server cannot start.
pub(crate) fn azurite() -> Result<(Server, String), String> {
    let program = env::var("AZURITE").unwrap_or_default();
    let program = find("azurite-queue", &[&program, "/usr/local/bin/azurite-queue", "/usr/bin/azurite-queue"])?;
    let sign = Command::new("node").args(["-e", SIGN]).output().map_err(|error| format!("node: {error}"))?;
    let signature = String::from_utf8_lossy(&sign.stdout).trim().to_owned();
    let port = free_port();
    let options = format!("--queueHost 127.0.0.1 --queuePort {port} --location data --skipApiVersionCheck --silent");
    let server = Server::start(&format!("exec {program} {options}"), port, Server::folder(), Vec::new())?;
    Ok((server, format!("http://127.0.0.1:{port}/devstoreaccount1/QUEUE?{signature}")))
}

/// Runs moto with a lock. Without the lock, moto's threads change a queue simultaneously: deleted messages can return, and sent messages
/// can be lost.
const MOTO: &str = "
import threading, time
from moto.server import main
from moto.sqs.models import SQSBackend

lock = threading.RLock()

def locked(name):
    method = getattr(SQSBackend, name)
    def call(*args, **kwargs):
        with lock:
            return method(*args, **kwargs)
    return call

for name in ['create_queue', 'send_message', 'delete_message', 'change_message_visibility', 'receive_message']:
    setattr(SQSBackend, name, locked(name))
receive = SQSBackend.receive_message

def poll(self, queue_name, count, wait, *args, **kwargs):
    end = time.monotonic() + wait
    while True:
        messages = receive(self, queue_name, count, 0, *args, **kwargs)
        if messages or time.monotonic() >= end:
            return messages
        time.sleep(0.02)

SQSBackend.receive_message = poll
main()
";

/// Starts moto's emulator of Amazon SQS. Returns the URL of the emulator.
///
/// The environment variable `MOTO` must be the path of a Python interpreter that has the package `moto[server]`.
///
/// # Errors
///
/// Returns the reason if the server cannot start.
pub(crate) fn moto() -> Result<(Server, String), String> {
    let python = find("moto", &[&env::var("MOTO").unwrap_or_default()])?;
    let port = free_port();
    let script = format!("exec {python} -c \"$SCRIPT\" -H 127.0.0.1 -p {port}");
    let server = Server::start(&script, port, Server::folder(), vec![("SCRIPT", MOTO.into())])?;
    Ok((server, format!("http://127.0.0.1:{port}")))
}
