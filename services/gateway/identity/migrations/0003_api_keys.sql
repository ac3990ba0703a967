-- Service accounts are users that a tenant or a project owns: one table of names, so that none is ever another's. API keys
-- act as their owner with a part of its rights; of their secrets only hashes lie here.

ALTER TABLE identity.users
    ADD COLUMN kind          text NOT NULL DEFAULT 'PERSON' CHECK (kind IN ('PERSON', 'SERVICE_ACCOUNT')),
    ADD COLUMN owner_tenant  text NOT NULL DEFAULT '',
    ADD COLUMN owner_project text NOT NULL DEFAULT '',
    ADD COLUMN account       text NOT NULL DEFAULT '',
    DROP CONSTRAINT users_username_check,
    ADD CONSTRAINT users_username_check CHECK (
        username ~ '^[a-z0-9][a-z0-9._@-]{0,62}$' OR (kind = 'SERVICE_ACCOUNT' AND username ~ '^sa(\.[a-z][a-z0-9-]{0,29}){2,3}$')),
    ADD CONSTRAINT users_owner_check CHECK (
        CASE kind WHEN 'PERSON' THEN owner_tenant = '' AND owner_project = '' AND account = ''
        ELSE owner_tenant <> '' AND account <> '' AND platform_role = 'USER' END);
CREATE UNIQUE INDEX users_service_accounts ON identity.users (owner_tenant, owner_project, account) WHERE kind = 'SERVICE_ACCOUNT';

CREATE TABLE identity.api_keys (
    id               uuid PRIMARY KEY,
    user_uid         uuid NOT NULL REFERENCES identity.users (uid) ON DELETE CASCADE,
    key              text NOT NULL CHECK (key ~ '^[a-z][a-z0-9-]{0,62}$'),
    hash             bytea NOT NULL,
    display_name     text NOT NULL DEFAULT '',
    permissions      text[] NOT NULL DEFAULT '{}',
    read_only        boolean NOT NULL DEFAULT false,
    scope            text NOT NULL DEFAULT '',
    created          timestamptz NOT NULL,
    expires          timestamptz NOT NULL,
    revoked          timestamptz,
    last_use         timestamptz,
    last_use_address text NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX api_keys_by_owner ON identity.api_keys (user_uid, key) WHERE revoked IS NULL;
CREATE INDEX api_keys_by_expiry ON identity.api_keys (expires);

-- A key is kept in memory as the session that it is: the same message tells of its end.
CREATE TRIGGER api_keys_revoked AFTER UPDATE OF revoked ON identity.api_keys
    FOR EACH ROW WHEN (NEW.revoked IS NOT NULL) EXECUTE FUNCTION identity.notify_session();
CREATE TRIGGER api_keys_gone AFTER DELETE ON identity.api_keys
    FOR EACH ROW WHEN (OLD.revoked IS NULL) EXECUTE FUNCTION identity.notify_session();
