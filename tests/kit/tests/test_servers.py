"""The kit's servers really serve."""

from __future__ import annotations

import ssl

import asyncpg
import nats
import nats.errors
import pytest

from tests.kit.data import DatabaseServer, FreshDatabase
from tests.kit.nats import NatsServer


async def test_a_database_is_fresh(database: FreshDatabase, postgres: DatabaseServer) -> None:
    """A module's database is empty, is not the server's own, and takes writes."""
    connection = await asyncpg.connect(database.dsn)
    try:
        assert await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'") == 0
        assert database.dsn != postgres.dsn
        await connection.execute("create table t (i int)")
        assert await connection.execute("insert into t values (1)") == "INSERT 0 1"
    finally:
        await connection.close()


async def test_postgres_wants_its_password(database: FreshDatabase) -> None:
    """A wrong password is refused, so the right one is what lets the others in."""
    before, _, after = database.dsn.partition("@")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(before[:-1] + "@" + after)


async def test_nats_stores_a_message(nats_server: NatsServer) -> None:
    """A client with a hub service's certificate and key publishes into a stream; one without either is not let in."""
    certificate, key, authority = nats_server.tls("gateway")
    context = ssl.create_default_context(cafile=authority)
    with pytest.raises((OSError, nats.errors.Error)):
        await nats.connect(nats_server.url, tls=context, max_reconnect_attempts=0, allow_reconnect=False, connect_timeout=2)
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(certificate, key)
    with pytest.raises((OSError, TimeoutError, nats.errors.Error)):  # the certificate alone is not enough
        await nats.connect(nats_server.url, tls=context, max_reconnect_attempts=0, allow_reconnect=False, connect_timeout=2)
    client = await nats.connect(nats_server.url, tls=context, nkeys_seed=str(nats_server.seed_file("gateway")))
    try:
        stream = client.jetstream()
        await stream.add_stream(name="KIT", subjects=["kit.>"])
        assert (await stream.publish("kit.a", b"1")).seq == 1
        await stream.delete_stream("KIT")
    finally:
        await client.close()
