"""The examples of docs/client.md, run as they stand on the tests' own platform; and what API keys are worth on every road."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.local.walkthrough import walk
from kubegems.messages.v1 import event_pb2, message_service_pb2, message_service_pb2_grpc
from kubegems.tenancy.v1 import environment_service_pb2, environment_service_pb2_grpc
from libs.client import Client
from libs.faults import PermissionDenied, Unauthenticated
from tests.e2e.world import DEV, NAMESPACE, PASSWORD, World
from tests.kit.eventually import timescale
from tests.kit.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.timeout(300)]
DOCS = Path(__file__).parents[2] / "docs/client.md"


def _client(stack: Platform, **options: str) -> Client:
    return Client(str(stack.endpoints["grpc"]), ca=Path(stack.endpoints["ca"]), **options)  # type: ignore[arg-type] # all are texts


async def _to_its_end(events: AsyncIterator[event_pb2.Event]) -> None:
    async with asyncio.timeout(1.5 * timescale()):
        async for _ in events:
            pass


async def test_the_examples_do_what_they_say(stack: Platform) -> None:
    """gRPC by the client, REST by curl, a pipeline with an API key: each prints what stands below it."""
    said: list[str] = []
    assert await walk(DOCS, stack.layout.env, said.append, section="Examples") > 8


async def test_a_deleted_key_ends_its_stream_within_a_second(stack: Platform, platform: World) -> None:
    """A stream through gateway and msgbus, opened with a key that reads one environment; the key writes nothing there."""
    made = await platform.dev.post("/users/me/apiKeys", {"apiKeyId": "watching", "apiKey": {"readOnly": True, "scope": DEV}})
    async with _client(stack, api_key=made["key"]) as client:
        environments = client.stub(environment_service_pb2_grpc.EnvironmentServiceStub)
        request = environment_service_pb2.GetEnvironmentRequest(name=DEV)
        assert (await environments.GetEnvironment(request)).name == DEV
        with pytest.raises(PermissionDenied):
            await environments.DeleteEnvironment(environment_service_pb2.DeleteEnvironmentRequest(name=DEV))
        subscribe = client.stub(message_service_pb2_grpc.MessageServiceStub).Subscribe
        async with aclosing(client.stream(subscribe, message_service_pb2.SubscribeRequest(scopes=[DEV], snapshot=True))) as events:
            async for event in events:
                if event.kind == event_pb2.Event.SNAPSHOT_END:
                    break
            await platform.dev.call("DELETE", "/users/me/apiKeys/watching")
            with pytest.raises(Unauthenticated):
                await _to_its_end(events)
        with pytest.raises(Unauthenticated):
            await environments.GetEnvironment(request)


async def test_a_key_on_kubernetes_roads(stack: Platform, platform: World) -> None:
    """Under `/k8s` a key that only reads gets, lists and watches, without secrets; deleting it ends its watch within a second."""
    made = await platform.dev.post("/users/me/apiKeys", {"apiKeyId": "kubectl", "apiKey": {"readOnly": True}})
    pods = f"{stack.endpoints['rest']}/k8s/clusters/local/api/v1/namespaces/{NAMESPACE}/pods"
    by_key: Any = {"headers": {"Authorization": f"Bearer {made['key']}"}, "ssl": platform.dev.tls}
    session = platform.dev.session
    async with session.get(pods, **by_key) as answer:
        assert (answer.status, (await answer.json())["kind"]) == (200, "PodList")
    secrets, run = pods.replace("pods", "secrets"), pods + "/x/exec?command=id"
    for method, url in (("POST", pods), ("DELETE", pods + "/x"), ("GET", secrets), ("GET", run)):
        async with session.request(method, url, **by_key) as answer:
            assert (answer.status, (await answer.json())["kind"]) == (403, "Status"), (method, url)
    async with session.get(pods + "?watch=1", **by_key) as watch:
        assert watch.status == 200
        await platform.dev.call("DELETE", "/users/me/apiKeys/kubectl")
        started = time.monotonic()
        async with asyncio.timeout(5):
            with contextlib.suppress(aiohttp.ClientError):
                while await watch.content.readany():
                    pass
        assert time.monotonic() - started < 1.5 * timescale()
    async with session.get(pods, **by_key) as answer:
        assert answer.status == 401


async def test_a_signed_in_client_works_and_signs_out(stack: Platform, platform: World) -> None:
    """Password, call, sign-out; then its token is refused."""
    async with _client(stack) as client:
        name = await client.sign_in("ivy", PASSWORD)
        assert name.startswith("users/ivy/sessions/")
        environments = client.stub(environment_service_pb2_grpc.EnvironmentServiceStub)
        request = environment_service_pb2.ListEnvironmentsRequest(parent="tenants/-/projects/-", page_size=1)
        listed = [environment.name async for environment in client.pages(environments.ListEnvironments, request)]
        assert DEV in listed
        await client.sign_out()
        with pytest.raises(Unauthenticated):
            await environments.GetEnvironment(environment_service_pb2.GetEnvironmentRequest(name=DEV))
    assert platform.nobody.token == ""
