"""Joining and renewing: tokens, keys, certificates."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from cryptography import x509

from kubegems.fleet.v1 import cluster_service_pb2, enrolment_service_pb2, join_token_pb2, join_token_service_pb2
from libs.clock import SystemClock
from libs.crypt import ca
from services.gateway.fleet import certificates_store, domain, join_tokens_store, restored
from services.gateway.fleet.certificates_store import Certificates
from services.gateway.fleet.enrolment_api import serial
from services.gateway.fleet.removal import CHANNEL
from services.gateway.tenancy.tests.house import House, refused
from tests.kit.data import FreshDatabase


async def _token(house: House, cluster: str, **more: Any) -> Any:
    request = join_token_service_pb2.CreateJoinTokenRequest(parent=f"clusters/{cluster}", **more)
    return await house.call("JoinTokenService/CreateJoinToken", request)


async def _enrol(house: House, token: str, key: str) -> Any:
    request = enrolment_service_pb2.EnrolRequest(token=token, certificate_request=ca.request(key, "agent"), agent_version="1.2")
    return await house.call("EnrolmentService/Enrol", request)


async def _renew(house: House, certificate: str, old_key: str, new_key: str) -> Any:
    request = ca.request(new_key, "agent")
    renewal = enrolment_service_pb2.RenewRequest(
        certificate=certificate, certificate_request=request, proof=ca.prove(old_key, request.encode())
    )
    return await house.call("EnrolmentService/Renew", renewal)


def _parsed(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


async def test_a_token_gives_a_certificate_of_its_cluster(house: House) -> None:
    """SAN with the cluster's uid, 24 h, backdated 15 min, signed by the hub's CA; the hub is told where to go on."""
    cluster, uid = await house.cluster(online=False)
    made = await _token(house, cluster)
    assert made.ca_hash == house.ca.fingerprint
    assert "environments.gems.kubegems.io" in made.manifest
    assert made.token in made.command
    reply = await _enrol(house, made.token, ca.new_key())
    found = _parsed(reply.certificate)
    found.verify_directly_issued_by(_parsed(house.ca.certificate))
    assert ca.spiffe_id(found) == f"spiffe://kubegems/cluster/{uid}"
    assert found.not_valid_after_utc - found.not_valid_before_utc == timedelta(hours=24, minutes=15)
    assert (reply.cluster, reply.cluster_uid, reply.tunnel_address) == (cluster, uid, "hub:8447")
    assert await Certificates(house.database).allowed(uid, serial(found))
    assert not await Certificates(house.database).allowed(uid, "abc")


async def test_the_command_runs_an_agent_with_settings_that_it_knows(house: House, tmp_path: Path) -> None:
    """A shell runs it as it stands: the token lands in a 0600 file, and each variable is a setting of the agent."""
    cluster, _ = await house.cluster(online=False)
    made = await _token(house, cluster)
    shim = tmp_path / "bin/python"
    shim.parent.mkdir()
    shim.write_text('#!/bin/sh\necho "$@"\nenv | grep ^KUBEGEMS_AGENT_\n')
    shim.chmod(0o755)
    environment = {"PATH": f"{shim.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    process = await asyncio.create_subprocess_exec("/bin/sh", "-c", made.command, env=environment, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    first, *variables = output.decode().splitlines()
    assert first == "-m services.agent"
    settings = dict(line.removeprefix("KUBEGEMS_AGENT_").split("=", 1) for line in variables)
    known = (Path(__file__).parents[3] / "agent/config.py").read_text()
    assert all(f"    {name.lower()}: " in known for name in settings), settings
    token = Path(settings["JOIN_TOKEN_FILE"])
    assert (token.read_text(), token.stat().st_mode & 0o777) == (made.token, 0o600)
    assert settings["CA_HASH"] == house.ca.fingerprint


async def test_the_secret_is_kept_as_a_hash_only(house: House) -> None:
    """Neither table, audit nor outbox holds the secret that was shown once."""
    cluster, _ = await house.cluster(online=False)
    made = await _token(house, cluster)
    secret = made.token.split(".")[1]
    for table in ("fleet.join_tokens", "audit.events", "fleet.outbox"):
        rows = await house.sql(f"SELECT t::text AS row FROM {table} t")
        assert not any(secret in row["row"] for row in rows), table
    assert await house.sql("SELECT 1 FROM fleet.join_tokens WHERE id = $1", made.token.split(".")[0])


async def test_a_token_is_good_again_for_the_same_key_only(house: House) -> None:
    """A join that was cut off is taken up; another key is refused even with the right secret."""
    cluster, uid = await house.cluster(online=False)
    token, key = (await _token(house, cluster)).token, ca.new_key()
    await _enrol(house, token, key)
    again = await _enrol(house, token, key)
    assert again.cluster_uid == uid
    with refused("JOIN_REFUSED", "another key"):
        await _enrol(house, token, ca.new_key())
    listed = await house.call("JoinTokenService/ListJoinTokens", join_token_service_pb2.ListJoinTokensRequest(parent=f"clusters/{cluster}"))
    assert [t.state for t in listed.join_tokens] == [join_token_pb2.JoinToken.USED]


async def _good(house: House, uid: str) -> int:
    """How many certificates of a cluster are not revoked."""
    return len(await house.sql("SELECT 1 FROM fleet.certificates WHERE cluster_uid = $1::text::uuid AND revoked IS NULL", uid))


async def test_of_agents_that_use_a_token_at_once_one_joins(house: House) -> None:
    """The others are refused, and one certificate is good."""
    cluster, uid = await house.cluster(online=False)
    token = (await _token(house, cluster)).token
    tries = await asyncio.gather(*(_enrol(house, token, ca.new_key()) for _ in range(8)), return_exceptions=True)
    refusals = [found for found in tries if isinstance(found, Exception)]
    assert (len(refusals), await _good(house, uid)) == (7, 1)
    assert all(isinstance(found, domain.JoinRefused) for found in refusals), refusals


async def test_of_tokens_that_are_used_at_once_the_last_counts(house: House) -> None:
    """Each revokes what the other gave, so one certificate is good."""
    cluster, uid = await house.cluster(online=False)
    for _ in range(5):
        tokens = [(await _token(house, cluster)).token for _ in range(4)]
        await asyncio.gather(*(_enrol(house, token, ca.new_key()) for token in tokens))
        assert await _good(house, uid) == 1


async def test_a_token_that_another_took_the_place_of_is_no_good_any_more(house: House) -> None:
    """Nor for its own key: whoever joined with a stolen one is out when the owner joins, and stays out."""
    cluster, uid = await house.cluster(online=False)
    stolen, thief = (await _token(house, cluster)).token, ca.new_key()
    await _enrol(house, stolen, thief)
    unused = (await _token(house, cluster)).token
    owner = (await _enrol(house, (await _token(house, cluster)).token, ca.new_key())).certificate
    with refused("JOIN_REFUSED", "revoked"):
        await _enrol(house, stolen, thief)
    assert await Certificates(house.database).allowed(uid, serial(_parsed(owner)))
    assert await _enrol(house, unused, ca.new_key())


async def test_a_join_that_is_taken_up_leaves_the_first_certificate_good(house: House) -> None:
    """It is the same key; whichever answer arrives, its certificate works."""
    cluster, uid = await house.cluster(online=False)
    token, key = (await _token(house, cluster)).token, ca.new_key()
    found = await asyncio.gather(_enrol(house, token, key), _enrol(house, token, key))
    for reply in found:
        assert await Certificates(house.database).allowed(uid, serial(_parsed(reply.certificate)))


async def test_a_renewal_during_a_revocation_is_refused(house: House) -> None:
    """It waits for what is under way on its cluster, and then finds its certificate revoked."""
    cluster, uid = await house.cluster(online=False)
    key = ca.new_key()
    certificate = (await _enrol(house, (await _token(house, cluster)).token, key)).certificate
    joining = await _token(house, cluster)
    async with house.database.transaction() as tx:
        assert await join_tokens_store.lock(tx, joining.join_token.name.rsplit("/", 1)[1])
        await certificates_store.revoke(tx, UUID(uid), house.clock.now())
        renewal = asyncio.create_task(_renew(house, certificate, key, ca.new_key()))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while not renewal.done() and not await house.sql(waiting):
            await asyncio.sleep(0.01)
    with refused("RENEWAL_REFUSED", "revoked"):
        await renewal
    assert await _good(house, uid) == 0


async def test_wrong_expired_and_revoked_tokens_are_refused(house: House) -> None:
    """Unknown and wrong ones in the same words, so that ids cannot be probed; no certificate is kept."""
    cluster, uid = await house.cluster(online=False)
    token = (await _token(house, cluster, ttl_seconds=60)).token
    with refused("JOIN_REFUSED") as unknown:
        await _enrol(house, "0123456789abcdef.secret", ca.new_key())
    with refused("JOIN_REFUSED") as wrong:
        await _enrol(house, token.split(".")[0] + ".secret", ca.new_key())
    assert str(unknown.fault) == str(wrong.fault)
    with refused("JOIN_REFUSED"):
        await _enrol(house, "nodot", ca.new_key())
    with refused("INVALID_ARGUMENT", "certificate_request"):
        await house.call("EnrolmentService/Enrol", enrolment_service_pb2.EnrolRequest(token=token, certificate_request="no request"))
    house.clock.advance(timedelta(seconds=61))
    with refused("JOIN_REFUSED", "expired"):
        await _enrol(house, token, ca.new_key())
    second = await _token(house, cluster)
    await house.call("JoinTokenService/DeleteJoinToken", join_token_service_pb2.DeleteJoinTokenRequest(name=second.join_token.name))
    with refused("JOIN_REFUSED", "revoked"):
        await _enrol(house, second.token, ca.new_key())
    assert not await Certificates(house.database).allowed(uid)
    with refused("NOT_FOUND"):
        await house.call("JoinTokenService/DeleteJoinToken", join_token_service_pb2.DeleteJoinTokenRequest(name="clusters/x/joinTokens/y"))


async def test_an_expired_certificate_renews_for_ninety_days(house: House) -> None:
    """Also with a fresh key; a day later no more."""
    cluster, uid = await house.cluster(online=False)
    key, fresh = ca.new_key(), ca.new_key()
    first = (await _enrol(house, (await _token(house, cluster)).token, key)).certificate
    house.clock.advance(timedelta(days=89))
    second = (await _renew(house, first, key, fresh)).certificate
    assert ca.spiffe_id(_parsed(second)).endswith(uid)
    assert _parsed(second).not_valid_after_utc > house.clock.now()
    house.clock.advance(timedelta(days=92))
    with refused("RENEWAL_REFUSED", "90 days"):
        await _renew(house, second, fresh, ca.new_key())


async def test_renewal_needs_the_key_and_a_certificate_of_ours(house: House) -> None:
    """A proof by another key, another CA, another uid, a hub service's or an unknown certificate: all refused."""
    cluster, uid = await house.cluster(online=False)
    _, other_uid = await house.cluster(online=False)
    key = ca.new_key()
    certificate = (await _enrol(house, (await _token(house, cluster)).token, key)).certificate
    with refused("RENEWAL_REFUSED", "proof"):
        await _renew(house, certificate, ca.new_key(), key)
    foreign, _ = ca.Authority.create("other", now=house.clock.now())
    now, day = house.clock.now(), timedelta(days=1)
    for authority, uri in (
        (foreign, f"spiffe://kubegems/cluster/{uid}"),
        (house.ca, f"spiffe://kubegems/cluster/{other_uid}"),
        (house.ca, "spiffe://kubegems/hub/gateway"),
    ):
        pem = authority.sign_request(ca.request(key, "x"), "x", now=now, lifetime=day, uri=uri)
        with refused("RENEWAL_REFUSED"):
            await _renew(house, pem, key, key)
    moved = house.ca.sign_request(ca.request(key, "x"), "x", now=now, lifetime=day, uri=f"spiffe://kubegems/cluster/{other_uid}")
    await house.sql(
        "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires) VALUES ($1, $2::text::uuid, $3, $3) RETURNING 1",
        serial(_parsed(moved)), uid, now,
    )  # fmt: skip
    with refused("RENEWAL_REFUSED", "not that of a cluster"):
        await _renew(house, moved, key, key)
    with refused("RENEWAL_REFUSED"):
        await _renew(house, "no certificate", key, key)


async def test_a_restored_database_takes_what_was_issued_after_its_backup(house: House) -> None:
    """Unknown certificates of ours renew once the database knows that it was restored; younger ones, removed clusters', others' do not."""
    _, uid = await house.cluster(online=False)
    key, day = ca.new_key(), timedelta(days=1)

    def forgotten(of: str, authority: ca.Authority = house.ca) -> str:
        uri = f"spiffe://kubegems/cluster/{of}"
        return authority.sign_request(ca.request(key, "x"), "x", now=house.clock.now(), lifetime=day, uri=uri)

    lost = forgotten(uid)
    with refused("RENEWAL_REFUSED"):
        await _renew(house, lost, key, key)
    house.clock.advance(timedelta(minutes=1))
    await house.sql("UPDATE fleet.hub SET restored = $1 RETURNING 1", house.clock.now())
    try:
        foreign, _ = ca.Authority.create("other", now=house.clock.now())
        for bad in (forgotten(str(uuid4())), forgotten("x"), forgotten(uid, foreign)):
            with refused("RENEWAL_REFUSED"):
                await _renew(house, bad, key, key)
        fresh = (await _renew(house, lost, key, ca.new_key())).certificate
        assert await Certificates(house.database).allowed(uid, serial(_parsed(fresh)))
        house.clock.advance(timedelta(minutes=1))
        with refused("RENEWAL_REFUSED"):
            await _renew(house, forgotten(uid), key, key)
    finally:
        await house.sql("UPDATE fleet.hub SET restored = NULL RETURNING 1")


async def test_joining_anew_revokes_what_a_restored_database_has_forgotten(house: House) -> None:
    """A certificate whose row was lost with the restore cannot be marked as revoked, and is out all the same."""
    cluster, uid = await house.cluster(online=False)
    key, uri = ca.new_key(), f"spiffe://kubegems/cluster/{uid}"
    stolen = house.ca.sign_request(ca.request(key, "x"), "x", now=house.clock.now(), lifetime=timedelta(days=1), uri=uri)
    house.clock.advance(timedelta(minutes=1))
    await house.sql("UPDATE fleet.hub SET restored = $1 RETURNING 1", house.clock.now())
    try:
        await _enrol(house, (await _token(house, cluster)).token, ca.new_key())
        with refused("RENEWAL_REFUSED"):
            await _renew(house, stolen, key, ca.new_key())
    finally:
        await house.sql("UPDATE fleet.hub SET restored = NULL RETURNING 1")


async def test_what_is_revoked_with_a_restore_stays_out(house: House, database: FreshDatabase) -> None:
    """Of the named cluster neither known nor forgotten certificates are good; sessions and join tokens have ended; the rest is listed."""
    house.clock.advance(SystemClock().now() - timedelta(minutes=1) - house.clock.now())  # the command has a clock of its own
    (kept, kept_uid), (robbed, robbed_uid) = await house.cluster(online=False), await house.cluster(online=False)
    keys = {name: ca.new_key() for name in (kept, robbed)}
    known = {name: (await _enrol(house, (await _token(house, name)).token, keys[name])).certificate for name in (kept, robbed)}
    house.clock.advance(timedelta(seconds=10))
    forgotten = {
        name: house.ca.sign_request(
            ca.request(keys[name], "x"), "x", now=house.clock.now(), lifetime=timedelta(days=1), uri=f"spiffe://kubegems/cluster/{uid}"
        )
        for name, uid in ((kept, kept_uid), (robbed, robbed_uid))
    }  # fmt: skip
    unused = (await _token(house, kept)).token
    await house.user("ann")
    await house.sql(
        "INSERT INTO identity.sessions (id, user_uid, created, expires, refreshed)"
        " SELECT $1, uid, now(), now() + interval '1 day', now() FROM identity.users WHERE username = 'ann'", uuid4(),
    )  # fmt: skip
    await house.sql(
        "INSERT INTO identity.api_keys (id, user_uid, key, hash, created, expires)"
        " SELECT $1, uid, 'ci', '', now(), now() + interval '1 day' FROM identity.users WHERE username = 'ann'", uuid4(),
    )  # fmt: skip
    before = await house.everything()
    with pytest.raises(ValueError, match="nosuch in this backup; nothing was changed"):
        await restored.mark(database.dsn, [robbed, "nosuch"])
    assert await house.everything() == before
    found = await restored.mark(database.dsn, [robbed])
    try:
        assert (found.sessions, found.revoked, found.api_keys) == (1, [robbed], ["users/ann/apiKeys/ci"])
        assert (kept in found.clusters, robbed in found.clusters) == (True, False)
        with refused("JOIN_REFUSED", "revoked"):
            await _enrol(house, unused, ca.new_key())
        for name in (kept, robbed):
            for certificate in (known[name], forgotten[name]):
                if name == kept:
                    assert await _renew(house, certificate, keys[name], ca.new_key())
                else:
                    with refused("RENEWAL_REFUSED"):
                        await _renew(house, certificate, keys[name], ca.new_key())
        everyone = await restored.mark(database.dsn, revoke_all=True)
        assert {kept, robbed} <= set(everyone.revoked)
        assert everyone.clusters == []
        with refused("RENEWAL_REFUSED"):
            await _renew(house, known[kept], keys[kept], ca.new_key())
        assert await _enrol(house, (await _token(house, robbed)).token, ca.new_key())
    finally:
        await house.sql("UPDATE fleet.hub SET restored = NULL RETURNING 1")


async def test_what_ended_long_ago_is_forgotten(house: House) -> None:
    """And of many renewals the newest are kept, so that no agent fills the database; what is forgotten is refused."""
    (cluster, uid), (_, other) = await house.cluster(online=False), await house.cluster(online=False)
    key = ca.new_key()
    old = (await _enrol(house, (await _token(house, cluster)).token, key)).certificate
    await house.sql(
        "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires) SELECT $2 || n::text, $1::text::uuid,"
        " $3::timestamptz + n * interval '1 ms', $3::timestamptz + interval '2 days' FROM generate_series(1, 300) n RETURNING 1",
        uid, cluster, house.clock.now(),
    )  # fmt: skip
    await house.sql(
        "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires) VALUES ($2, $1::text::uuid, now(), now()) RETURNING 1",
        other, f"{other}1",
    )  # fmt: skip
    house.clock.advance(timedelta(seconds=10))
    fresh, fresh_key = (await _enrol(house, (await _token(house, cluster)).token, key)).certificate, key
    kept = await house.sql("SELECT serial FROM fleet.certificates WHERE cluster_uid = $1::text::uuid ORDER BY issued", uid)
    assert len(kept) == 101
    assert kept[-1]["serial"] == serial(_parsed(fresh))
    with refused("RENEWAL_REFUSED", "not that of a cluster"):
        await _renew(house, old, key, ca.new_key())
    assert await _renew(house, fresh, fresh_key, ca.new_key())
    house.clock.advance(timedelta(days=122))
    token = (await _token(house, cluster)).token
    await _enrol(house, token, ca.new_key())
    assert await _good(house, uid) == len(await house.sql("SELECT 1 FROM fleet.certificates WHERE cluster_uid = $1::text::uuid", uid)) == 1
    assert [row["id"] for row in await house.sql("SELECT id FROM fleet.join_tokens WHERE cluster_uid = $1::text::uuid", uid)] == [
        token.split(".")[0]
    ]
    assert await house.sql("SELECT 1 FROM fleet.certificates WHERE serial = $1", f"{other}1"), "another cluster's stay"


async def test_every_gateway_hears_of_a_revocation(house: House, eventually: Any) -> None:
    """When it is committed, whichever gateway made it."""
    cluster, _ = await house.cluster(online=False)
    heard: list[str] = []
    await house.database.listen(CHANNEL, heard.append)
    await eventually(lambda: heard == [""], within=5, what="listening")
    await _enrol(house, (await _token(house, cluster)).token, ca.new_key())
    await eventually(lambda: len(heard) == 2, within=5, what="told")


async def test_a_removed_clusters_certificates_are_refused(house: House) -> None:
    """No renewal, no link, and the link is cut after the commit; the name added again is another cluster."""
    cluster, uid = await house.cluster(online=False)
    key = ca.new_key()
    certificate = (await _enrol(house, (await _token(house, cluster)).token, key)).certificate
    await house.call("ClusterService/DeleteCluster", cluster_service_pb2.DeleteClusterRequest(name=f"clusters/{cluster}"))
    assert house.removed[-1] == uid
    assert not await Certificates(house.database).allowed(uid, serial(_parsed(certificate)))
    with refused("RENEWAL_REFUSED"):
        await _renew(house, certificate, key, key)
    again = await house.call("ClusterService/CreateCluster", cluster_service_pb2.CreateClusterRequest(cluster_id=cluster))
    assert again.uid != uid
