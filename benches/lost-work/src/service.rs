//! Contains the code that all variants share: the routes, the jobs, and the shutdown signal.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::post;
use std::env::args_os;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::future::pending;
use std::io::{self, Write};
use std::sync::LazyLock;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// The grace period: the time that a service waits for its jobs after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(2);

enum Kind {
    Succeed,
    Fail,
    Panic,
    /// A job that never ends, like a call to a server that does not respond.
    Hang,
}

pub struct Job {
    id: u64,
    kind: Kind,
}

#[derive(Debug)]
pub struct JobError {
    id: u64,
    error: io::Error,
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {} failed: {}", self.id, self.error)
    }
}

impl Job {
    /// Parses the body of a request, which contains the ID and the kind of a job.
    fn parse(body: &str) -> Option<Self> {
        let (id, kind) = body.split_once(' ')?;
        let kind = match kind {
            "succeed" => Kind::Succeed,
            "fail" => Kind::Fail,
            "panic" => Kind::Panic,
            "hang" => Kind::Hang,
            _ => return None,
        };
        Some(Self { id: id.parse().ok()?, kind })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// Does the work of the job. If the work fails, adds the ID of the job to the error.
    pub async fn run(self) -> Result<(), JobError> {
        let id = self.id;
        self.work().await.map_err(|error| JobError { id, error })
    }

    /// Simulates two calls to other servers, and writes a line to the outbox after each call.
    async fn work(self) -> io::Result<()> {
        let wait = Duration::from_millis(25 + self.id * 37 % 125);
        sleep(wait).await;
        write(format!("started {}\n", self.id)).await?;
        match self.kind {
            Kind::Succeed => {}
            Kind::Fail => return Err(io::Error::other("no such mailbox")),
            Kind::Panic => panic!("job {} panicked", self.id),
            Kind::Hang => pending().await,
        }
        sleep(wait).await;
        write(format!("done {}\n", self.id)).await
    }
}

/// Appends a line to the outbox file, and syncs the file to disk. The last argument of the command line is the path of this file.
async fn write(line: String) -> io::Result<()> {
    static OUTBOX: LazyLock<File> = LazyLock::new(|| {
        let path = args_os().next_back().expect("the command line ends with the outbox");
        OpenOptions::new().append(true).create(true).open(path).expect("the outbox can be created")
    });
    spawn_blocking(move || {
        // Writes the line in one call, because other jobs write to the same file.
        (&*OUTBOX).write_all(line.as_bytes())?;
        OUTBOX.sync_data()
    })
    .await?
}

/// Returns the routes of the service. The closure `start` starts a job, and returns the status of the HTTP response.
pub fn app(start: impl Fn(Job) -> StatusCode + Clone + Send + Sync + 'static) -> Router {
    let handle = async move |body: String| Job::parse(&body).map_or(StatusCode::BAD_REQUEST, start);
    Router::new().route("/jobs", post(handle)).layer(DefaultBodyLimit::max(64))
}

/// Serves HTTP requests until the signal has resolved and all connections have closed.
pub async fn serve(app: Router, shutdown_signal: impl Future<Output = ()> + Send + 'static) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    println!("{}", listener.local_addr().expect("the listener is bound"));
    axum::serve(listener, app).with_graceful_shutdown(shutdown_signal).await.expect("the server does not fail");
}

/// Waits until this process receives SIGTERM.
pub async fn terminated() {
    signal(SignalKind::terminate()).expect("a handler can be installed").recv().await;
}
