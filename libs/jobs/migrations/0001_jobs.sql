CREATE TABLE jobs.jobs (
    id              uuid PRIMARY KEY,
    kind            text NOT NULL,
    target          text NOT NULL,
    queue           text NOT NULL DEFAULT 'default',
    state           text NOT NULL CHECK (state IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'DEAD')),
    arguments       jsonb NOT NULL DEFAULT '{}',
    creator         text NOT NULL,
    percent         integer NOT NULL DEFAULT 0 CHECK (percent BETWEEN 0 AND 100),
    message         text NOT NULL DEFAULT '',
    result          jsonb,
    error           text NOT NULL DEFAULT '',
    attempts        integer NOT NULL DEFAULT 0,
    max_attempts    integer NOT NULL,
    run_time        timestamptz NOT NULL DEFAULT now(),
    dispatch        bigint NOT NULL DEFAULT 0,
    dispatch_time   timestamptz,
    fence           bigint NOT NULL DEFAULT 0,
    lease_time      timestamptz,
    cancel          boolean NOT NULL DEFAULT false,
    unique_key      text UNIQUE,
    traceparent     text NOT NULL DEFAULT '',
    create_time     timestamptz NOT NULL DEFAULT now(),
    start_time      timestamptz,
    end_time        timestamptz
);
COMMENT ON COLUMN jobs.jobs.fence IS 'raised by each claim; writes of an older holder do nothing';
COMMENT ON COLUMN jobs.jobs.dispatch IS 'newest message sent for this job; an older one may not claim';

CREATE INDEX jobs_waiting ON jobs.jobs (run_time) WHERE state = 'QUEUED';
CREATE INDEX jobs_leased ON jobs.jobs (lease_time) WHERE state = 'RUNNING';
CREATE INDEX jobs_by_target ON jobs.jobs (target text_pattern_ops, id DESC);

-- One row per claim and one per outcome: the log that tests and people check for doubled effects.
CREATE TABLE jobs.claims (
    job      uuid NOT NULL REFERENCES jobs.jobs (id) ON DELETE CASCADE,
    fence    bigint NOT NULL,
    attempt  integer NOT NULL,
    worker   text NOT NULL,
    time     timestamptz NOT NULL DEFAULT now(),
    outcome  text,
    PRIMARY KEY (job, fence)
);

CREATE TABLE jobs.schedules (
    name              text PRIMARY KEY,
    kind              text NOT NULL,
    interval_seconds  integer NOT NULL CHECK (interval_seconds > 0),
    next_time         timestamptz NOT NULL DEFAULT now(),
    last_time         timestamptz
);
