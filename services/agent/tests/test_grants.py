"""What the agent takes for a good grant, and what not."""

from __future__ import annotations

import pytest

from kubegems.agent.v1 import tunnel_pb2
from libs.crypt.signing import SigningKey
from services.agent.grants import GrantBook, GrantRefused

KEY = SigningKey.generate("k1")
OTHER = SigningKey.generate("k2")
NOW = 1_800_000_000_000


class Hub:
    """Signs grants; its clock is moved by tests."""

    def __init__(self) -> None:
        self.now = NOW
        self.book = GrantBook(cluster_uid="c1", session="s1", keys={"k1": KEY.public}, hub_millis=lambda: self.now)

    def use(self, counter: int = 1, key: SigningKey = KEY, kid: str = "k1", named: str = "", **changes: object) -> tunnel_pb2.GrantUse:
        """A signed grant, with fields changed before signing."""
        fields: dict[str, object] = {
            "id": "g1", "user": "gems:user:dev", "uid": "u1", "groups": ["gems:project:acme/shop:ops"], "cluster_uid": "c1",
            "session": "s1", "verbs": ["get", "list"], "expire_millis": NOW + 60_000,
        }  # fmt: skip
        fields.update(changes)
        grant = tunnel_pb2.Grant(**fields)  # type: ignore[arg-type] # fields by name
        content = grant.SerializeToString()
        signed = tunnel_pb2.SignedGrant(grant=content, signature=key.sign(content), kid=kid)
        return tunnel_pb2.GrantUse(signed=signed, id=named or grant.id, counter=counter)


@pytest.fixture
def hub() -> Hub:
    return Hub()


def test_a_good_grant_names_whom_to_act_as(hub: Hub) -> None:
    """User, uid and groups come from the grant; later uses need only its id and a higher counter."""
    held = hub.book.check(hub.use(), "get")
    assert (held.principal.user, held.principal.uid, held.principal.groups) == ("gems:user:dev", "u1", ("gems:project:acme/shop:ops",))
    again = hub.book.check(tunnel_pb2.GrantUse(id="g1", counter=2), "list")
    assert again.principal == held.principal
    assert hub.book.seconds_left(again) == 60


REFUSED: dict[str, dict[str, object]] = {
    "signed by another key": {"key": OTHER},
    "signed by an unknown key": {"key": OTHER, "kid": "k2"},
    "expired": {"expire_millis": NOW},
    "good for too long": {"expire_millis": NOW + 120_000},
    "of another session": {"session": "s0"},
    "for another cluster": {"cluster_uid": "c2"},
    "named by another id": {"named": "g2"},
    "without an id": {"id": ""},
    "without a user": {"user": ""},
    "for a system user": {"user": "system:admin"},
    "for a user without prefix": {"user": "dev"},
    "for a group as user": {"user": "gems:platform:admin"},
    "for a system group": {"groups": ["system:masters"]},
    "for a group without prefix": {"groups": ["ops"]},
    "with a line break": {"groups": ["gems:a\r\nImpersonate-Group: system:masters"]},
    "for too many groups": {"groups": [f"gems:{i}" for i in range(501)]},
    "for other verbs": {"verbs": ["list"]},
    "for nothing": {"verbs": []},
    "counted from zero": {"counter": 0},
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_grant_is_refused(hub: Hub, why: str) -> None:
    """Each flaw alone refuses the grant."""
    with pytest.raises(GrantRefused):
        hub.book.check(hub.use(**REFUSED[why]), "get")  # type: ignore[arg-type] # fields by name


def test_an_unsigned_grant_is_refused(hub: Hub) -> None:
    """A grant that was never signed here is unknown; a changed one is not signed."""
    with pytest.raises(GrantRefused):
        hub.book.check(tunnel_pb2.GrantUse(id="g1", counter=1), "get")
    use = hub.use()
    use.signed.grant = use.signed.grant.replace(b"gems:user:dev", b"gems:user:bob")
    with pytest.raises(GrantRefused):
        hub.book.check(use, "get")


def test_a_counter_that_does_not_rise_is_a_replay(hub: Hub) -> None:
    """The same or a lower counter is refused, also when the signed grant comes again."""
    hub.book.check(hub.use(5), "get")
    for counter in (5, 4, 1):
        with pytest.raises(GrantRefused):
            hub.book.check(tunnel_pb2.GrantUse(id="g1", counter=counter), "get")
        with pytest.raises(GrantRefused):
            hub.book.check(hub.use(counter), "get")
    hub.book.check(hub.use(6), "get")


def test_a_grant_ends_by_the_hubs_clock(hub: Hub) -> None:
    """A held grant is judged anew at each use."""
    hub.book.check(hub.use(), "get")
    hub.now += 60_000
    with pytest.raises(GrantRefused):
        hub.book.check(tunnel_pb2.GrantUse(id="g1", counter=2), "get")


def test_any_kubernetes_verb_is_not_any_call(hub: Hub) -> None:
    """`*` covers Kubernetes verbs, never a typed call."""
    use = hub.use(verbs=["*"])
    assert hub.book.check(use, "deletecollection")
    with pytest.raises(GrantRefused):
        hub.book.check(tunnel_pb2.GrantUse(id="g1", counter=2), "call:/kubegems.agent.v1.InventoryService/GetInventory")


def test_grants_that_are_over_are_not_kept(hub: Hub) -> None:
    """A tunnel that stands for weeks holds the grants of a minute, not all that there were; what is good is never forgotten."""
    for number in range(2000):
        hub.now += 1000
        hub.book.check(hub.use(id=f"g{number}", expire_millis=hub.now + 60_000), "get")
        assert hub.book.check(tunnel_pb2.GrantUse(id=f"g{max(0, number - 50)}", counter=number + 2), "get")
    assert len(hub.book._held) < 600
