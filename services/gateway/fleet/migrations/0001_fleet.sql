-- Clusters, how agents join them, what they should hold and what they say they hold.

-- One row: who derived the desired state. An agent refuses another hub until an operator confirms.
CREATE TABLE fleet.hub (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    uid       uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO fleet.hub DEFAULT VALUES;

CREATE TABLE fleet.clusters (
    uid                 uuid PRIMARY KEY,
    name                text NOT NULL UNIQUE,
    display_name        text NOT NULL DEFAULT '',
    online              boolean NOT NULL DEFAULT false,
    joined              boolean NOT NULL DEFAULT false,
    agent_version       text NOT NULL DEFAULT '',
    seen                timestamptz,
    inventory           jsonb,
    applied_generation  bigint NOT NULL DEFAULT 0,
    confirmation_needed text NOT NULL DEFAULT '',
    version             bigint NOT NULL DEFAULT 1,
    created             timestamptz NOT NULL DEFAULT now(),
    updated             timestamptz NOT NULL DEFAULT now()
);

-- Only the hash of the secret is kept. `public_key_hash` binds a used token to the key it was used with.
CREATE TABLE fleet.join_tokens (
    id              text PRIMARY KEY,
    cluster_uid     uuid NOT NULL REFERENCES fleet.clusters (uid) ON DELETE CASCADE,
    secret_hash     bytea NOT NULL,
    created         timestamptz NOT NULL,
    expires         timestamptz NOT NULL,
    used            timestamptz,
    revoked         timestamptz,
    public_key_hash bytea
);
CREATE INDEX join_tokens_by_cluster ON fleet.join_tokens (cluster_uid, created);

-- Certificates outlive their cluster's row: what was issued for a removed cluster stays known and refused.
CREATE TABLE fleet.certificates (
    serial      text PRIMARY KEY,
    cluster_uid uuid NOT NULL,
    issued      timestamptz NOT NULL,
    expires     timestamptz NOT NULL,
    revoked     timestamptz
);
CREATE INDEX certificates_by_cluster ON fleet.certificates (cluster_uid);

-- One row per cluster; its lock orders the writers of a cluster's set, and with them the generations.
CREATE TABLE fleet.desired (
    cluster_uid          uuid PRIMARY KEY REFERENCES fleet.clusters (uid) ON DELETE CASCADE,
    generation           bigint NOT NULL DEFAULT 0,
    checksum             text NOT NULL DEFAULT '',
    confirmed_generation bigint NOT NULL DEFAULT 0
);

-- `manifest` is the canonical JSON that the agent gets, byte for byte. `tenant` tells whose it is.
CREATE TABLE fleet.desired_objects (
    cluster_uid uuid NOT NULL REFERENCES fleet.desired (cluster_uid) ON DELETE CASCADE,
    kind        text NOT NULL,
    name        text NOT NULL,
    uid         uuid NOT NULL,
    tenant      text NOT NULL,
    generation  bigint NOT NULL,
    manifest    bytea NOT NULL,
    traceparent text NOT NULL DEFAULT '',
    PRIMARY KEY (cluster_uid, kind, name)
);
CREATE INDEX desired_objects_by_tenant ON fleet.desired_objects (tenant);

-- Removals asked for and not yet confirmed by the cluster.
CREATE TABLE fleet.tombstones (
    cluster_uid uuid NOT NULL REFERENCES fleet.desired (cluster_uid) ON DELETE CASCADE,
    kind        text NOT NULL,
    name        text NOT NULL,
    uid         uuid NOT NULL,
    tenant      text NOT NULL,
    generation  bigint NOT NULL,
    traceparent text NOT NULL DEFAULT '',
    PRIMARY KEY (cluster_uid, kind, name, uid)
);
CREATE INDEX tombstones_by_tenant ON fleet.tombstones (tenant);

-- What the agent last reported of each object.
CREATE TABLE fleet.statuses (
    cluster_uid uuid NOT NULL REFERENCES fleet.clusters (uid) ON DELETE CASCADE,
    kind        text NOT NULL,
    name        text NOT NULL,
    uid         uuid NOT NULL,
    generation  bigint NOT NULL,
    state       text NOT NULL,
    reason      text NOT NULL DEFAULT '',
    message     text NOT NULL DEFAULT '',
    conditions  jsonb NOT NULL DEFAULT '[]',
    used        jsonb NOT NULL DEFAULT '{}',
    hard        jsonb NOT NULL DEFAULT '{}',
    reported    timestamptz NOT NULL,
    PRIMARY KEY (cluster_uid, kind, name)
);
