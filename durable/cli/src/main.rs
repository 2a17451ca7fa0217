//! Shows and operates the queues of any program that uses `background-tasks-durable`.

mod limits;
mod options;
mod output;

use crate::limits::LimitOptions;
use crate::options::{Command, Options, Targets};
use crate::output::{job_details, job_table, json, queue_table};
use background_tasks_durable::{Durable, Error, JobId, JobInfo, JobStatus, QueueCounts, QueueInfo, UntypedQueue};
use clap::Parser;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::process::ExitCode;

/// The reason why a command failed. The reason determines the exit code.
#[derive(Debug)]
enum Failure {
    /// The job or queue does not exist, or the job's status does not allow the action.
    NotPossible(String),
    /// The user did not confirm an action on all dead jobs, or did not give the address of a database.
    Usage(String),
    /// The store cannot be opened, read or changed.
    Store(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime starts");
    let (code, text) = match runtime.block_on(run(&options)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::NotPossible(text)) => (1, text),
        Err(Failure::Usage(text)) => (2, text),
        Err(Failure::Store(error @ Error::Address(_))) => (2, error.to_string()),
        Err(Failure::Store(error)) => (3, error.to_string()),
    };
    eprintln!("background-tasks-durable: {text}");
    ExitCode::from(code)
}

async fn run(options: &Options) -> Result<(), Failure> {
    let no_url = || Failure::Usage("no database: pass --url or set DATABASE_URL".to_owned());
    let url = options.url.as_deref().filter(|url| !url.is_empty()).ok_or_else(no_url)?;
    let durable = Durable::open_existing(url, options.schema.as_deref()).await?;
    let tool = Tool { durable, json: options.json };
    match &options.command {
        Command::Queues => {
            let queues = tool.durable.queues().await?;
            tool.print(|| queue_table(&queues), || output::queues(&queues));
            Ok(())
        }
        Command::Jobs { queue, status, limit } => {
            let queue = tool.queue(queue).await?;
            let jobs = first_jobs(&queue, *status, limit.saturating_add(1)).await?;
            tool.print_jobs(jobs, *limit);
            Ok(())
        }
        Command::Dead { queue, limit } => {
            let names = match queue {
                Some(name) => vec![tool.queue(name).await?.name().to_owned()],
                None => tool.durable.queues().await?.into_iter().map(|queue| queue.name).collect(),
            };
            let mut jobs = Vec::new();
            for name in names {
                let rest = limit.saturating_add(1) - jobs.len();
                jobs.extend(first_jobs(&tool.durable.untyped_queue(name), JobStatus::Dead, rest).await?);
            }
            tool.print_jobs(jobs, *limit);
            Ok(())
        }
        Command::Show { job } => {
            let job = tool.durable.job(*job).await?.ok_or_else(|| no_job(*job))?;
            tool.print(|| job_details(&job), || output::job(&job));
            Ok(())
        }
        Command::Retry(targets) => tool.change(&Action::RETRY, targets).await,
        Command::Discard(targets) => tool.change(&Action::DISCARD, targets).await,
        Command::Cancel { jobs } => tool.change_jobs(&Action::CANCEL, jobs).await,
        Command::Pause { queue } => {
            let queue = tool.queue(queue).await?;
            queue.pause().await?;
            tool.print(
                || format!("paused {}\n", queue.name()),
                || json(&serde_json::json!({ "queue": queue.name(), "paused": true })),
            );
            Ok(())
        }
        Command::Resume { queue } => {
            let queue = tool.queue(queue).await?;
            queue.resume().await?;
            tool.print(
                || format!("resumed {}\n", queue.name()),
                || json(&serde_json::json!({ "queue": queue.name(), "paused": false })),
            );
            Ok(())
        }
        Command::Limits { queue, limits } => tool.limits(queue, limits).await,
    }
}

/// An action that changes jobs.
struct Action {
    infinitive: &'static str,
    participle: &'static str,
    /// Returns the reason why the action cannot change a job with this status.
    reason: fn(JobStatus) -> &'static str,
}

impl Action {
    const RETRY: Self = Self {
        infinitive: "retry",
        participle: "retried",
        reason: |status| if status == JobStatus::Dead { "another job uses its unique key" } else { "it is not dead" },
    };
    const DISCARD: Self = Self {
        infinitive: "discard",
        participle: "discarded",
        reason: |status| match status {
            JobStatus::Done => "workers delete it when its retention expires",
            JobStatus::Cancelled => "its worker has not stopped it yet",
            _ => "cancel it first",
        },
    };
    const CANCEL: Self = Self {
        infinitive: "cancel",
        participle: "cancelled",
        reason: |_| "only jobs that wait, run or are retried can be cancelled",
    };

    async fn apply(&self, queue: &UntypedQueue, id: JobId) -> Result<bool, Error> {
        match self.infinitive {
            "retry" => queue.retry(id).await,
            "discard" => queue.discard(id).await,
            _ => queue.cancel(id).await,
        }
    }
}

struct Tool {
    durable: Durable,
    json: bool,
}

impl Tool {
    /// Finds an existing queue. If the name is misspelled, this method fails, and no queue is created.
    async fn info(&self, name: &str) -> Result<QueueInfo, Failure> {
        let queues = self.durable.queues().await?;
        let names: Vec<_> = queues.iter().map(|queue| queue.name.clone()).collect();
        queues.into_iter().find(|queue| queue.name == name).ok_or_else(|| {
            let names =
                if names.is_empty() { "there are no queues".to_owned() } else { format!("the queues are: {}", names.join(", ")) };
            Failure::NotPossible(format!("no queue {name:?}; {names}"))
        })
    }

    async fn queue(&self, name: &str) -> Result<UntypedQueue, Failure> {
        Ok(self.durable.untyped_queue(self.info(name).await?.name))
    }

    async fn change(&self, action: &Action, targets: &Targets) -> Result<(), Failure> {
        let Some(name) = &targets.all else { return self.change_jobs(action, &targets.jobs).await };
        let info = self.info(name).await?;
        if info.counts.dead > 0 && !targets.yes {
            confirm(&format!("{} all {} dead jobs of {name:?}?", action.infinitive, number(info.counts.dead)))?;
        }
        let queue = self.durable.untyped_queue(info.name);
        let jobs = if action.infinitive == "retry" { queue.retry_all().await? } else { queue.discard_all().await? };
        let text = || format!("{} {jobs} of {name}\n", action.participle);
        self.print(text, || json(&serde_json::json!({ "queue": name, action.participle: jobs })));
        Ok(())
    }

    /// Applies the action to all of these jobs. If the action is not possible for some of them, still changes the other jobs, and then
    /// fails.
    async fn change_jobs(&self, action: &Action, ids: &[JobId]) -> Result<(), Failure> {
        let (mut changed, mut errors) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(job) = self.durable.job(*id).await? else {
                errors.push(format!("no job {id}"));
                continue;
            };
            if action.apply(&self.durable.untyped_queue(job.queue().to_owned()), *id).await? {
                changed.push(*id);
                continue;
            }
            // The status is read again, because it may have changed since the first read.
            let status = self.durable.job(*id).await?.map_or(job.status(), |job| job.status());
            let reason = (action.reason)(status);
            errors.push(format!("cannot {} job {id}, which is {status}: {reason}", action.infinitive));
        }
        let text = || {
            changed.iter().fold(String::new(), |mut text, id| {
                let _ = writeln!(text, "{} {id}", action.participle);
                text
            })
        };
        self.print(text, || json(&serde_json::json!({ action.participle: changed })));
        if errors.is_empty() { Ok(()) } else { Err(Failure::NotPossible(errors.join("\nbackground-tasks-durable: "))) }
    }

    async fn limits(&self, name: &str, limits: &LimitOptions) -> Result<(), Failure> {
        let mut info = self.info(name).await?;
        if let Some(limits) = limits.apply(info.limits) {
            self.durable.untyped_queue(info.name.clone()).set_limits(limits).await?;
            info.limits = limits;
        }
        let shown = limits::show(&info.limits);
        let text = || format!("{name}: {}\n", if shown.is_empty() { "no limits" } else { &shown });
        self.print(text, || json(&output::Limits::of(&info.limits)));
        Ok(())
    }

    fn print_jobs(&self, mut jobs: Vec<JobInfo>, limit: usize) {
        let has_more = jobs.len() > limit;
        jobs.truncate(limit);
        self.print(|| job_table(&jobs), || output::jobs(&jobs));
        if has_more {
            eprintln!("background-tasks-durable: there are more jobs; pass a larger --limit");
        }
    }

    fn print(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> String) {
        let text = if self.json { json() } else { text() };
        match io::stdout().write_all(text.as_bytes()) {
            // A broken pipe is not an error: it means that the reader, such as `head`, has exited.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => eprintln!("background-tasks-durable: cannot write: {error}"),
            _ => {}
        }
    }
}

async fn first_jobs(queue: &UntypedQueue, status: JobStatus, limit: usize) -> Result<Vec<JobInfo>, Error> {
    let mut jobs = Vec::new();
    while jobs.len() < limit {
        let page = queue.jobs(status, jobs.last()).await?;
        if page.is_empty() {
            break;
        }
        jobs.extend(page);
    }
    jobs.truncate(limit);
    Ok(jobs)
}

fn no_job(id: JobId) -> Failure {
    Failure::NotPossible(format!("no job {id}"))
}

/// Returns a count as text. If the count is above the limit, it is not exact, and the text is `10000+`.
fn number(count: u64) -> String {
    if count > QueueCounts::LIMIT { format!("{}+", QueueCounts::LIMIT) } else { count.to_string() }
}

/// Requests confirmation on the terminal. If there is no terminal, fails.
fn confirm(question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("{question} Pass --yes to confirm")));
    }
    eprint!("{question} [y/N] ");
    let mut line = String::new();
    let _ = io::stdin().read_line(&mut line);
    match line.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Usage("nothing was changed".to_owned())),
    }
}
