-- Gateways that run; one that has not shown itself for a while is gone, and what it held is offline.
create table fleet.gateways (
    id text primary key,
    seen timestamptz not null default clock_timestamp()
);
-- Each tunnel of the hub gets a number; of two tunnels of one cluster the greater one counts, whichever gateway has it.
create sequence fleet.tunnel_numbers;
alter table fleet.clusters
    add column tunnel bigint not null default 0,    -- number of the newest tunnel that was told of
    add column holder text not null default '';     -- the gateway that has or had it
