"""How the hub makes grants and keeps them."""

from __future__ import annotations

import pytest

from kubegems.agent.v1 import tunnel_pb2
from libs.crypt.signing import SigningKey, signed_by
from libs.faults import Invalid
from libs.tunnel.kubernetes import target
from services.gateway.link.exchange import covers
from services.gateway.link.grants import LIFETIME_MILLIS, READS, WRITES, Grants, ServicePrincipal, verbs_for

KEY = SigningKey.generate("k1")
DEV = ServicePrincipal("gems:user:dev", "u1", ("gems:a",))


class Clock:
    """Hub time."""

    now = 1_000_000


@pytest.fixture
def grants() -> Grants:
    return Grants(KEY, cluster_uid="c1", session="s1", now_millis=lambda: Clock.now)


def test_a_grant_is_signed_once_and_counted(grants: Grants) -> None:
    """Later uses of a grant cost no signature: it travels with the first few, in case one is lost, then its id and counter alone."""
    Clock.now = 1_000_000
    first, *more = [grants.use(DEV, READS) for _ in range(20)]
    assert signed_by(KEY.public, first.signed.grant, first.signed.signature)
    assert [use.counter for use in more] == list(range(2, 21))
    assert {use.id for use in more} == {first.id}
    assert all(use.signed == first.signed for use in more[:3])
    assert not any(use.HasField("signed") for use in more[8:])
    grant = tunnel_pb2.Grant.FromString(first.signed.grant)
    assert (grant.user, grant.cluster_uid, grant.session, list(grant.verbs)) == ("gems:user:dev", "c1", "s1", list(READS))
    assert grant.expire_millis == Clock.now + LIFETIME_MILLIS


def test_each_principal_and_class_has_its_own(grants: Grants) -> None:
    """Other verbs, groups or users never share a grant."""
    others = (ServicePrincipal("gems:user:bob", "u2", ("gems:a",)), ServicePrincipal("gems:user:dev", "u1", ("gems:a", "gems:b")))
    ids = {grants.use(DEV, READS).id, grants.use(DEV, WRITES).id, *(grants.use(p, READS).id for p in others)}
    assert len(ids) == 4


def test_a_grant_past_half_its_life_is_made_anew(grants: Grants) -> None:
    """Whatever is opened has at least half a grant's life before it, whatever is renewed three quarters."""
    Clock.now = 1_000_000
    first = grants.use(DEV, READS)
    Clock.now += LIFETIME_MILLIS // 2
    assert grants.use(DEV, READS).id == first.id
    assert grants.use(DEV, READS, quarters=3).id != first.id
    first = grants.use(DEV, READS)
    Clock.now += LIFETIME_MILLIS // 2 + 1
    assert grants.use(DEV, READS).id != first.id


@pytest.mark.parametrize(
    "principal", [ServicePrincipal(""), ServicePrincipal("system:admin"), ServicePrincipal("gems:user:x", "", ("system:masters",))]
)
def test_only_kubegems_users_and_groups_are_granted(grants: Grants, principal: ServicePrincipal) -> None:
    """There is no grant for nobody, for Kubernetes' own users or for its groups."""
    with pytest.raises(Invalid):
        grants.use(principal, READS)


@pytest.mark.parametrize(
    ("method", "path", "verbs"),
    [("GET", "/api/v1/pods", READS), ("GET", "/version", READS), ("POST", "/api/v1/pods", WRITES), ("DELETE", "/api/v1/pods", WRITES)],
)
def test_a_request_gets_the_least_class(method: str, path: str, verbs: tuple[str, ...]) -> None:
    """Reads never carry a grant to write."""
    assert verbs_for(target(method, path, "", "")) == verbs
    assert verbs_for(target("GET", "/api/v1/namespaces/a/pods/b/exec", "", "websocket")) == WRITES
    assert verbs_for(target("GET", "/api/v1/namespaces/a/pods/b/proxy/x", "", "")) == ("proxy",)


def test_what_runs_may_run_on_while_nothing_is_lost() -> None:
    """A gained group changes nothing; a lost one, or another user, ends it."""
    more = ServicePrincipal("gems:user:dev", "u1", ("gems:b", "gems:a"))
    assert covers(more, DEV)
    assert not covers(DEV, more)
    assert not covers(ServicePrincipal("gems:user:dev", "u9", ("gems:a",)), DEV)


def test_what_is_kept_has_a_bound(grants: Grants) -> None:
    """However many users come within a grant's life, so many are kept and the newest are; what nobody can use any more goes."""
    Clock.now = 1_000_000
    everyone = [ServicePrincipal(f"gems:user:u{n}", f"{n}") for n in range(5000)]
    ids = [grants.use(who, READS).id for who in everyone]
    assert len(grants._kept) == 2000
    assert [grants.use(who, READS).id for who in everyone[-100:]] == ids[-100:]
    again = grants.use(everyone[0], READS)
    assert again.id != ids[0]
    assert again.HasField("signed")
    Clock.now += LIFETIME_MILLIS // 2 + 1
    grants.use(DEV, READS)
    assert len(grants._kept) == 1
