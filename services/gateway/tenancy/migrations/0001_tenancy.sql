-- Tenants, projects, environments, members and quotas. Names are the keys that people and resource names use; a name is
-- free again only when its row is gone, which happens when every cluster has confirmed (and never for a burnt name).

CREATE TABLE tenancy.tenants (
    uid          uuid PRIMARY KEY,
    name         text NOT NULL UNIQUE,
    display_name text NOT NULL DEFAULT '',
    description  text NOT NULL DEFAULT '',
    state        text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'SUSPENDED', 'DELETING')),
    isolated     boolean NOT NULL DEFAULT false,
    version      bigint NOT NULL DEFAULT 1,
    created      timestamptz NOT NULL DEFAULT now(),
    updated      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tenancy.projects (
    uid          uuid PRIMARY KEY,
    tenant       text NOT NULL REFERENCES tenancy.tenants (name),
    name         text NOT NULL,
    display_name text NOT NULL DEFAULT '',
    description  text NOT NULL DEFAULT '',
    state        text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'DELETING')),
    isolated     boolean NOT NULL DEFAULT false,
    version      bigint NOT NULL DEFAULT 1,
    created      timestamptz NOT NULL DEFAULT now(),
    updated      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, name)
);

-- `state` is only what was asked for here; what the cluster says is in fleet.statuses.
CREATE TABLE tenancy.environments (
    uid             uuid PRIMARY KEY,
    tenant          text NOT NULL,
    project         text NOT NULL,
    name            text NOT NULL,
    cluster_uid     uuid NOT NULL,
    namespace       text NOT NULL,
    adopt_namespace boolean NOT NULL DEFAULT false,
    display_name    text NOT NULL DEFAULT '',
    description     text NOT NULL DEFAULT '',
    quota           jsonb NOT NULL DEFAULT '{}',
    limit_range     jsonb NOT NULL,
    delete_policy   text NOT NULL DEFAULT 'DELETE_NAMESPACE' CHECK (delete_policy IN ('DELETE_NAMESPACE', 'DELETE_LABELS')),
    pod_security    text NOT NULL DEFAULT 'BASELINE' CHECK (pod_security IN ('BASELINE', 'RESTRICTED', 'PRIVILEGED')),
    isolated        boolean NOT NULL DEFAULT false,
    state           text NOT NULL DEFAULT 'ACTIVE' CHECK (state IN ('ACTIVE', 'DELETING')),
    version         bigint NOT NULL DEFAULT 1,
    created         timestamptz NOT NULL DEFAULT now(),
    updated         timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, project, name),
    UNIQUE (cluster_uid, namespace),
    FOREIGN KEY (tenant, project) REFERENCES tenancy.projects (tenant, name)
);
CREATE INDEX environments_by_cluster ON tenancy.environments (cluster_uid, tenant);

-- One role per user and level. `project` and `environment` are empty above their level.
CREATE TABLE tenancy.members (
    user_uid    uuid NOT NULL,
    level       text NOT NULL CHECK (level IN ('tenant', 'project', 'environment')),
    tenant      text NOT NULL REFERENCES tenancy.tenants (name),
    project     text NOT NULL DEFAULT '',
    environment text NOT NULL DEFAULT '',
    role        text NOT NULL,
    created     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, project, environment, user_uid),
    CHECK ((level = 'tenant') = (project = '')),
    CHECK ((level = 'environment') = (environment <> '')),
    CHECK (CASE level
        WHEN 'tenant' THEN role IN ('admin', 'member')
        WHEN 'project' THEN role IN ('admin', 'ops', 'dev', 'test')
        ELSE role IN ('operator', 'reader') END)
);
CREATE INDEX members_by_user ON tenancy.members (user_uid);

-- What a tenant may use of a cluster, and with it its leave to be there. The row's lock guards the sum over environments.
CREATE TABLE tenancy.quotas (
    tenant      text NOT NULL REFERENCES tenancy.tenants (name),
    cluster_uid uuid NOT NULL,
    hard        jsonb NOT NULL,
    version     bigint NOT NULL DEFAULT 1,
    created     timestamptz NOT NULL DEFAULT now(),
    updated     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, cluster_uid)
);
CREATE INDEX quotas_by_cluster ON tenancy.quotas (cluster_uid);

-- Names that a forced removal left behind in a cluster; never given out again. A resource name, or `namespaces/{cluster uid}/{namespace}`.
CREATE TABLE tenancy.burnt_names (
    name  text PRIMARY KEY,
    burnt timestamptz NOT NULL DEFAULT now()
);

-- Whoever decides rights listens on `grants`: a user's uid, or `*` for everyone.
CREATE FUNCTION tenancy.notify_member() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('grants', coalesce(NEW.user_uid, OLD.user_uid)::text);
    RETURN NULL;
END $$;
CREATE TRIGGER members_grants AFTER INSERT OR UPDATE OR DELETE ON tenancy.members
    FOR EACH ROW EXECUTE FUNCTION tenancy.notify_member();

CREATE FUNCTION tenancy.notify_everyone() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('grants', '*');
    RETURN NULL;
END $$;
CREATE TRIGGER tenants_grants AFTER UPDATE OF state ON tenancy.tenants
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION tenancy.notify_everyone();
CREATE TRIGGER tenants_gone_grants AFTER DELETE ON tenancy.tenants
    FOR EACH ROW EXECUTE FUNCTION tenancy.notify_everyone();

-- An environment made or gone changes which groups its tenant's and project's members have on the cluster.
CREATE FUNCTION tenancy.notify_environment() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    tenant_ text := coalesce(NEW.tenant, OLD.tenant);
    project_ text := coalesce(NEW.project, OLD.project);
BEGIN
    PERFORM pg_notify('grants', m.user_uid::text) FROM tenancy.members m
        WHERE m.tenant = tenant_ AND (m.project = project_ OR (m.level = 'tenant' AND m.role = 'admin'));
    RETURN NULL;
END $$;
CREATE TRIGGER environments_grants AFTER INSERT OR DELETE ON tenancy.environments
    FOR EACH ROW EXECUTE FUNCTION tenancy.notify_environment();

-- A quota is a tenant's leave to be on a cluster, so its members see the cluster come and go.
CREATE FUNCTION tenancy.notify_quota() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('grants', m.user_uid::text) FROM tenancy.members m
        WHERE m.tenant = coalesce(NEW.tenant, OLD.tenant) AND m.level = 'tenant';
    RETURN NULL;
END $$;
CREATE TRIGGER quotas_grants AFTER INSERT OR DELETE ON tenancy.quotas
    FOR EACH ROW EXECUTE FUNCTION tenancy.notify_quota();
