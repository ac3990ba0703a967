-- Which CA bundle an agent got with its certificate; empty for one of before.
ALTER TABLE fleet.certificates ADD COLUMN trust text NOT NULL DEFAULT '';
