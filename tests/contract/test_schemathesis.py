"""The API's document against the running hub: whatever it says may be sent is sent, and no answer may differ from it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import Failure, FailureGroup

from tests.contract.api import api
from tests.contract.edge import PASSWORD, Edge
from tests.kit.rest import User

# The services in this process use `random` too, for jitter, while a strategy runs in its thread.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
EXAMPLES = 20
_SECONDS = 30.0
# Operations that are not run, and why.
EXCLUDED = {
    "JobService.WatchJob": "a stream without end; tests/e2e and libs/rest prove streams",
    "MessageService.Subscribe": "a stream without end; tests/e2e and services/msgbus prove it",
    "MessageService.Subscribe.2": "a stream without end; tests/e2e and services/msgbus prove it",
}
# Checks that cannot hold, and why; all others run.
UNCHECKED: dict[str, str] = {
    "positive_data_acceptance": "whether a cluster exists or a quota has room is not the schema's to say; that is 400 too",
}
_SCHEMA = schemathesis.openapi.from_dict(api())
_SCHEMA.config.generation.allow_x00 = False  # the document says so in words: no text holds a NUL
_SCHEMA.config.checks.negative_data_rejection.expected_statuses = ["400", "401", "403", "404", "406", "409", "413", "415", "429", "431"]
# Answers that are right here, where no cluster is joined.
AWAY = {"ClusterService.DiffCluster": "CLUSTER_OFFLINE"}
_FOUND: list[Any] = [result.ok() for result in _SCHEMA.get_all_operations()]  # type: ignore[union-attr] # an error raises here
_OPERATIONS = {op.definition.raw["operationId"]: op for op in _FOUND}
_RUN = sorted(_OPERATIONS.keys() - EXCLUDED, key=lambda name: (_OPERATIONS[name].method.upper() == "DELETE", name))
_SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES, database=None, derandomize=True, deadline=None, phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip
_OWN = ("/inbox", "/apiKeys", "/sessions")
SEEN: Counter[tuple[str, int]] = Counter()


@pytest.fixture(scope="module")
async def world(edge: Edge) -> User:
    """One of each thing, so that names lead somewhere."""
    admin = edge.admin
    await admin.post("/users", {"userId": "dev", "initialPassword": PASSWORD})
    await admin.post("/clusters", {"clusterId": "local"})
    await admin.post("/tenants", {"tenantId": "acme"})
    await admin.put("/tenants/acme/quotas/local", {"hard": {"limits.cpu": "20"}})
    await admin.post("/tenants/acme/projects", {"projectId": "shop"})
    shop = "/tenants/acme/projects/shop"
    made = {"cluster": "clusters/local", "quota": {"limits.cpu": "1"}}
    await admin.post(f"{shop}/environments", {"environmentId": "dev", "environment": made})
    await admin.put(f"{shop}/environments/dev/members/dev", {"role": "OPERATOR"})
    for parent in ("/tenants/acme", shop):
        await admin.put(f"{parent}/members/dev", {"role": "MEMBER" if parent != shop else "DEV"})
        await admin.post(f"{parent}/serviceAccounts", {"serviceAccountId": "ci"})
        await admin.post(f"{parent}/serviceAccounts/ci/apiKeys", {"apiKeyId": "deploy"})
    return admin


def _cases(operation: Any) -> st.SearchStrategy[Case[Any]]:
    """Requests as the document wants them, half of them about things that exist, and some that it forbids."""
    known = {p["name"]: _known(operation, p) for p in operation.definition.raw.get("parameters", ()) if p["in"] == "path"}
    positive = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    existing = operation.as_strategy(generation_mode=GenerationMode.POSITIVE, path_parameters=known) if known else positive
    return st.one_of(existing, positive, existing, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))


def _known(operation: Any, parameter: dict[str, Any]) -> str:
    if parameter["name"] == "user" and any(part in operation.path for part in _OWN):
        return "me"
    return str(parameter.get("example", parameter["name"]))


@pytest.mark.parametrize("name", _RUN)
async def test_the_hub_does_as_the_document_says(name: str, edge: Edge, world: User) -> None:
    """No 5xx, and status, headers, content type and body of every answer are as described."""
    operation = _OPERATIONS[name]
    session = requests.Session()
    wire: dict[str, Any] = {"session": session, "verify": str(edge.ca), "timeout": _SECONDS}
    unchecked = UNCHECKED.keys() | ({"not_a_server_error"} if name in AWAY else set())
    excluded: list[Any] = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in unchecked]

    found: dict[str, str] = {}

    @_SETTINGS
    @hypothesis.given(case=_cases(operation))
    def run(case: Case[Any]) -> None:
        headers = {"Authorization": f"Bearer {world.token}"}
        response = case.call(base_url=edge.url, headers=headers, **wire)
        SEEN[name, response.status_code] += 1
        assert response.status_code < 500 or AWAY.get(name, "nothing is away") in response.text
        try:
            case.validate_response(response, excluded_checks=excluded, headers=headers, transport_kwargs=wire)
        except (Failure, FailureGroup) as failure:  # kept, not raised: what is in the database would make a second run differ
            found.setdefault(f"{response.status_code}", str(failure))

    with session:
        await asyncio.to_thread(run)
    assert not found, "\n\n".join(found.values())
    assert sum(count for (op, _), count in SEEN.items() if op == name) >= 1
