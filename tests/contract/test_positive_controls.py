"""A refusal proves something only beside a call that is let in: every permission, by every role that holds it, reaches a handler."""

from __future__ import annotations

from collections import defaultdict

import pytest

from kubegems.policy.v1 import policy_pb2
from libs.faults import Unauthenticated
from libs.rpc import Caller, Kind, Refused
from services.gateway import wiring
from services.gateway.identity.rights import known_permissions
from tests.contract.road import METHODS, Road
from tests.contract.test_rights_matrix import MAY, ROOT, WHO, E, P, T, _callers, _fault

_Rule = policy_pb2.Rule
ROAD = Road()
# Permissions that no RPC's rule names, by their beginning, and why: so no call of the API can prove them.
ELSEWHERE = {
    "apps.": "no RPC yet: applications and manifests come later",
    "observability.": "no RPC yet: metrics, traces and alerts come later",
    "workloads.": "no RPC: Kubernetes objects are reached under /k8s by the cluster's own RBAC (tests/integration/link/test_kubectl.py)",
    "tenancy.gateways.": "no RPC yet: a tenant's ingress gateways come later",
    "tenancy.quotaRequests.": "no RPC yet: asking for more quota comes later",
}
# Asked for by a handler, beside its RPC's rule, and where that is tested with its control.
_ENVIRONMENTS = "services/gateway/tenancy/tests/test_environments.py"
_NAMES_ONLY = "services/gateway/tenancy/tests/test_tenants.py"
IN_CODE = {
    "fleet.clusters.connect": "services/gateway/identity/tests/test_key_rights.py",
    "fleet.clusters.impersonate": "tests/integration/link/test_hardening.py",
    "fleet.clusters.view": "services/gateway/fleet/tests/test_clusters.py",
    "identity.users.setRole": "services/gateway/identity/tests/test_users.py",
    "tenancy.environments.adopt": _ENVIRONMENTS,
    "tenancy.environments.relaxPodSecurity": _ENVIRONMENTS,
    "tenancy.environments.view": _ENVIRONMENTS,
    "tenancy.projects.update": _NAMES_ONLY,
    "tenancy.projects.view": _NAMES_ONLY,
    "tenancy.tenants.view": _NAMES_ONLY,
}
# One's own membership is seen at its own level alone, so that one letter of the matrix cannot tell it for the suspended.
OWN = {"tenancy.members.get": [("MemberService/GetMember", f"{at}/members/me", "") for at in (T, P, E)]}


def _by_permission() -> dict[str, list[tuple[str, str, str]]]:
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for row in MAY:
        found[METHODS[row[0]].rule.permission].append(row)
    return found


ROWS = _by_permission()
NAMED = sorted(ROWS)


def _holders(permission: str) -> set[str]:
    """Letters of the roles that hold a permission anywhere, by the one role table."""
    return {who for who in WHO for caller in _callers(who) if not caller.rights.scopes(permission).empty}


@pytest.mark.parametrize("permission", NAMED)
async def test_whoever_holds_it_gets_in_somewhere(permission: str) -> None:
    """For each role that the table gives it to there is a call that reaches its handler; for a stranger none does."""
    rows = ROWS[permission] + OWN.get(permission, [])
    for who in _holders(permission):
        let_in = [rpc for rpc, at, _ in rows for caller in _callers(who) if await _fault(rpc, caller, at) is None]
        assert let_in, f"{permission}: nothing lets {who} in, who holds it"
    stranger = Caller(Kind.USER, "stranger", "uid", "1")
    for rpc, at, _ in rows:
        assert await _fault(rpc, stranger, at) is not None, f"{rpc} at {at} lets everybody in"


def test_every_permission_is_proved_or_listed() -> None:
    """What no RPC's rule names is listed above with its reason, and nothing is listed that one does name."""
    silent = known_permissions() - set(NAMED) - set(IN_CODE)
    assert not [p for p in silent if not p.startswith(tuple(ELSEWHERE))]
    assert not [begin for begin in ELSEWHERE if not any(p.startswith(begin) for p in silent)], "listed for nothing"
    assert not [p for p in (*NAMED, *IN_CODE) if p.startswith(tuple(ELSEWHERE))]
    assert not set(IN_CODE) & set(NAMED)
    assert all((ROOT / path).is_file() for path in IN_CODE.values())


_PEERS = {
    _Rule.SERVICE_CERT: ("spiffe://kubegems/hub/worker", "spiffe://kubegems/cluster/11111111-1111-1111-1111-111111111111"),
    _Rule.AGENT_CERT: ("spiffe://kubegems/cluster/11111111-1111-1111-1111-111111111111", "spiffe://kubegems/hub/worker"),
}


@pytest.mark.parametrize("rpc", sorted(rpc for rpc, m in METHODS.items() if m.rule.auth in _PEERS))
async def test_internal_rpcs_let_in_the_right_certificate_alone(rpc: str) -> None:
    """A hub service's, or an agent's; not the other's, nor a user's token without one."""
    right, wrong = _PEERS[METHODS[rpc].rule.auth]
    assert await ROAD.fault(rpc, Caller(), peer=right) is None
    for peer in (wrong, ""):
        assert isinstance(await ROAD.fault(rpc, next(_callers("$")), peer=peer), Unauthenticated)


@pytest.mark.parametrize("rpc", sorted(rpc for rpc, m in METHODS.items() if m.rule.auth in (_Rule.PUBLIC, _Rule.REFRESH, _Rule.JOIN_TOKEN)))
async def test_what_proves_itself_in_the_request_is_let_in(rpc: str) -> None:
    """Sign-in, refresh and joining need nobody signed in; their handlers look at the proof."""
    assert await ROAD.fault(rpc, Caller()) is None


class _Answers:
    """Answers whatever it is asked."""

    def __getattr__(self, _name: str) -> object:
        async def answer(_request: object, _call: object) -> None: ...

        return answer


def test_the_gateway_does_not_start_with_a_permission_that_no_role_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway's own wiring asks the one role table: with a row less it refuses, and names what is missing."""
    file = METHODS["QuotaService/GetTenantQuota"].descriptor.containing_service.file
    assert wiring._served(file, _Answers())
    monkeypatch.setattr(wiring, "known_permissions", lambda: known_permissions() - {"tenancy.quotas.get"})
    with pytest.raises(Refused, match=r"no role knows the permission 'tenancy\.quotas\.get'"):
        wiring._served(file, _Answers())
