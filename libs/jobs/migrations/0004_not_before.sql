alter table jobs.jobs add column not_before timestamptz;
comment on column jobs.jobs.not_before is 'time that was asked for; any other wait is the engine''s own and cannot be long, whatever the clock did meanwhile';
update jobs.jobs set not_before = run_time where state = 'QUEUED' and waits = 'TIME' and attempts = 0;
