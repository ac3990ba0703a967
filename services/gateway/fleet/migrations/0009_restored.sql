-- When this database was last restored from a backup: certificates issued before are good although it may not know them.
ALTER TABLE fleet.hub ADD COLUMN restored timestamptz;
