-- Environments whose groups the cluster's agent may act with, since the controller said so once (condition RightsReady).
-- Until then these groups are not sent: the API server would refuse the user's whole request for one unknown group.

CREATE TABLE fleet.granted (
    environment_uid uuid PRIMARY KEY,
    cluster_uid     uuid NOT NULL REFERENCES fleet.clusters (uid) ON DELETE CASCADE,
    granted         timestamptz NOT NULL DEFAULT now()
);
INSERT INTO fleet.granted (environment_uid, cluster_uid)
    SELECT uid, cluster_uid FROM fleet.statuses
    WHERE kind = 'Environment' AND conditions @> '[{"type": "RightsReady", "status": "True"}]' ON CONFLICT DO NOTHING;

CREATE FUNCTION fleet.notify_granted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('grants', '*');
    RETURN NULL;
END $$;
CREATE TRIGGER granted_grants AFTER INSERT ON fleet.granted
    FOR EACH STATEMENT EXECUTE FUNCTION fleet.notify_granted();
