-- Events to publish, written in the transaction of the change; libs/bus/relay.py takes them from here.
create table messages.outbox (
    id uuid primary key,                        -- UUIDv7; the Nats-Msg-Id
    seq bigint generated always as identity,    -- order of writing
    subject text not null,
    lane text not null generated always as (split_part(subject, '.', 2)) stored,  -- a full stream blocks only its own
    type text not null,                         -- full name of the message
    payload bytea not null,
    traceparent text not null,
    created timestamptz not null default clock_timestamp(),
    published timestamptz
);
create index outbox_unpublished on messages.outbox (lane, seq) where published is null;
create index outbox_published on messages.outbox (published) where published is not null;
create function messages.outbox_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('outbox', 'messages');
    return null;
end $$;
create trigger outbox_notify after insert on messages.outbox
    for each statement execute function messages.outbox_notify();
