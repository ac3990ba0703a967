-- When a tunnel first stood with a certificate: until then its agent may not have got it, nor the CA bundle that came with it.
-- Those of before count as used, as they did; the newest of each cluster is told again by the next tunnel.
ALTER TABLE fleet.certificates ADD COLUMN used timestamptz;
UPDATE fleet.certificates SET used = issued;
