-- Certificates of a cluster that were issued until then are revoked, also those that a database restored from a backup has forgotten.
ALTER TABLE fleet.clusters ADD COLUMN revoked_until timestamptz;
UPDATE fleet.clusters c SET revoked_until = (SELECT max(j.used) FROM fleet.join_tokens j WHERE j.cluster_uid = c.uid);
