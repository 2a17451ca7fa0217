use crate::limits::LimitOptions;
use background_tasks_durable::{JobId, JobStatus};
use clap::{Args, Parser, Subcommand};

const MORE_HELP: &str = "\
Times are in UTC. A count of 10000+ means more than 10,000 jobs.

Exit status: 0 on success; 1 if there is no such job or queue, or a job's status does not allow the
action; 2 for invalid arguments, or a bulk action that is not confirmed; 3 if the database cannot be
used. The program never creates or migrates tables.";

/// Shows and operates the queues of background-tasks-durable
#[derive(Debug, Parser)]
#[command(name = "background-tasks-durable", version, after_help = MORE_HELP)]
pub(crate) struct Options {
    /// Path of a SQLite file, or postgres://USER:PASSWORD@HOST:PORT/DATABASE
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    pub(crate) url: Option<String>,
    /// Schema of the tables in Postgres [default: background_tasks]
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) schema: Option<String>,
    /// Print JSON for programs instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List all queues with their depth, workers and limits
    Queues,
    /// List jobs of a queue by status: waiting jobs in the order in which they run, ended jobs latest first
    Jobs {
        queue: String,
        /// waiting, running, retrying, done, dead or cancelled
        #[arg(value_parser = status)]
        status: JobStatus,
        /// Show at most this many jobs
        #[arg(long, value_name = "JOBS", default_value_t = 100)]
        limit: usize,
    },
    /// List dead jobs of one queue or of all queues, with their errors, latest first
    Dead {
        queue: Option<String>,
        /// Show at most this many jobs
        #[arg(long, value_name = "JOBS", default_value_t = 100)]
        limit: usize,
    },
    /// Show a job with its payload, error and result
    Show {
        /// ID of the job, in any queue
        job: JobId,
    },
    /// Enqueue dead jobs again, and reset their attempts
    Retry(Targets),
    /// Delete jobs that are waiting, retrying, dead or cancelled, or all dead jobs of a queue
    Discard(Targets),
    /// Cancel jobs that wait, run or are retried; the handler of a running job is dropped
    Cancel {
        /// IDs of jobs, in any queue
        #[arg(required = true, value_name = "JOB")]
        jobs: Vec<JobId>,
    },
    /// Stop fetching jobs of a queue, in all processes, until `resume`; running jobs continue
    Pause { queue: String },
    /// End a pause
    Resume { queue: String },
    /// Show or set the limits that all workers of a queue share; limits without an option do not change
    Limits {
        queue: String,
        #[command(flatten)]
        limits: LimitOptions,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Targets {
    /// IDs of jobs, in any queue
    #[arg(value_name = "JOB", required_unless_present = "all")]
    pub(crate) jobs: Vec<JobId>,
    /// All dead jobs of this queue; asks for confirmation
    #[arg(long, value_name = "QUEUE", conflicts_with = "jobs")]
    pub(crate) all: Option<String>,
    /// Do not ask for confirmation; required without a terminal
    #[arg(long, short, requires = "all")]
    pub(crate) yes: bool,
}

fn status(text: &str) -> Result<JobStatus, String> {
    use JobStatus::{Cancelled, Dead, Done, Retrying, Running, Waiting};
    let all = [Waiting, Running, Retrying, Done, Dead, Cancelled];
    let names = || all.map(|status| status.to_string()).join(", ");
    all.into_iter().find(|status| status.to_string() == text).ok_or_else(|| format!("expected one of: {}", names()))
}
