-- The engine reads time through this, so that a test can make the clock jump.
create function jobs.clock() returns timestamptz language sql stable as 'select now()';

alter table jobs.jobs
    add column priority         integer not null default 0,
    add column waits            text not null default '' check (waits in ('', 'TIME', 'KEY', 'KIND')),
    add column concurrency_key  text,
    add column pending_key      text,
    add column owner            text not null default '',
    add column reason           text not null default '',
    add column step             text not null default '',
    add column log              text[] not null default '{}',
    add column replay_of        uuid,
    add column keep_until       timestamptz,
    add column result_until     timestamptz,
    add column ready_time       timestamptz not null default now(),
    add column tenant           text not null generated always as
        (case when target like 'tenants/%' then split_part(target, '/', 2) else '' end) stored;
comment on column jobs.jobs.waits is 'why a queued job is not looked at: its time, its key, or no worker knows its kind; empty when it may go';
comment on column jobs.jobs.concurrency_key is 'no two jobs with one key run at the same time';
comment on column jobs.jobs.pending_key is 'no two jobs with one key wait or run at the same time';
comment on column jobs.jobs.owner is 'users/…: whose rights are checked at every claim; empty for the platform''s own work';

update jobs.jobs set owner = creator where creator like 'users/%';
update jobs.jobs set waits = 'TIME' where state = 'QUEUED' and run_time > now();
update jobs.jobs set keep_until = coalesce(end_time, now()) + interval '30 days' where state not in ('QUEUED', 'RUNNING');

drop index jobs.jobs_waiting;
create index jobs_ready on jobs.jobs (queue, tenant, priority desc, id) where state = 'QUEUED' and waits = '' and dispatch_time is null;
create index jobs_delayed on jobs.jobs (run_time) where state = 'QUEUED' and waits = 'TIME';
create index jobs_by_key on jobs.jobs (concurrency_key, priority desc, id) where state = 'QUEUED' and waits = 'KEY';
create index jobs_unknown on jobs.jobs (kind) where state = 'QUEUED' and waits = 'KIND';
create index jobs_dispatched on jobs.jobs (queue, tenant) where state = 'QUEUED' and dispatch_time is not null;
create index jobs_running on jobs.jobs (queue, tenant) where state = 'RUNNING';
create index jobs_kept on jobs.jobs (keep_until) where keep_until is not null;
create index jobs_results on jobs.jobs (result_until) where result_until is not null;
create index jobs_by_kind on jobs.jobs (kind, target) where state in ('QUEUED', 'RUNNING');
create unique index jobs_one_per_key on jobs.jobs (concurrency_key) where state = 'RUNNING' and concurrency_key is not null;
create unique index jobs_one_pending on jobs.jobs (pending_key) where state in ('QUEUED', 'RUNNING') and pending_key is not null;
create index jobs_dead on jobs.jobs (queue) where state = 'DEAD';
alter table jobs.jobs set (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

create table jobs.steps (
    job         uuid not null references jobs.jobs (id) on delete cascade,
    position    integer not null,
    name        text not null,
    state       text not null default 'QUEUED' check (state in ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED')),
    attempts    integer not null default 0,
    result      jsonb,
    error       text not null default '',
    start_time  timestamptz,
    end_time    timestamptz,
    primary key (job, name)
);

create table jobs.queues (
    name        text primary key,
    paused      boolean not null default false,
    pauser      text not null default '',
    pause_time  timestamptz
);
insert into jobs.queues (name) values ('default');

alter table jobs.schedules
    alter column interval_seconds drop not null,
    add column cron            text not null default '',
    add column time_zone       text not null default 'UTC',
    add column jitter_seconds  integer not null default 0,
    add column missed_runs     text not null default 'ONCE' check (missed_runs in ('SKIP', 'ONCE', 'ALL')),
    add column disabled        boolean not null default false,
    add column target          text not null default '',
    add column payload         jsonb not null default '{}',
    add column owner           text not null default '',
    add column built_in        boolean not null default false,
    add column version         bigint not null default 1,
    add column due_time        timestamptz;
update jobs.schedules set built_in = true, due_time = next_time;
alter table jobs.schedules add check ((interval_seconds is null) <> (cron = ''));
create index schedules_next on jobs.schedules (next_time) where not disabled;

create table jobs.firings (
    schedule    text not null,
    due_time    timestamptz not null,
    start_time  timestamptz not null default now(),
    outcome     text not null check (outcome in ('STARTED', 'SKIPPED', 'MANUAL', 'FAILED')),
    jobs        integer not null default 0,
    message     text not null default '',
    primary key (schedule, due_time)
);
comment on table jobs.firings is 'one row for each time that a schedule was due: what makes a firing exactly one';
create index jobs_sent_by_key on jobs.jobs (concurrency_key)
    where state = 'QUEUED' and dispatch_time is not null and concurrency_key is not null;
