-- A state that gets better is told when it has held for a while.
ALTER TABLE fleet.clusters
    ADD COLUMN told_reasons jsonb NOT NULL DEFAULT '[]',          -- [{reason, message}] of the last event
    ADD COLUMN better_since timestamptz;                          -- it is better than what was told, since then
UPDATE fleet.clusters SET told_reasons = (
    SELECT coalesce(jsonb_agg(r - 'since' ORDER BY place), '[]') FROM jsonb_array_elements(reasons) WITH ORDINALITY AS known (r, place)
);
