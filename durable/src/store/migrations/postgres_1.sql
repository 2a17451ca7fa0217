CREATE TABLE @jobs (
    id text COLLATE "C" PRIMARY KEY,
    queue text COLLATE "C" NOT NULL,
    -- scheduled, retrying: the job is not due. available: it is due. blocked: it is due, but over the limit of its key. Others: running,
    -- done, dead, cancelled.
    state text COLLATE "C" NOT NULL,
    priority integer NOT NULL,
    run_at timestamptz NOT NULL,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    version integer NOT NULL,
    -- The numbers of finished attempts and of deaths of the worker. Each fetch increments `run`, so that an outcome changes the job only
    -- during its own run.
    attempts integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    run integer NOT NULL DEFAULT 0,
    -- The worker that holds the job.
    worker text COLLATE "C",
    unique_key text COLLATE "C",
    unique_until timestamptz,
    limit_key text COLLATE "C",
    payload text NOT NULL,
    result text,
    error text,
    checkpoint text
);
CREATE INDEX jobs_available ON @jobs (queue, priority DESC, run_at, id) WHERE state = 'available';
CREATE INDEX jobs_due ON @jobs (queue, state, run_at) WHERE state IN ('scheduled', 'retrying');
CREATE INDEX jobs_held ON @jobs (worker) WHERE worker IS NOT NULL;
CREATE INDEX jobs_ended ON @jobs (queue, state, ended_at, id) WHERE state IN ('done', 'dead', 'cancelled');
CREATE INDEX jobs_blocked ON @jobs (queue, limit_key, priority DESC, run_at, id) WHERE state = 'blocked';
CREATE INDEX jobs_unique_until ON @jobs (queue, unique_key) WHERE unique_until IS NOT NULL;
CREATE UNIQUE INDEX jobs_unique ON @jobs (queue, unique_key)
    WHERE unique_key IS NOT NULL AND state IN ('scheduled', 'retrying', 'available', 'blocked', 'running');
CREATE TABLE @workers (
    id text COLLATE "C" PRIMARY KEY,
    queue text COLLATE "C" NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE TABLE @queues (
    name text COLLATE "C" PRIMARY KEY,
    paused boolean NOT NULL DEFAULT false,
    max_running integer,
    max_running_per_key integer,
    -- `rate_jobs` jobs can start in `rate_seconds`. At the time `rate_at`, `rate_left` of these jobs could still start.
    rate_jobs double precision,
    rate_seconds double precision,
    rate_left double precision NOT NULL DEFAULT 0,
    rate_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE @schedules (
    queue text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    last_tick bigint NOT NULL,
    PRIMARY KEY (queue, key)
);
