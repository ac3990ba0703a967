"""One trace per story, read back from a real Jaeger."""

from __future__ import annotations

import pytest

from tests.e2e.world import DEV, PASSWORD, World
from tests.kit.eventually import eventually
from tests.kit.jaeger import Jaeger, Span

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]
SHOP = "tenants/initech/projects/shop"


def connected(spans: list[Span]) -> bool:
    """Whether every span's parent is in the trace but for one root."""
    ids = {s.id for s in spans}
    return len([s for s in spans if s.parent not in ids]) == 1


async def test_a_new_environment_is_one_trace_from_rest_to_the_reconcile(platform: World, jaeger_query: Jaeger) -> None:
    """REST → gateway → outbox and NATS → agent → Kubernetes API → controller, and msgbus hears of it, all in one trace."""
    body = {"cluster": "clusters/local", "quota": {"limits.cpu": "1"}}
    answer = await platform.admin.call("POST", f"/{SHOP}/environments", {"environmentId": "traced", "environment": body})
    trace_id = answer.headers["kubegems-trace-id"]
    assert answer.status == 200
    await platform.ready(f"{SHOP}/environments/traced")

    async def whole() -> list[Span]:
        spans = await jaeger_query.trace(trace_id)
        services = {s.service for s in spans}
        wanted = {f"kubegems-{name}" for name in ("gateway", "agent", "controller", "msgbus")}
        assert wanted <= services, sorted({(s.service, s.name) for s in spans})
        assert connected(spans), sorted((s.service, s.name, s.id, s.parent) for s in spans)
        return spans

    spans = await eventually(whole, within=20, every=0.5, what="one trace of an environment")
    names = {(s.service, s.name) for s in spans}
    assert any(service == "kubegems-gateway" and "CreateEnvironment" in name for service, name in names)
    assert ("kubegems-gateway", "desired.hint") in names, names
    assert any(service == "kubegems-gateway" and name.endswith(" publish") for service, name in names), names
    assert any(service == "kubegems-agent" and "apply" in name for service, name in names), names
    assert any(service == "kubegems-controller" and "reconcile" in name for service, name in names), names


async def test_a_job_is_one_trace_through_the_worker_to_the_cluster(platform: World, jaeger_query: Jaeger) -> None:
    """REST → gateway → worker → gateway → agent → Kubernetes API, and msgbus hears of its progress."""
    answer = await platform.dev.call("POST", "/jobs", {"job": {"kind": "environment-usage-report", "target": DEV}})
    trace_id = answer.headers["kubegems-trace-id"]
    assert answer.ok()["traceId"] == trace_id

    async def whole() -> list[Span]:
        spans = await jaeger_query.trace(trace_id)
        services = {s.service for s in spans}
        assert services >= {f"kubegems-{name}" for name in ("gateway", "worker", "agent", "msgbus")}, services
        return spans

    await eventually(whole, within=30, every=0.5, what="one trace of a job")


async def test_no_secret_is_ever_in_a_trace(platform: World, jaeger_query: Jaeger) -> None:
    """The scan finds what was planted as a span's method, and finds no password and no token."""
    for service in await jaeger_query.services():
        text = await jaeger_query.all_text(service)
        if service == "kubegems-gateway":
            assert "CreateSession" in text  # the scan sees what is there
        assert PASSWORD not in text
        assert platform.dev.token not in text
