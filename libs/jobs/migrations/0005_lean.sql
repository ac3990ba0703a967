-- Each index that a row is in costs at every move of a job: what few rows need is partial now, what nobody asks is gone.
alter table jobs.jobs add column worker text not null default '';
comment on column jobs.jobs.worker is 'who claimed it last';

alter table jobs.jobs drop constraint jobs_unique_key_key;
create unique index jobs_one_per_order on jobs.jobs (unique_key) where unique_key is not null;
-- Few jobs run at a time, so the reaper finds them by jobs_running; and a heartbeat touches no index any more.
drop index jobs.jobs_leased;
drop index jobs.jobs_by_kind;
create index jobs_of_schedules on jobs.jobs (creator, target) where state in ('QUEUED', 'RUNNING') and creator like 'schedules/%';

-- One row per attempt, written at its end. What a foreign key did is done once per statement.
alter table jobs.claims drop constraint claims_job_fkey;
create function jobs.forget_claims() returns trigger language plpgsql as $$
begin
    delete from jobs.claims c using gone g where c.job = g.id;
    return null;
end $$;
create trigger forget_claims after delete on jobs.jobs referencing old table as gone
    for each statement execute function jobs.forget_claims();
comment on table jobs.claims is 'ended attempts: one row for each, whoever ended it';
comment on column jobs.claims.time is 'when the attempt ended';
comment on column jobs.claims.outcome is 'state of the job after it, or WORKER_LOST; older rows may have none';
