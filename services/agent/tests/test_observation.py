"""Kinds come and go with the hub's interest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from kubegems.agent.v1 import events_pb2
from libs.clock import HeldClock
from libs.kube import KubeClient
from libs.kube.resources import CONFIG_MAPS
from services.agent.observed.interest import Interest
from services.agent.observed.observation import Observation
from services.agent.observed.observer import Observer
from services.agent.observed.publisher import Publisher, Rate
from services.agent.tests.test_observed import Broker

pytestmark = pytest.mark.cluster
Wire = events_pb2.ObservedChange


class Hub:
    """Answers which kinds are wanted."""

    def __init__(self) -> None:
        self.wanted: list[str] = []

    async def call(self, method: Any, request: Any, *, timeout: float) -> Any:
        """The tunnel."""
        return wire.FetchInterestResponse(resources=self.wanted)


@pytest.fixture
async def observation(kube: KubeClient) -> AsyncIterator[tuple[Observation, Broker]]:
    """An observation of nothing yet, whose tasks end with the test."""
    broker, tasks = Broker(), []
    publisher = Publisher(broker, cluster_uid="c", rate=Rate(10_000), clock=HeldClock(), registry=CollectorRegistry())

    def spawn(name: str, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        tasks.append(task)
        return task

    yield Observation(Observer(kube, registry=CollectorRegistry()), publisher, spawn=spawn, epoch="e", limit=100), broker
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_interest_starts_and_stops_kinds(observation: tuple[Observation, Broker], kube: KubeClient, eventually: Any) -> None:
    """Wanted: listed; unwanted: stopped; wanted again: listed afresh, numbers going on. Never Secrets, nor what is not served."""
    found, broker = observation
    hub = Hub()
    interest = Interest(hub, kube, found)
    hub.wanted = ["configmaps.v1.", "secrets.v1.", "things.v1.nowhere.example.com", "pods.v1.", "", "x"]
    await interest.follow()
    assert found.kinds == {CONFIG_MAPS}
    await eventually(lambda: broker.taken and broker.messages()[-1].verb == Wire.LISTED, within=10)
    hub.wanted = []
    await interest.follow()
    assert found.kinds == set()
    told = len(broker.messages())
    hub.wanted = ["configmaps.v1."]
    await interest.follow()
    await eventually(lambda: len(broker.messages()) > told and broker.messages()[-1].verb == Wire.LISTED, within=10)
    assert [m.counter for m in broker.messages()] == list(range(1, len(broker.messages()) + 1))
    assert {m.kind for m in broker.messages()} == {"ConfigMap"}
