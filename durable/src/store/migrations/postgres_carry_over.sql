-- Moves jobs from the tables that earlier versions of this crate used.
INSERT INTO @jobs (id, queue, state, priority, run_at, enqueued_at, ended_at, version, attempts, unique_key, payload, result, error)
SELECT id, job_type,
    CASE
        WHEN status = 'Done' THEN 'done'
        WHEN status = 'Killed' OR (status = 'Failed' AND attempts >= max_attempts) THEN 'dead'
        WHEN run_at <= now() THEN 'available'
        WHEN status = 'Failed' THEN 'retrying'
        ELSE 'scheduled'
    END,
    coalesce(priority, 0), run_at, run_at,
    CASE WHEN status IN ('Done', 'Killed') OR (status = 'Failed' AND attempts >= max_attempts) THEN coalesce(done_at, now()) END,
    CASE WHEN metadata::text LIKE '%"version"=>%' THEN coalesce(substring(metadata::text FROM '"version"=>"(\d{1,9})"')::integer, 0) ELSE 1 END,
    attempts, idempotency_key, convert_from(job, 'UTF8'),
    CASE WHEN status = 'Done' THEN (last_result -> 'Ok')::text END,
    CASE WHEN status <> 'Done' THEN last_result ->> 'Err' END
FROM apalis.jobs;
DROP TABLE apalis.jobs, apalis.workers, apalis.background_tasks_migrations CASCADE;
