"""The outbox: events that are rows of the transaction whose story they tell. `libs.bus.relay` publishes them."""

from __future__ import annotations

import sys
import uuid

from google.protobuf.message import Message

from libs import clock
from libs.log import trace
from libs.pg.tx import Tx

CHANNEL = "outbox"
MAX_BYTES = 512 * 1024  # NATS takes 1 MiB, headers included


def create_outbox(schema: str) -> str:
    """SQL that makes the outbox of a schema, for a migration: `python -m libs.pg.outbox <schema> > NNNN_outbox.sql`."""
    return f"""\
-- Events to publish, written in the transaction of the change; libs/bus/relay.py takes them from here.
create table {schema}.outbox (
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
create index outbox_unpublished on {schema}.outbox (lane, seq) where published is null;
create index outbox_published on {schema}.outbox (published) where published is not null;
create function {schema}.outbox_notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('{CHANNEL}', '{schema}');
    return null;
end $$;
create trigger outbox_notify after insert on {schema}.outbox
    for each statement execute function {schema}.outbox_notify();
"""


async def publish(tx: Tx, schema: str, subject: str, message: Message) -> uuid.UUID:
    """Publishes a message when the transaction commits; its id, which consumers can tell repeats by.

    Args:
        tx: the transaction of the change.
        schema: whose outbox.
        subject: NATS subject, made by `libs.bus.subjects`.
        message: at most 512 KiB.
    """
    payload = message.SerializeToString()
    if len(payload) > MAX_BYTES:
        raise ValueError(f"{message.DESCRIPTOR.full_name} of {len(payload)} bytes is over {MAX_BYTES}: publish a reference")
    event = clock.new_id()
    await tx.execute(
        f"insert into {schema}.outbox (id, subject, type, payload, traceparent) values ($1, $2, $3, $4, $5)",
        event, subject, message.DESCRIPTOR.full_name, payload, trace.traceparent(),
    )  # fmt: skip
    return event


if __name__ == "__main__":
    sys.stdout.write(create_outbox(sys.argv[1]))
