//! Provides the environment of a test: a folder, a database, the worker processes, and a list of the processes that died.

use crate::postgres::Postgres;
use crate::process::Process;
use crate::programs::{QUEUE, Work};
use crate::record::{self, Death, Runs, now};
use background_tasks_durable::{Durable, JobId, JobInfo, JobStatus, Queue, QueueCounts, sqlx};
use sqlx::ConnectOptions as _;
use std::collections::{BTreeSet, HashMap};
use std::env;
use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use testing::poll_until;
use tokio::runtime::Runtime;

/// The kind of database that a test uses.
#[derive(Clone, Copy)]
pub(crate) enum Engine<'a> {
    Sqlite,
    /// The test creates a new database on this server.
    Postgres(&'a Postgres),
}

/// Returns the number of jobs in each test.
pub(crate) fn jobs() -> usize {
    env::var("JOBS").map_or(100, |jobs| jobs.parse().expect("JOBS is a number"))
}

pub(crate) struct Site {
    /// This field comes before `folder`, so the processes are dropped before their folder.
    workers: Vec<Process>,
    settings: Vec<(&'static str, String)>,
    pub(crate) deaths: HashMap<String, Death>,
    started: usize,
    durable: Durable,
    pub(crate) queue: Queue<Work>,
    runtime: Runtime,
    folder: TempDir,
}

impl Site {
    pub(crate) fn new(engine: Engine<'_>) -> Self {
        static DATABASES: AtomicUsize = AtomicUsize::new(0);
        let folder = TempDir::new().unwrap();
        let url = match engine {
            Engine::Sqlite => format!("sqlite://{}", folder.path().join("jobs.db").display()),
            Engine::Postgres(server) => server.database(&format!("site{}", DATABASES.fetch_add(1, Ordering::Relaxed))),
        };
        for name in ["workers", "enqueuers", "logs"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let durable = runtime.block_on(Durable::connect(&url)).unwrap();
        let queue = durable.queue(QUEUE);
        let settings = [("CONCURRENCY", "4"), ("LEASE", "6"), ("ATTEMPTS", "20"), ("CRASHES", "20"), ("TIMEOUT", "3600")];
        let settings = settings.into_iter().map(|(name, value)| (name, value.to_owned()));
        let settings = settings.chain([("DATABASE", url)]).collect();
        Self { workers: Vec::new(), settings, deaths: HashMap::new(), started: 0, durable, queue, runtime, folder }
    }

    /// Sets an environment variable for all processes that are started after this call.
    pub(crate) fn set(&mut self, name: &'static str, value: usize) {
        self.settings.retain(|(other, _)| *other != name);
        self.settings.push((name, value.to_string()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub(crate) fn enqueue(&self, work: Work) -> JobId {
        self.wait(self.queue.enqueue(work).into_future()).unwrap()
    }

    pub(crate) fn enqueue_all(&self, works: impl IntoIterator<Item = Work>) -> Vec<JobId> {
        self.wait(self.queue.enqueue_all(works).into_future()).unwrap()
    }

    fn start(&mut self, program: &str, records: &str) -> Process {
        self.started += 1;
        let name = format!("{program}-{}", self.started);
        Process::start(program, name, &self.path(records), &self.path("logs"), &self.settings)
    }

    pub(crate) fn start_enqueuer(&mut self) -> Process {
        self.start("enqueuer", "enqueuers")
    }

    /// Starts `count` more workers, and waits until all workers can receive jobs.
    #[track_caller]
    pub(crate) fn start_workers(&mut self, count: usize) {
        for _ in 0..count {
            let worker = self.start("worker", "workers");
            self.workers.push(worker);
        }
        self.workers.iter_mut().for_each(Process::ready);
    }

    pub(crate) fn worker(&mut self, which: usize) -> &mut Process {
        &mut self.workers[which]
    }

    /// Returns whether a worker runs a job. If the worker is idle and few jobs are left, enqueues more jobs for it.
    pub(crate) fn is_busy(&mut self, which: usize, enqueued: &mut Vec<JobId>) -> bool {
        let busy = self.workers[which].is_busy();
        if !busy && self.counts().waiting < 20 {
            enqueued.extend(self.enqueue_all((0..20).map(|_| Work::Takes(20))));
        }
        busy
    }

    /// Starts a new worker in place of a worker that has exited.
    pub(crate) fn replace(&mut self, which: usize) {
        self.workers[which] = self.start("worker", "workers");
    }

    /// Kills a worker, and starts a new worker in its place.
    pub(crate) fn kill(&mut self, which: usize) {
        let at = now();
        self.workers[which].kill();
        self.died(which, at);
    }

    /// Starts a new worker in place of a worker that has aborted itself.
    pub(crate) fn replace_dead(&mut self, which: usize) {
        let at = self.workers[which].last_record();
        self.died(which, at);
    }

    fn died(&mut self, which: usize, at: u64) {
        // The database may still commit outcomes that the dead process had sent. Such a commit can only make this set smaller.
        let open = self.open().into_iter().collect();
        self.deaths.insert(self.workers[which].name.clone(), Death { at, open });
        self.replace(which);
    }

    /// Returns the jobs that have no outcome in the database.
    fn open(&self) -> Vec<String> {
        self.wait(async {
            if let Some(pool) = self.durable.sqlite_pool() {
                sqlx::query_scalar("SELECT id FROM background_tasks_jobs WHERE state NOT IN ('done', 'dead')").fetch_all(pool).await
            } else {
                sqlx::query_scalar("SELECT id FROM background_tasks.jobs WHERE state NOT IN ('done', 'dead')")
                    .fetch_all(self.postgres())
                    .await
            }
        })
        .unwrap()
    }

    /// Returns whether this job is not locked by a transaction of a stopped process. With `SQLite`, each writing transaction locks all
    /// jobs.
    pub(crate) fn is_free(&self, job: JobId) -> bool {
        self.wait(async {
            let Some(pool) = self.durable.sqlite_pool() else {
                let lock = "SELECT id FROM background_tasks.jobs WHERE id = $1 FOR UPDATE SKIP LOCKED";
                return sqlx::query(lock).bind(job.to_string()).fetch_optional(self.postgres()).await.unwrap().is_some();
            };
            // This timeout is long enough for the transactions of running processes.
            let options = pool.connect_options().as_ref().clone().busy_timeout(Duration::from_millis(500));
            let mut connection = options.connect().await.unwrap();
            sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK").execute(&mut connection).await.is_ok()
        })
    }

    /// Returns the jobs whose outcome is committed.
    pub(crate) fn committed(&self) -> BTreeSet<String> {
        let ids = "SELECT id FROM background_tasks.jobs WHERE state = 'done'";
        self.wait(sqlx::query_scalar(ids).fetch_all(self.postgres())).unwrap().into_iter().collect()
    }

    fn postgres(&self) -> &sqlx::PgPool {
        self.durable.postgres_pool().expect("the database is SQLite or Postgres")
    }

    #[track_caller]
    pub(crate) fn info(&self, job: JobId) -> JobInfo {
        self.wait(self.queue.info(job)).unwrap().unwrap_or_else(|| panic!("{job} does not exist"))
    }

    pub(crate) fn runs(&self) -> Runs {
        record::runs(&self.path("workers"))
    }

    /// Returns how many handler calls all workers have recorded.
    pub(crate) fn starts(&self) -> usize {
        self.runs().values().map(Vec::len).sum()
    }

    pub(crate) fn starts_of(&self, job: JobId) -> usize {
        self.runs().get(&job.to_string()).map_or(0, Vec::len)
    }

    pub(crate) fn counts(&self) -> QueueCounts {
        self.wait(self.queue.counts()).unwrap()
    }

    /// Waits until `count` jobs are done, and checks that the queue has no other jobs.
    #[track_caller]
    pub(crate) fn all_done(&self, count: usize) {
        poll_until(&"jobs are missing", || {
            let counts = self.counts();
            assert_eq!(counts.dead, 0, "{counts:?}");
            counts.done >= count as u64
        });
        let counts = self.counts();
        assert_eq!((counts.done, counts.waiting, counts.running, counts.retrying), (count as u64, 0, 0, 0), "{counts:?}");
    }

    /// Checks that each of these jobs is done. The result of each job must be the result of its last completed run.
    #[track_caller]
    pub(crate) fn check_none_lost<'a>(&self, ids: impl IntoIterator<Item = &'a JobId>) {
        let runs = self.runs();
        for id in ids {
            let info = self.info(*id);
            assert_eq!(info.status(), JobStatus::Done, "{id}: {info:?}");
            let result: String = info.result().expect("the result is a name").expect("the job has a result");
            let runs = runs.get(&id.to_string()).unwrap_or_else(|| panic!("{id} is done but never ran"));
            let last = runs
                .iter()
                .rfind(|run| run.ended.is_some())
                .unwrap_or_else(|| panic!("{id} is done but no run completed: {runs:#?}"));
            assert_eq!(result, last.process, "{id}: {runs:#?}");
        }
    }

    /// Sends SIGTERM to each worker, and waits until the worker has drained.
    #[track_caller]
    pub(crate) fn terminate(&mut self) {
        for mut worker in std::mem::take(&mut self.workers) {
            worker.terminate();
        }
    }
}
