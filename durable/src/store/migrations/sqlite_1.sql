-- Times are milliseconds since 1970.
CREATE TABLE background_tasks_jobs (
    seq integer PRIMARY KEY,
    id text NOT NULL UNIQUE,
    queue text NOT NULL,
    -- scheduled, retrying: the job is not due. available: it is due. blocked: it is due, but over the limit of its key. Others: running,
    -- done, dead, cancelled.
    state text NOT NULL,
    priority integer NOT NULL,
    run_at integer NOT NULL,
    enqueued_at integer NOT NULL,
    ended_at integer,
    version integer NOT NULL,
    -- The numbers of finished attempts and of deaths of the worker. Each fetch increments `run`, so that an outcome changes the job only
    -- during its own run.
    attempts integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    run integer NOT NULL DEFAULT 0,
    -- The worker that holds the job.
    worker text,
    unique_key text,
    unique_until integer,
    limit_key text,
    payload text NOT NULL,
    result text,
    error text,
    checkpoint text
);
CREATE INDEX background_tasks_jobs_available ON background_tasks_jobs (queue, priority DESC, run_at) WHERE state = 'available';
CREATE INDEX background_tasks_jobs_due ON background_tasks_jobs (queue, state, run_at) WHERE state IN ('scheduled', 'retrying');
CREATE INDEX background_tasks_jobs_held ON background_tasks_jobs (worker) WHERE worker IS NOT NULL;
CREATE INDEX background_tasks_jobs_ended ON background_tasks_jobs (queue, state, ended_at) WHERE state IN ('done', 'dead', 'cancelled');
CREATE INDEX background_tasks_jobs_blocked ON background_tasks_jobs (queue, limit_key, priority DESC, run_at) WHERE state = 'blocked';
CREATE INDEX background_tasks_jobs_unique_until ON background_tasks_jobs (queue, unique_key) WHERE unique_until IS NOT NULL;
CREATE UNIQUE INDEX background_tasks_jobs_unique ON background_tasks_jobs (queue, unique_key)
    WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'retrying', 'available', 'blocked', 'running');
CREATE TABLE background_tasks_workers (
    id text PRIMARY KEY,
    queue text NOT NULL,
    expires_at integer NOT NULL
);
CREATE TABLE background_tasks_queues (
    name text PRIMARY KEY,
    paused integer NOT NULL DEFAULT 0,
    max_running integer,
    max_running_per_key integer,
    -- `rate_jobs` jobs can start in `rate_seconds`. At the time `rate_at`, `rate_left` of these jobs could still start.
    rate_jobs real,
    rate_seconds real,
    rate_left real NOT NULL DEFAULT 0,
    rate_at integer NOT NULL DEFAULT 0
);
CREATE TABLE background_tasks_schedules (
    queue text NOT NULL,
    key text NOT NULL,
    last_tick integer NOT NULL,
    PRIMARY KEY (queue, key)
);
