"""Streams that outlive their grant: renewed at half its life, ended with it, and the clock they are judged by."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.faults import PermissionDenied, Unauthenticated, Unavailable
from libs.log import trace
from libs.tunnel.kubernetes import Request
from services.gateway.link import exchange as exchanges
from services.gateway.link import grants
from services.gateway.link.exchange import AccessEnded, Exchange
from services.gateway.link.grants import Principal, ServicePrincipal
from tests.integration.link.rig import DEV, Agent, Rig, kubeconfig
from tests.integration.link.upstream import Came, Upstream, upstream
from tests.kit.eventually import eventually

WATCH = Request("GET", "/api/v1/pods", "watch=1")
LIFE = 1.0


async def ticking(came: Came, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Events for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"2\r\n.\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


@pytest.fixture
async def pair(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Agent, Upstream]]:
    """An agent, and an API server whose watches tick; grants live a second."""
    monkeypatch.setattr(grants, "LIFETIME_MILLIS", int(LIFE * 1000))
    monkeypatch.setattr(exchanges, "QUARTER_LIFE", LIFE / 4)
    async with upstream() as up, rig.agent(str(uuid.uuid4()), kubeconfig(tmp_path / "k", up.url)) as agent:
        up.answer = ticking
        yield agent, up


async def _lived(exchange: Exchange, most: float) -> float:
    """Seconds that an exchange goes on, at most so many."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    while loop.time() - started < most and await exchange.read():
        pass
    return loop.time() - started


async def test_a_stream_lives_on_while_its_grant_is_renewed(rig: Rig, pair: tuple[Agent, Upstream]) -> None:
    """A watch goes on for many lives of a grant, and the caller is asked for at each half."""
    asked = 0

    async def renew() -> Principal:
        nonlocal asked
        asked += 1
        return ServicePrincipal(DEV.user, DEV.uid, (*DEV.groups, "gems:gained"))

    async with await rig.links.kubernetes(pair[0].uid, WATCH, None, DEV, renew=renew) as watch:
        assert await _lived(watch, LIFE * 4) >= LIFE * 4
    assert 5 <= asked <= 9


async def test_a_stream_on_an_older_grant_lives_on_too(rig: Rig, pair: tuple[Agent, Upstream]) -> None:
    """A grant that is shared has part of its life behind it; the stream that takes it up late is renewed in time all the same."""
    async with await rig.links.kubernetes(pair[0].uid, WATCH, None, DEV) as first:
        await _lived(first, LIFE * 0.45)
        async with await rig.links.kubernetes(pair[0].uid, WATCH, None, DEV) as second:
            assert await _lived(second, LIFE * 3) >= LIFE * 3


async def test_unattended_work_is_renewed_by_itself(rig: Rig, pair: tuple[Agent, Upstream]) -> None:
    """Without anyone to ask, the same principal is granted again."""
    async with await rig.links.kubernetes(pair[0].uid, WATCH, None, ServicePrincipal("gems:service:inventory")) as watch:
        assert await _lived(watch, LIFE * 3) >= LIFE * 3


@pytest.mark.parametrize("why", ["signed out", "group lost", "another user", "denied"])
async def test_a_stream_ends_when_the_caller_may_no_longer(rig: Rig, pair: tuple[Agent, Upstream], why: str) -> None:
    """At the next renewal the stream is broken off at both ends, and says why."""

    async def renew() -> Principal:
        if why == "signed out":
            raise Unauthenticated("gone")
        if why == "denied":
            raise PermissionDenied("no")
        return ServicePrincipal(DEV.user, DEV.uid) if why == "group lost" else ServicePrincipal("gems:user:bob", "2", DEV.groups)

    async with await rig.links.kubernetes(pair[0].uid, WATCH, None, DEV, renew=renew) as watch:
        with pytest.raises(AccessEnded):
            await _lived(watch, LIFE * 3)
    await asyncio.wait_for(pair[1].closed.wait(), 5)


async def test_a_grant_that_nobody_renews_ends_the_stream(rig: Rig, pair: tuple[Agent, Upstream]) -> None:
    """When it is not known whether the caller may, the agent ends the stream with its grant."""

    async def renew() -> Principal:
        raise Unavailable("the database is away")

    loop = asyncio.get_running_loop()
    started = loop.time()
    async with await rig.links.kubernetes(pair[0].uid, WATCH, None, DEV, renew=renew) as watch:
        with pytest.raises(Unavailable):
            await _lived(watch, LIFE * 4)
    assert LIFE * 0.4 < loop.time() - started < LIFE * 1.8
    await asyncio.wait_for(pair[1].closed.wait(), 5)


async def test_the_agents_wall_clock_does_not_matter(rig: Rig, pair: tuple[Agent, Upstream]) -> None:
    """The agent judges by the hub's time: its own clock may be hours off."""
    mux = pair[0].link._mux
    assert mux is not None
    mux.pings._now_millis = lambda: 1_000_000_000_000
    mux.pings.ask()
    await asyncio.sleep(0.2)
    assert abs(pair[0].link.hub_millis() - rig.links._door.now_millis()) < 1000
    async with await rig.links.kubernetes(pair[0].uid, WATCH, None, DEV) as watch:
        assert await _lived(watch, LIFE * 2) >= LIFE * 2


async def test_one_trace_leads_from_the_hub_to_the_api_server(
    rig: Rig, pair: tuple[Agent, Upstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hub, agent and upstream request are spans of one trace, each the child of the one before; the API server gets the last."""
    provider: Any = otel.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        trace.setup("test", endpoint=None)
        provider = otel.get_tracer_provider()
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_exports", True)
    pair[1].answer = None
    with trace.span("test"):
        async with await rig.links.kubernetes(pair[0].uid, Request("GET", "/api/v1/pods"), None, DEV) as answer:
            assert await answer.whole(100) == b"{}"
        wanted = trace.current_trace_id()
    chain = ["test", "kubernetes.request", "kubernetes.serve", "kubernetes.upstream"]

    def ended() -> dict[str, ReadableSpan]:
        spans = {s.name: s for s in exporter.get_finished_spans() if otel.format_trace_id(s.context.trace_id) == wanted}
        assert set(chain) == set(spans)
        return spans

    spans = await eventually(ended, within=5)
    for name, child in itertools.pairwise(chain):
        parent = spans[child].parent
        assert parent is not None
        assert parent.span_id == spans[name].context.span_id
    kinds = [spans[name].kind.name for name in chain[1:]]
    assert kinds == ["CLIENT", "SERVER", "CLIENT"]
    last = otel.format_span_id(spans["kubernetes.upstream"].context.span_id)
    [sent] = pair[1].came[-1].all("traceparent")
    assert sent.startswith(f"00-{wanted}-{last}-")
