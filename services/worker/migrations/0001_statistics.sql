-- What environments used: samples of some days, then one row a day.
CREATE TABLE worker.usage_samples (
    environment text NOT NULL,
    time        timestamptz NOT NULL,
    cluster     text NOT NULL,
    hard        jsonb NOT NULL,
    used        jsonb NOT NULL,
    cpu         double precision,   -- cores, from metrics.k8s.io; null where it is not served
    memory      double precision,   -- bytes
    PRIMARY KEY (environment, time)
);
CREATE INDEX usage_samples_by_time ON worker.usage_samples (time);

CREATE TABLE worker.usage_days (
    environment text NOT NULL,
    day         date NOT NULL,
    cluster     text NOT NULL,
    samples     integer NOT NULL,
    used        jsonb NOT NULL,     -- as last reported that day
    cpu_average double precision,
    cpu_peak    double precision,
    memory_average double precision,
    memory_peak double precision,
    PRIMARY KEY (environment, day)
);

CREATE TABLE worker.quota_days (
    tenant       text NOT NULL,
    cluster      text NOT NULL,
    day          date NOT NULL,
    hard         jsonb NOT NULL,
    allocated    jsonb NOT NULL,
    used         jsonb NOT NULL,
    environments integer NOT NULL,
    PRIMARY KEY (tenant, cluster, day)
);
