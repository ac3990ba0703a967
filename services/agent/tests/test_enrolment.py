"""Joining and renewing: whom the agent trusts, what it keeps, when it tries again."""

from __future__ import annotations

import asyncio
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from libs import faults
from libs.clock import HeldClock
from libs.crypt import ca
from services.agent import renewal as renewals
from services.agent.enrolment import Enrolment
from services.agent.identity import IdentityFiles, fingerprint
from services.agent.pinning import PinMismatch, fetch_ca
from services.agent.renewal import Renewal
from services.agent.tests.conftest import CLUSTER_UID, EnrollingHub, serve


def enrolment(hub: EnrollingHub, folder: Path, pin: str = "") -> Enrolment:
    return Enrolment(hub.address, pin or hub.authority.fingerprint, IdentityFiles(folder), version="test")


async def test_joining_keeps_a_usable_identity(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """The certificate is of this cluster, for our key; files are the owner's alone."""
    identity = await enrolment(enrolling_hub, tmp_path / "state").join(token_file)
    certificate = x509.load_pem_x509_certificate(identity.certificate.encode())
    assert ca.spiffe_id(certificate) == f"spiffe://kubegems/cluster/{CLUSTER_UID}"
    assert ca.proves(identity.certificate, b"x", ca.prove(identity.key, b"x"))
    assert enrolling_hub.enrolled[0].token == "abc.secret"
    assert fingerprint(identity.ca_file.read_text()) == enrolling_hub.authority.fingerprint
    for file in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert IdentityFiles(tmp_path / "state").load() == identity


async def test_another_ca_gets_no_token(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """A hub whose chain lacks the pinned CA is refused before a token could be sent."""
    with pytest.raises(PinMismatch):
        await enrolment(enrolling_hub, tmp_path / "state", pin="0" * 64).join(token_file)
    assert enrolling_hub.enrolled == []


async def test_showing_the_pinned_ca_is_not_enough(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """Who shows the pinned CA with a certificate of another CA gets no token: that CA must have signed for the gateway."""
    forger, _ = ca.Authority.create("forger", now=datetime.now(UTC))
    fake = EnrollingHub(forger)
    server = await serve(fake, chain=enrolling_hub.authority.certificate)
    assert await fetch_ca(fake.address, enrolling_hub.authority.fingerprint)
    with pytest.raises(faults.Unavailable):
        await enrolment(fake, tmp_path / "state", pin=enrolling_hub.authority.fingerprint).join(token_file)
    assert fake.enrolled == []
    await server.stop(0)


async def test_another_member_of_the_hub_is_not_the_gateway(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """A certificate of the pinned CA for another name gets no token."""
    fake = EnrollingHub(enrolling_hub.authority)
    server = await serve(fake, dns="worker.hub.kubegems.internal")
    with pytest.raises(faults.Unavailable):
        await enrolment(fake, tmp_path / "state").join(token_file)
    assert fake.enrolled == []
    await server.stop(0)


async def test_a_join_that_was_cut_off_uses_the_same_key(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """The key is saved before the request: after a failure the next one carries the same key."""
    enrolling_hub.problems = [grpc.StatusCode.UNAVAILABLE]
    with pytest.raises(faults.Unavailable):
        await enrolment(enrolling_hub, tmp_path / "state").join(token_file)
    await enrolment(enrolling_hub, tmp_path / "state").join(token_file)
    first, second = (x509.load_pem_x509_csr(r.certificate_request.encode()).public_key() for r in enrolling_hub.enrolled)
    assert first == second


async def test_renewing_takes_a_fresh_key_on_proof(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """The new certificate has a new key, the old one's possession is proved, addresses stay."""
    files = enrolment(enrolling_hub, tmp_path / "state")
    old = await files.join(token_file)
    old_key = old.key
    new = await files.renew(old)
    assert new.key != old_key
    assert new.addresses == old.addresses
    assert len(enrolling_hub.renewed) == 1


def renewal(hub: EnrollingHub, folder: Path, clock: Any, token_file: Path | None = None, **options: Any) -> Renewal:
    files = IdentityFiles(folder)
    return Renewal(
        Enrolment(hub.address, hub.authority.fingerprint, files, version="test"),
        files, clock=clock, token_file=token_file, first_delay=0.01, **options,
    )  # fmt: skip


async def test_ensure_waits_for_the_hub_and_joins_once(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """An absent hub is waited for; a second start uses what is kept."""
    enrolling_hub.problems = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
    clock = HeldClock(enrolling_hub.now)
    await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure()
    await renewal(enrolling_hub, tmp_path / "state", clock).ensure()
    assert len(enrolling_hub.enrolled) == 3


async def test_a_refused_token_is_told_at_once(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """PERMISSION_DENIED ends the start instead of trying for ever."""
    enrolling_hub.problems = [grpc.StatusCode.PERMISSION_DENIED]
    with pytest.raises(faults.PermissionDenied):
        await renewal(enrolling_hub, tmp_path / "state", HeldClock(enrolling_hub.now), token_file).ensure()


async def test_no_identity_and_no_token(enrolling_hub: EnrollingHub, tmp_path: Path) -> None:
    """The error says what to give."""
    with pytest.raises(ValueError, match="join_token_file"):
        await renewal(enrolling_hub, tmp_path / "state", HeldClock(enrolling_hub.now)).ensure()


@pytest.mark.parametrize(("days", "renews"), [(0, 0), (2, 1), (89, 1)])
async def test_an_expired_certificate_is_renewed_at_the_start(
    enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path, days: int, renews: int
) -> None:
    """A stack that was off for longer than a certificate lives comes back, up to 90 days."""
    clock = HeldClock(enrolling_hub.now)
    await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure()
    clock.advance(timedelta(days=days))
    enrolling_hub.now = clock.now()
    await renewal(enrolling_hub, tmp_path / "state", clock).ensure()
    assert len(enrolling_hub.renewed) == renews


async def test_after_90_days_only_a_new_token_helps(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """Older certificates are not even shown; with a token the agent joins anew."""
    clock = HeldClock(enrolling_hub.now)
    await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure()
    clock.advance(timedelta(days=92))
    with pytest.raises(ValueError, match="90 days"):
        await renewal(enrolling_hub, tmp_path / "state", clock).ensure()
    token_file.write_text("def.secret")
    await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure()
    assert len(enrolling_hub.enrolled) == 2
    assert enrolling_hub.renewed == []


async def test_a_short_life_is_renewed_within_it(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """A certificate of one minute is renewed after 40 s, although it is backdated by far more than it lives."""
    enrolling_hub.lifetime = timedelta(minutes=1)
    clock = HeldClock(enrolling_hub.now)
    found = renewal(enrolling_hub, tmp_path / "state", clock, token_file)
    await found.ensure()
    assert abs((found.due() - clock.now()) - timedelta(seconds=40)) < timedelta(seconds=1)


async def test_a_new_token_means_to_join_anew(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """The token it joined with is not used again, also when its file is gone; another one is."""
    clock = HeldClock(enrolling_hub.now)
    await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure()
    await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure()
    assert len(enrolling_hub.enrolled) == 1
    token_file.write_text("def.secret")
    found = await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure()
    assert len(enrolling_hub.enrolled) == 2
    token_file.unlink()
    assert await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure() == found


async def test_the_state_of_another_hub_is_not_used(enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path) -> None:
    """When another CA is pinned, the kept identity is refused instead of tried for ever."""
    clock = HeldClock(enrolling_hub.now)
    await renewal(enrolling_hub, tmp_path / "state", clock, token_file).ensure()
    files = IdentityFiles(tmp_path / "state")
    moved = Enrolment(enrolling_hub.address, "0" * 64, files, version="test")
    with pytest.raises(ValueError, match="another CA"):
        await Renewal(moved, files, clock=clock, token_file=None).ensure()


async def test_renewal_is_due_at_two_thirds_and_survives_failures(
    enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path, eventually: Any
) -> None:
    """Nothing before two thirds of the life; then it tries until it works, even after refusals; the tunnel that stands goes on."""
    clock = HeldClock(enrolling_hub.now)
    found = renewal(enrolling_hub, tmp_path / "state", clock, token_file)
    found.on_trust = lambda: pytest.fail("the CAs are the same")
    first = await found.ensure()
    assert abs((found.due() - clock.now()) - enrolling_hub.lifetime * 2 / 3) < timedelta(seconds=1)
    clock.advance(enrolling_hub.lifetime * 2 / 3)
    enrolling_hub.now = clock.now()
    enrolling_hub.problems = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED]
    task = asyncio.create_task(found.run(), name="renewal")
    await eventually(lambda: found.identity != first, within=10)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert len(enrolling_hub.renewed) == 3
    assert found.identity.not_after > first.not_after


async def test_a_certificate_that_ends_is_renewed_soon_after_however_long_it_failed(
    enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses that have grown to minutes by then do not reach beyond its end: without a certificate there is no tunnel."""
    monkeypatch.setattr(renewals, "_MAX_DELAY_EXPIRED", 0.3)
    clock = HeldClock(enrolling_hub.now)
    found = renewal(enrolling_hub, tmp_path / "state", clock, token_file)
    first = await found.ensure()
    clock.advance(first.not_after - clock.now() - timedelta(seconds=0.2))
    enrolling_hub.now, found.failures = clock.now(), 16
    enrolling_hub.problems = [grpc.StatusCode.UNAVAILABLE]
    task = asyncio.create_task(found.run(), name="renewal")
    await eventually(lambda: found.identity != first, within=10)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_trust_moves_from_one_ca_to_the_next(tmp_path: Path, token_file: Path, eventually: Any) -> None:
    """An agent that is told of other CAs renews at once and keeps them; then only the new one is needed, whatever pin it joined with."""
    now = datetime.now(UTC)
    old, old_pair = ca.Authority.create("old", now=now)
    new, new_pair = ca.Authority.create("new", now=now)
    hub = EnrollingHub(old)
    servers = [await serve(hub)]
    clock = HeldClock(hub.now)
    found = renewal(hub, tmp_path / "state", clock, token_file)
    await found.ensure()
    seen: list[str] = []
    found.on_trust = lambda: seen.append(found.identity.ca_file.read_text())
    task = asyncio.create_task(found.run(), name="renewal")
    try:
        for authority, pair, bundle in (
            (old, old_pair, old.certificate + new.certificate),
            (new, new_pair, new.certificate + old.certificate),
            (new, new_pair, new.certificate),
        ):
            hub.authority = ca.Authority(ca.Pair(bundle, pair.key))
            road = found._enrolment._road
            address = road._address  # type: ignore[attr-defined] # it is a listener
            servers.append(await serve(hub, chain=authority.certificate))
            road._address = hub.address  # type: ignore[attr-defined] # as above
            found.told(ca.bundle_hash(bundle))
            await eventually(lambda bundle=bundle: found.identity.ca_file.read_text() == bundle, within=5)
            await eventually(lambda bundle=bundle: seen[-1:] == [bundle], within=5, what="a tunnel with it is asked for")
            assert address != hub.address
        found.told(ca.bundle_hash(new.certificate))
        assert len(hub.renewed) == 3
        issued = x509.load_pem_x509_certificate(found.identity.certificate.encode())
        assert ca.issued_by(issued, new.certificate)
        assert not ca.issued_by(issued, old.certificate)
        files = IdentityFiles(tmp_path / "state")
        for pin in (old.fingerprint, new.fingerprint):
            assert Enrolment(hub.address, pin, files, version="test").belongs(found.identity)
        assert not Enrolment(hub.address, "0" * 64, files, version="test").belongs(found.identity)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        for server in servers:
            await server.stop(0)


async def test_a_hub_that_hangs_up_is_asked_for_a_certificate_now_and_then(
    enrolling_hub: EnrollingHub, tmp_path: Path, token_file: Path, eventually: Any
) -> None:
    """A restored hub may not know our certificate: one renewal, and another a minute later at the earliest."""
    clock = HeldClock(enrolling_hub.now)
    found = renewal(enrolling_hub, tmp_path / "state", clock, token_file)
    await found.ensure()
    task = asyncio.create_task(found.run(), name="renewal")
    try:
        for count in (1, 2):
            found.refused()
            await eventually(lambda count=count: len(enrolling_hub.renewed) == count, within=5)
            found.refused()
            assert not found._early.is_set()
            clock.advance(timedelta(seconds=61))
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
