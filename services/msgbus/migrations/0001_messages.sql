-- Messages to users and to whom they belong with; read by audience, newest first.
create table messages.notices (
    id uuid primary key,                        -- outbox id of the event that asked for it: stored once
    severity text not null,
    category text not null,
    title text not null,
    body text not null,
    resource text not null,
    created timestamptz not null
);
create index notices_created on messages.notices (created);
create table messages.addressed (
    audience text not null,
    created timestamptz not null,
    notice uuid not null references messages.notices on delete cascade,
    primary key (audience, notice)
);
create index addressed_audience on messages.addressed (audience, created desc, notice desc);
create index addressed_notice on messages.addressed (notice);
-- What one user did with a message that others may have too.
create table messages.states (
    username text not null,
    notice uuid not null references messages.notices on delete cascade,
    read boolean not null default false,
    hidden boolean not null default false,
    primary key (username, notice)
);
create index states_notice on messages.states (notice);
create table messages.announcements (
    id uuid primary key,
    severity text not null,
    title text not null,
    body text not null,
    audiences text[] not null,
    starts timestamptz not null,
    ends timestamptz,
    created timestamptz not null,
    creator text not null,
    told boolean not null default false         -- delivered live when its time began
);
create index announcements_untold on messages.announcements (starts) where not told;
create index announcements_created on messages.announcements (created desc, id desc);
