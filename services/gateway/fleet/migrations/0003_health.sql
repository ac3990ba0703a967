-- What is known of a cluster's health, and what was last told of it.

ALTER TABLE fleet.clusters
    ADD COLUMN paused          boolean NOT NULL DEFAULT false,
    ADD COLUMN leaving         boolean NOT NULL DEFAULT false,    -- goes when it has confirmed its last removal
    ADD COLUMN round_trip      double precision,                  -- seconds
    ADD COLUMN clock_skew      double precision NOT NULL DEFAULT 0,  -- seconds that the cluster is ahead
    ADD COLUMN flapping_until  timestamptz,
    ADD COLUMN reasons         jsonb NOT NULL DEFAULT '[]',       -- [{reason, message, since}]
    ADD COLUMN told_state      text NOT NULL DEFAULT '';          -- the state of the last event

-- Clusters that were removed, until nothing of theirs is left at the broker.
CREATE TABLE fleet.removed_clusters (
    uid     uuid PRIMARY KEY,
    name    text NOT NULL,
    forced  boolean NOT NULL,
    removed timestamptz NOT NULL DEFAULT now(),
    cleaned timestamptz
);
CREATE INDEX removed_clusters_open ON fleet.removed_clusters (removed) WHERE cleaned IS NULL;
