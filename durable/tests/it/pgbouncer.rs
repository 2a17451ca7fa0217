//! Tests workers that connect to Postgres through the connection pooler `PgBouncer`.

use crate::common::{HANG, Mail, TestDatabase, mail, registry, until};
use background_tasks_durable::{Durable, Error, Job, JobStatus, WorkerOptions};
use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;

/// A `PgBouncer` process that stops when this value is dropped or when this process exits.
struct PgBouncer {
    url: String,
    shell: Child,
    _folder: TempDir,
}

impl PgBouncer {
    /// Returns `None` if `PgBouncer` is not installed.
    async fn start(database: &TestDatabase, mode: &str) -> Option<Self> {
        testing::run_or_skip("pgbouncer", &["pgbouncer", "--version"])?;
        let server = database.address.strip_prefix("postgres://postgres@127.0.0.1:").unwrap();
        let (server, name) = server.split_once('/').unwrap();
        let port = testing::free_port();
        let folder = TempDir::new().unwrap();
        let settings = format!(
            "[databases]\n{name} = host=127.0.0.1 port={server} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
            unix_socket_dir =\nauth_type = any\npool_mode = {mode}\nignore_startup_parameters = extra_float_digits\n"
        );
        let file = folder.path().join("settings");
        fs::write(&file, settings).unwrap();
        // `PgBouncer` refuses to run as root. The shell stops `PgBouncer` when this process exits.
        let script = r#"if [ "$(id -u)" = 0 ]; then chmod -R a+rX "$1"; set -- "$1" -u postgres; fi
            folder=$1; shift; pgbouncer -q "$@" "$folder/settings" & read -r never; kill $!; wait"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = shell.process_group(0).spawn().unwrap();
        let this = Self { url: format!("postgres://postgres@127.0.0.1:{port}/{name}"), shell, _folder: folder };
        until("the pooler accepts connections", async || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()).await;
        Some(this)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pooler_in_session_mode_is_supported() {
    let Some(database) = TestDatabase::postgres() else { return };
    let Some(pooler) = PgBouncer::start(&database, "session").await else { return };
    let (jobs, other) = (Durable::postgres(&pooler.url).await.unwrap(), Durable::postgres(&pooler.url).await.unwrap());
    let (registry, losses) = registry();
    // The poll interval is long, so only a notification wakes the worker in time.
    let options = WorkerOptions::default().poll_interval(HANG * 10);
    jobs.queue::<Mail>("mail").serve(&registry, options, async |_: Job<Mail>| Ok::<_, Infallible>(())).await.unwrap();
    let queue = other.queue::<Mail>("mail");
    for _ in 0..20 {
        let id = queue.enqueue(mail("ann")).await.unwrap();
        let info = timeout(HANG, queue.wait(id)).await.expect("the worker receives the notice").unwrap().unwrap();
        assert_eq!(info.status(), JobStatus::Done);
    }
    registry.shutdown().await;
    assert_eq!(losses.all(), []);
}

/// In this mode, `PgBouncer` does not forward notifications. Versions before 1.21 do not forward prepared statements either.
#[tokio::test(flavor = "multi_thread")]
async fn pooler_in_transaction_mode_is_a_clear_error() {
    let Some(database) = TestDatabase::postgres() else { return };
    let Some(pooler) = PgBouncer::start(&database, "transaction").await else { return };
    let enqueue = async || {
        let jobs = Durable::postgres(&pooler.url).await?;
        let queue = jobs.queue::<Mail>("mail");
        for _ in 0..20 {
            queue.enqueue(mail("ann")).await?;
        }
        Ok(())
    };
    let error = timeout(Duration::from_mins(1), enqueue()).await.expect("no hang").expect_err("the mode is not supported");
    assert!(matches!(error, Error::Schema(_)), "{error:?}");
    assert!(error.to_string().contains("session mode"), "{error}");
}
