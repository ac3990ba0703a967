-- What a cluster's owner has its agent refuse, as the agent reports it; null from agents that know no local policy.

ALTER TABLE fleet.clusters ADD COLUMN local_policy jsonb;
