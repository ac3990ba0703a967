-- Users, their sessions and tokens, failed sign-ins, and the keys that tokens are signed with.
-- Secrets never lie here in clear: passwords as argon2id, refresh tokens as SHA-256, private keys sealed under the hub's key.

CREATE TABLE identity.users (
    uid           uuid PRIMARY KEY,
    username      text NOT NULL UNIQUE COLLATE "C" CHECK (username ~ '^[a-z0-9][a-z0-9._@-]{0,62}$'),
    display_name  text NOT NULL DEFAULT '',
    email         text NOT NULL DEFAULT '',
    state         text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'DISABLED')),
    platform_role text NOT NULL DEFAULT 'USER' CHECK (platform_role IN ('USER', 'AUDITOR', 'ADMIN')),
    password_hash text NOT NULL,
    version       bigint NOT NULL DEFAULT 1,
    created       timestamptz NOT NULL,
    updated       timestamptz NOT NULL
);
CREATE INDEX users_by_creation ON identity.users (created, uid);
CREATE INDEX users_admins ON identity.users (uid) WHERE platform_role = 'ADMIN' AND state = 'ACTIVE';

-- Names of users that were: a name stands for one person in every cluster's audit log, so it is never given out again.
CREATE TABLE identity.burnt_names (
    username text PRIMARY KEY COLLATE "C",
    burnt    timestamptz NOT NULL DEFAULT now()
);
CREATE FUNCTION identity.burn_name() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO identity.burnt_names (username) VALUES (OLD.username) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER users_burn AFTER DELETE ON identity.users
    FOR EACH ROW EXECUTE FUNCTION identity.burn_name();

CREATE TABLE identity.sessions (
    id         uuid PRIMARY KEY,
    user_uid   uuid NOT NULL REFERENCES identity.users (uid) ON DELETE CASCADE,
    created    timestamptz NOT NULL,
    expires    timestamptz NOT NULL,
    refreshed  timestamptz NOT NULL,
    ended      timestamptz,
    address    text NOT NULL DEFAULT '',
    user_agent text NOT NULL DEFAULT ''
);
CREATE INDEX sessions_by_user ON identity.sessions (user_uid, created DESC, id DESC) WHERE ended IS NULL;
CREATE INDEX sessions_by_expiry ON identity.sessions (expires);

-- Each is good once. Used ones stay as long as their session, so that a second use is noticed.
CREATE TABLE identity.refresh_tokens (
    hash       bytea PRIMARY KEY,
    session_id uuid NOT NULL REFERENCES identity.sessions (id) ON DELETE CASCADE,
    created    timestamptz NOT NULL,
    used       timestamptz
);
CREATE INDEX refresh_tokens_by_session ON identity.refresh_tokens (session_id);

-- Counted whether or not the account is there, so that nobody learns which are.
CREATE TABLE identity.sign_in_failures (
    username text NOT NULL,
    network  text NOT NULL,
    failures int NOT NULL,
    last     timestamptz NOT NULL,
    PRIMARY KEY (username, network)
);
CREATE INDEX sign_in_failures_by_time ON identity.sign_in_failures (last);

CREATE TABLE identity.signing_keys (
    kid     text PRIMARY KEY,
    purpose text NOT NULL CHECK (purpose IN ('access', 'caller', 'grant')),
    public  bytea NOT NULL,
    sealed  bytea NOT NULL,
    created timestamptz NOT NULL
);
CREATE INDEX signing_keys_by_purpose ON identity.signing_keys (purpose, created DESC);

-- Whoever keeps sessions or users in memory listens on `identity`: `session/<id>` or `user/<uid>`.
CREATE FUNCTION identity.notify_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('identity', 'session/' || OLD.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER sessions_ended AFTER UPDATE OF ended ON identity.sessions
    FOR EACH ROW WHEN (NEW.ended IS NOT NULL) EXECUTE FUNCTION identity.notify_session();
CREATE TRIGGER sessions_gone AFTER DELETE ON identity.sessions
    FOR EACH ROW WHEN (OLD.ended IS NULL) EXECUTE FUNCTION identity.notify_session();

CREATE FUNCTION identity.notify_user() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('identity', 'user/' || OLD.uid::text);
    RETURN NULL;
END $$;
CREATE TRIGGER users_changed AFTER UPDATE OF state, platform_role ON identity.users
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.platform_role IS DISTINCT FROM NEW.platform_role)
    EXECUTE FUNCTION identity.notify_user();
CREATE TRIGGER users_gone AFTER DELETE ON identity.users
    FOR EACH ROW EXECUTE FUNCTION identity.notify_user();
