-- Moves jobs from the tables that earlier versions of this crate used.
INSERT INTO background_tasks_jobs
    (id, queue, state, priority, run_at, enqueued_at, ended_at, version, attempts, unique_key, payload, result, error)
SELECT id, job_type,
    CASE
        WHEN status = 'Done' THEN 'done'
        WHEN status = 'Killed' OR (status = 'Failed' AND attempts >= max_attempts) THEN 'dead'
        WHEN run_at <= unixepoch() THEN 'available'
        WHEN status = 'Failed' THEN 'retrying'
        ELSE 'scheduled'
    END,
    priority, run_at * 1000, run_at * 1000,
    CASE WHEN status IN ('Done', 'Killed') OR (status = 'Failed' AND attempts >= max_attempts) THEN coalesce(done_at, unixepoch()) * 1000 END,
    CASE WHEN json_valid(metadata) THEN coalesce(CAST(metadata ->> 'version' AS integer), 1) ELSE 1 END,
    attempts, idempotency_key, CAST(job AS text),
    CASE WHEN status = 'Done' AND json_valid(last_result) THEN last_result -> 'Ok' END,
    CASE WHEN status <> 'Done' AND json_valid(last_result) THEN last_result ->> 'Err' END
FROM Jobs ORDER BY id;
DROP TABLE Jobs;
DROP TABLE Workers;
DROP TABLE background_tasks_migrations;
