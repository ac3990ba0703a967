"""Errors that come from far: an agent that is offline, its faults over the tunnel, the API server's own `Status`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from libs.faults import Unavailable
from tests.contract.calls import Example
from tests.integration.errors.conftest import Agent, World
from tests.integration.errors.wire import kubernetes, leaks, standard
from tests.integration.link.upstream import raw
from tests.kit.eventually import eventually

DIFF = Example("diff", "GET", "/api/v1/clusters/local:diff", None, streams=False)
PODS = Example("pods", "GET", "/k8s/clusters/local/api/v1/namespaces/default/pods", None, streams=False)
NOBODY = Example("nobody", "GET", "/k8s/clusters/none/api", None, streams=False)
_PLANTED = 'File "/srv/agent/x.py", line 7, dial tcp 10.1.2.3:6443: SELECT'


def status(code: int, reason: str, message: str, **details: Any) -> bytes:
    """The API server's answer with a Status."""
    body = orjson.dumps({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message, "details": details,
    })  # fmt: skip
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (code, len(body)) + body


async def test_an_offline_agent(world: World) -> None:
    """UNAVAILABLE with CLUSTER_OFFLINE and a delay through the API, a Status 503 with a delay under `/k8s`."""
    reply = await world.ask(DIFF)
    error = standard(reply.status, reply.headers, reply.body)
    assert (error["status"], error["details"][0]["reason"]) == ("UNAVAILABLE", "CLUSTER_OFFLINE")
    assert "Retry-After" in reply.headers
    reply = await world.ask(PODS)
    assert (reply.status, kubernetes(reply.status, reply.headers, reply.body)["reason"]) == (503, "ServiceUnavailable")
    assert reply.body["details"]["retryAfterSeconds"] > 0


async def test_refusals_under_k8s(world: World) -> None:
    """No such cluster, no token, a crooked path: a Status with an id."""
    for example, headers in ((NOBODY, {}), (PODS, {"Authorization": "Bearer x"}), (PODS, {"Impersonate-User": "x"})):
        reply = await world.ask(example, **headers)
        kubernetes(reply.status, reply.headers, reply.body)


@pytest.fixture
async def online(world: World, agent: Agent) -> AsyncIterator[Agent]:
    """The agent, as it answers when nothing is wrong: the control."""

    async def there() -> Any:
        assert (await world.ask(DIFF)).status == 200
        return True

    agent.preview.error = agent.upstream.answer = None
    await eventually(there, within=20, every=0.1)
    yield agent
    agent.preview.error = agent.upstream.answer = None


@pytest.mark.parametrize(
    "error", [RuntimeError(_PLANTED), ConnectionRefusedError(111, _PLANTED), KeyError(_PLANTED), TimeoutError(_PLANTED)]
)
async def test_a_mistake_of_the_agents(world: World, online: Agent, error: Exception) -> None:
    """Its id comes through, and nothing else."""
    online.preview.error = error
    reply = await world.ask(DIFF)
    assert standard(reply.status, reply.headers, reply.body)["status"] in ("INTERNAL", "UNAVAILABLE")


async def test_a_fault_of_the_agents(world: World, online: Agent) -> None:
    """Code, reason and words as the agent said them."""
    online.preview.error = Unavailable("the agent is starting", {"what": "preview"})
    reply = await world.ask(DIFF)
    error = standard(reply.status, reply.headers, reply.body)
    assert (error["status"], error["message"]) == ("UNAVAILABLE", "the agent is starting")


@pytest.mark.parametrize(
    ("said", "message", "want"),
    [
        ((403, "Forbidden"), 'pods is forbidden: User "gems:user:dev" cannot list resource "pods"', "PERMISSION_DENIED"),
        ((404, "NotFound"), 'deployments.apps "web" not found', "NOT_FOUND"),
        ((409, "Conflict"), "the object has been modified", "ABORTED"),
        ((410, "Expired"), "too old resource version", "OUT_OF_RANGE"),
        ((422, "Invalid"), "spec.replicas: Invalid value", "INVALID_ARGUMENT"),
        ((429, "TooManyRequests"), "too many requests", "RESOURCE_EXHAUSTED"),
        ((500, "InternalError"), 'failed calling webhook: Post "https://10.96.0.7:443/v": dial tcp 10.96.0.7:443', "UNAVAILABLE"),
        ((503, "ServiceUnavailable"), "etcdserver: leader changed at etcd-0.etcd.kube-system.svc:2379", "UNAVAILABLE"),
        ((504, "Timeout"), "request timed out", "DEADLINE_EXCEEDED"),
    ],
)
async def test_a_status_of_the_api_server(world: World, online: Agent, said: tuple[int, str], message: str, want: str) -> None:
    """Through an RPC it is our own error, without the addresses inside the cluster; under `/k8s` it is the API server's, untouched."""
    code, reason = said
    online.upstream.answer = raw(status(code, reason, message, name="web"))
    reply = await world.ask(DIFF)
    error = standard(reply.status, reply.headers, reply.body, allowed=[message.split('"')[1]] if code < 500 and '"' in message else [])
    assert error["status"] == want, error
    reply = await world.ask(PODS)
    assert (reply.status, reply.body["message"]) == (code, message)
    assert len(reply.headers["kubegems-request-id"]) == 32


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nno json!!", b"nonsense\r\n\r\n", b""])
async def test_an_api_server_that_makes_no_sense(world: World, online: Agent, answer: bytes) -> None:
    """UNAVAILABLE or INTERNAL, and nothing of what it said."""
    online.upstream.answer = raw(answer)
    reply = await world.ask(DIFF)
    standard(reply.status, reply.headers, reply.body)


async def test_jobs_tell_no_more(world: World, online: Agent) -> None:
    """What a job failed with is kept and shown: the same words, nothing of the inside of the cluster."""
    message = 'Post "https://10.96.0.7:443/v": dial tcp 10.96.0.7:443: connect: connection refused'
    online.upstream.answer = raw(status(500, "InternalError", message))
    made = await world.edge.admin.post("/jobs", {"job": {"kind": "cluster-inventory", "target": "clusters/local"}})

    async def tried() -> Any:
        job = await world.edge.admin.get(f"/{made['name']}")
        assert job.get("error"), job
        return job

    job = await eventually(tried, within=30, every=0.2)
    assert not leaks(json.dumps(job), world.tables, allowed=[job["kind"]]), job
