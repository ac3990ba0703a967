-- Records of calls; columns follow kubegems.audit.v1.AuditEvent.
create table audit.events (
    id uuid primary key,                    -- UUIDv7
    time timestamptz not null,              -- when the call came in
    actor text not null,
    actor_uid text not null,
    session text not null,
    method text not null,
    class text not null check (class in ('READ', 'WRITE', 'SENSITIVE')),
    resources text[] not null,
    tenant text not null,
    scope text not null,                    -- deepest tenant, project or environment that holds all its resources
    scopes text[] not null,                 -- `scope` and all above it: who may read the record
    outcome text not null check (outcome in ('PENDING', 'OK', 'DENIED', 'FAILED', 'UNKNOWN')),
    code text not null,
    reason text not null,
    address text not null,
    user_agent text not null,
    trace_id text not null,
    request_id text not null,
    took_millis integer not null,
    request jsonb not null,                 -- secrets left out
    process uuid not null,                  -- start of the process that wrote it
    sealed_seq bigint unique,               -- place in the hash chain, given by the sealer
    previous_hash bytea
);
create index events_time on audit.events (time desc, id desc);
create index events_actor on audit.events (actor, time desc, id desc);
create index events_scopes on audit.events using gin (scopes);
create index events_trace on audit.events (trace_id) where trace_id <> '';
create index events_request on audit.events (request_id) where request_id <> '';
create index events_pending on audit.events (process) where outcome = 'PENDING';

-- An ended record never changes, save for the sealer's two columns, and those once.
create function audit.events_guard() returns trigger language plpgsql as $$
begin
    if old.sealed_seq is not null then
        raise exception 'audit record % is sealed', old.id;
    end if;
    if old.outcome not in ('PENDING', 'UNKNOWN')
        and row(old.id, old.time, old.actor, old.method, old.class, old.resources, old.tenant, old.scope, old.scopes, old.outcome, old.code, old.reason, old.request)
            is distinct from
            row(new.id, new.time, new.actor, new.method, new.class, new.resources, new.tenant, new.scope, new.scopes, new.outcome, new.code, new.reason, new.request) then
        raise exception 'audit record % has ended', old.id;
    end if;
    return new;
end $$;
create trigger events_guard before update on audit.events for each row execute function audit.events_guard();

-- Starts of processes that write records: an intent of one that is no longer seen has no outcome.
create table audit.processes (
    epoch uuid primary key,
    name text not null,
    started timestamptz not null default now(),
    seen timestamptz not null default now()
);

-- Answers by request id, kept for 24 h.
create table audit.requests (
    caller text not null,
    method text not null,
    request_id text not null,
    body bytea not null,                    -- keyed hash of the request
    answer bytea,                           -- null while it runs, and for answers that hold secrets
    created timestamptz not null default now(),
    primary key (caller, method, request_id)
);
create index requests_created on audit.requests (created);
