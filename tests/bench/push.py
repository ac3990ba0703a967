"""Push under load: 5,000 subscribers in one process, one of them frozen; memory over gRPC; an agent under 1,000 events a second.

Each figure is one JSON line: name, value, goal. Latencies are from the change's entering the hub of msgbus to the last
subscriber's having the event in hand, with everything in between that msgbus does: rights, queues, coalescing, tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.ports import Ports
from kubegems.agent.v1.events_pb2 import ObservedChange
from kubegems.identity.v1.access_service_pb2 import (
    GrantedScope,
    WatchGrantsRequest,
    WatchGrantsResponse,
    WatchSessionsResponse,
)
from kubegems.messages.v1 import event_pb2, message_service_pb2
from kubegems.messages.v1.event_pb2 import Event
from kubegems.messages.v1.message_service_pb2_grpc import MessageServiceStub
from libs import rpc
from libs.bus import Bus, streams
from libs.clock import SystemClock
from libs.crypt.box import Box
from libs.crypt.signing import SigningKey
from libs.faults import Fault
from libs.kube import Store
from libs.kube.resources import PODS
from libs.kube.store import LISTED
from libs.rest import streams as streams_of
from libs.rpc.call import Call, Caller, Kind
from libs.rpc.forward import forward
from libs.rpc.registry import bind
from services.agent.observed.feed import Feed
from services.agent.observed.publisher import Publisher, Rate
from services.agent.observed.trim import trim
from services.msgbus.api import Messages
from services.msgbus.app import GC
from services.msgbus.domain import Environment, Grants, Selection
from services.msgbus.hub import Hub, Subscription
from services.msgbus.subscriber import Queue
from services.msgbus.view import View
from tests.kit.nats import NatsServer, nats_server_part

SUBSCRIBERS = 5000
PLACES = 100  # each change is seen by 1 % of the subscribers
RATE = 200
SECONDS = 10
IDLE = 2000


def figure(name: str, value: float, goal: float, unit: str) -> None:
    """Prints one."""
    print(json.dumps({"bench": "push", "figure": name, "value": round(value, 3), "goal": goal, "unit": unit, "met": value <= goal}))


def scope(namespace: str) -> GrantedScope:
    """An environment of a namespace's name."""
    name = f"tenants/{namespace}/projects/p/environments/e"
    return GrantedScope(name=name, cluster="clusters/local", cluster_uid="c", namespace=namespace)


class Everyone:
    """Everyone sees the place of its number and one that all see."""

    def __init__(self) -> None:
        self._added: asyncio.Queue[Sequence[tuple[str, str]]] = asyncio.Queue()

    async def watch(self) -> AsyncIterator[WatchSessionsResponse]:
        """Grants to whoever was added, and heartbeats."""
        message = WatchSessionsResponse(watch="w")
        while True:
            yield message
            message = WatchSessionsResponse()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.5):
                    for username, session in await self._added.get():
                        scopes = [scope(f"n{int(username[1:]) % PLACES}"), scope("all")]
                        told = WatchGrantsResponse(kind=WatchGrantsResponse.SNAPSHOT, scopes=scopes)
                        message.sessions.add(of=WatchGrantsRequest(username=username, session=session), grants=told)

    async def update(self, watch: str, add: Sequence[tuple[str, str]], remove: Sequence[tuple[str, str]]) -> None:
        """Others."""
        self._added.put_nowait(add)


def messages() -> tuple[Hub, Messages]:
    """An empty msgbus."""
    hub = Hub(View())
    hub.clusters["c"] = "clusters/local"
    return hub, Messages(hub, Everyone(), Box(b"k" * 32), queue_size=1000, streams_per_user=100_000)


class Feeder:
    """Makes changes, numbered as an agent's."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.counter = 2
        self.at: dict[str, float] = {}
        hub.take("c", ObservedChange(epoch="e", counter=1, resource="pods", verb=ObservedChange.LISTING))
        hub.take("c", ObservedChange(epoch="e", counter=2, resource="pods", verb=ObservedChange.LISTED))

    def change(self, namespace: str) -> str:
        """A pod changes; its resource version."""
        self.counter += 1
        version = str(self.counter)
        change = ObservedChange(
            epoch="e", counter=self.counter, verb=ObservedChange.MODIFIED, resource="pods", version="v1", kind="Pod",
            namespace=namespace, name=f"web-{self.counter % 50}", uid="u", resource_version=version,
            labels={"app": "web", "gems.kubegems.io/tenant": namespace}, columns={"phase": "Running", "ready": "1/1", "node": "n1"},
        )  # fmt: skip
        change.observe_time.GetCurrentTime()
        self.at[version] = time.perf_counter()
        self.hub.take("c", change)
        return version


class Sinks:
    """5,000 subscribers that note when each change came; the first one never reads."""

    def __init__(self, served: Messages) -> None:
        self.served = served
        self.last: dict[str, float] = {}
        self.count: dict[str, int] = {}
        self.frozen: Any = None

    def open(self, number: int) -> Any:
        """One stream."""
        call = Call(method=cast("Any", None), caller=Caller(kind=Kind.USER, id=f"u{number}", session=f"s{number}"))
        return self.served.Subscribe(message_service_pb2.SubscribeRequest(), call)

    async def read(self, number: int) -> None:
        """Reads one stream for ever."""
        async with aclosing(self.open(number)) as stream:
            async for part in stream:
                for event in map(Event.FromString, part):
                    if event.kind == Event.CHANGE:
                        version = event.change.resource_version
                        self.last[version] = time.perf_counter()
                        self.count[version] = self.count.get(version, 0) + 1

    async def freeze(self) -> None:
        """Opens one and takes its first event, and no more."""
        self.frozen = self.open(0)
        await anext(self.frozen)


def p95(values: list[float]) -> float:
    """In milliseconds."""
    return statistics.quantiles(values, n=20)[18] * 1000


async def fan_out() -> None:
    """The latencies."""
    hub, served = messages()
    feeder, sinks = Feeder(hub), Sinks(served)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(sinks.read(n), name=f"sink {n}") for n in range(1, SUBSCRIBERS)]
        await sinks.freeze()
        while len(hub) < SUBSCRIBERS:
            await asyncio.sleep(0.05)
        gc.freeze()  # as msgbus itself does
        gc.set_threshold(*GC)
        cpu = time.process_time()
        versions = []
        started = time.perf_counter()
        for i in range(RATE * SECONDS):
            await asyncio.sleep(max(0.0, started + i / RATE - time.perf_counter()))
            versions.append(feeder.change(f"n{i % PLACES}"))
        await asyncio.sleep(1)
        figure(
            "200 changes/s to 1 % of 5,000, one frozen: p95 to the last", p95([sinks.last[v] - feeder.at[v] for v in versions]), 250, "ms"
        )
        figure("the same: CPU", (time.process_time() - cpu) / SECONDS, 1.0, "cores")
        assert all(sinks.count[v] >= SUBSCRIBERS / PLACES - 1 for v in versions), "every subscriber had every change"
        versions = []
        for _ in range(SECONDS):
            versions.append(feeder.change("all"))
            await asyncio.sleep(1)
        figure("one broadcast a second to 5,000: p95 to the last", p95([sinks.last[v] - feeder.at[v] for v in versions]), 500, "ms")
        assert all(sinks.count[v] == SUBSCRIBERS - 1 for v in versions)
        for task in tasks:
            task.cancel()
    await sinks.frozen.aclose()


def adding() -> None:
    """What one more subscriber costs at 50 and at 5,000."""
    costs = {}
    for present in (50, SUBSCRIBERS):
        hub = Hub(View())
        for n in range(present):
            _add(hub, n)
        rounds = []
        for _ in range(300):
            started = time.perf_counter()
            added = _add(hub, present)
            rounds.append(time.perf_counter() - started)
            hub.remove(added)
        costs[present] = statistics.median(rounds)
    figure("a subscriber added to 5,000 against one added to 50", costs[SUBSCRIBERS] / costs[50], 2.0, "times")


def _add(hub: Hub, number: int) -> Subscription:
    places = [Environment(s.name, s.cluster, s.cluster_uid, s.namespace) for s in (scope(f"n{number % PLACES}"), scope("all"))]
    made = Subscription(f"u{number}", Selection(), Queue(1000), f"r-{number}")
    hub.open(made)
    hub.regrant(made, Grants(environments={e.place: e for e in places}))
    hub.add(made)
    return made


async def serve() -> None:
    """The child: msgbus' service over gRPC; says its port, and its memory whenever asked."""
    _, served = messages()
    methods = rpc.methods(message_service_pb2.DESCRIPTOR.services_by_name["MessageService"], served)

    async def anyone(call: Call) -> Caller:
        return Caller(Kind.USER, "u" + call.metadata["number"], session="s" + call.metadata["number"])

    async def granted(call: Call, request: object) -> None:
        """Whoever asks."""

    server = rpc.Server(
        rpc.Pipeline(methods, authenticate=anyone, authorise=granted, registry=CollectorRegistry()),
        max_concurrent=20_000,
        per_connection=20_000,
    )
    port = server.listen("127.0.0.1:0", None)
    await server.start()
    print(port, flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(_memory(), flush=True)
    os._exit(0)  # to end thousands of streams in good order is not what is measured, and takes long


def _memory() -> int:
    """Resident bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def idle() -> None:
    """Memory of an idle subscription in msgbus' own process, on four shared connections."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).resolve()), "serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdin is not None
    assert child.stdout is not None
    port = int(await child.stdout.readline())

    async def memory() -> int:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"\n")
        return int(await child.stdout.readline())

    channels = [rpc.Channel(f"127.0.0.1:{port}", "msgbus", None) for _ in range(4)]
    open_streams: list[Any] = []
    try:
        for n in range(50):  # what the first streams cost once
            await _opened(channels, open_streams, n)
        before = await memory()
        for n in range(50, 50 + IDLE):
            await _opened(channels, open_streams, n)
        await asyncio.sleep(2)
        figure("memory of an idle subscription on shared connections", (await memory() - before) / IDLE / 1024, 40, "KB")
    finally:
        child.stdin.close()
        await child.wait()
        for stream in open_streams:
            with contextlib.suppress(Fault):
                await stream.aclose()
        for channel in channels:
            await channel.close()


async def _opened(channels: list[rpc.Channel], into: list[Any], number: int) -> None:
    stub = channels[number % len(channels)].stub(MessageServiceStub)
    stream: Any = stub.Subscribe(message_service_pb2.SubscribeRequest(), metadata=(("number", str(number)),))
    into.append(stream)
    assert (await anext(stream)).kind == event_pb2.Event.SUBSCRIBED


async def agent() -> None:
    """CPU of an agent under 1,000 watch events a second, from the object's dict to the broker's ack."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates = Certificates(folder / "certificates")
        certificates.renew()
        server = NatsServer.create(folder, certificates, Ports(documented=False).take("bench-nats"))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(parts.running(nats_server_part(server)))
            bus = await Bus.connect(server.url, name="gateway", tls=server.tls(), nkey_seed_file=server.seed_file())
            stack.push_async_callback(bus.close)
            await bus.ensure_stream(streams.cluster("bench"))
            figure("agent under 1,000 watch events/s: CPU", await _observing(bus), 0.25, "cores")


async def _observing(bus: Bus) -> float:
    store = Store()
    feed = Feed(PODS, store, epoch="e", limit=5000)
    publisher = Publisher(
        bus, cluster_uid="bench", rate=Rate(5000), clock=SystemClock(), registry=CollectorRegistry(), size=Rate(50.0 * 1024 * 1024)
    )
    publishing = asyncio.create_task(publisher.run(feed), name="publisher")
    await feed.take(LISTED)
    shrink = trim(PODS)
    cpu, started = time.process_time(), time.perf_counter()
    for i in range(1000 * SECONDS):
        if i % 10 == 0:
            await asyncio.sleep(max(0.0, started + i / 1000 - time.perf_counter()))
        change = store.put(shrink(_pod(i)))
        if change is not None:
            await feed.take(change)
    while len(feed):
        await asyncio.sleep(0.01)
    used = (time.process_time() - cpu) / (time.perf_counter() - started)
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)
    return used


def _pod(number: int) -> dict[str, Any]:
    """A pod as the API server sends it, much shortened."""
    return {
        "metadata": {
            "name": f"web-{number % 2000}", "namespace": "acme", "uid": "u", "resourceVersion": str(number),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web", "pod-template-hash": "5d4f8c7b9"},
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "web"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{"ready": True, "restartCount": 0, "state": {}}]},
    }  # fmt: skip


async def together() -> None:
    """CPU of an event from msgbus' handler over mTLS through the gateway's forwarding to its bytes as SSE: 20 at once / one by one."""
    with tempfile.TemporaryDirectory() as name:
        certificates = Certificates(Path(name))
        certificates.renew()
        costs = [await _forwarded(certificates, size) for size in (20, 1, 20, 1, 20, 1)]
        figure("CPU of a forwarded event, 20 at once against one by one", sum(costs[::2]) / sum(costs[1::2]), 0.6, "times")


async def _forwarded(certificates: Certificates, size: int) -> float:
    """Seconds of CPU for 10,000 events of a stream that has so many at once; server, gateway and encoding in this process."""
    event = Event(
        kind=Event.CHANGE, change=event_pb2.Change(resource="pods", object="web-1", labels={"app": "web"}, columns={"phase": "Running"})
    )

    class Busy:
        """Has always something."""

        async def Subscribe(self, request: Any, call: Call) -> AsyncIterator[list[bytes]]:
            for _ in range(10_000 // size):
                yield [event.SerializeToString()] * size

    service = message_service_pb2.DESCRIPTOR.services_by_name["MessageService"]
    descriptor = service.methods_by_name["Subscribe"]

    async def anyone(call: Call) -> Caller:
        return Caller(Kind.USER, "dev")

    async def granted(call: Call, request: object) -> None:
        """Whoever asks."""

    pipeline = rpc.Pipeline([bind(descriptor, Busy().Subscribe)], authenticate=anyone, authorise=granted, registry=CollectorRegistry())
    server = rpc.Server(pipeline)
    inner, outer = (rpc.Tls(certificates.certificate(of), certificates.key(of), certificates.ca) for of in ("msgbus", "gateway"))
    port = server.listen("127.0.0.1:0", inner, require_client=True)
    await server.start()
    channel, key = rpc.Channel(f"127.0.0.1:{port}", "msgbus", outer), SigningKey.generate("k")
    forwarded = next(m for m in forward(service, channel, lambda: key, SystemClock()) if m.descriptor.name == "Subscribe")
    call = Call(forwarded, caller=Caller(Kind.USER, "dev"))
    cpu, seen = time.process_time(), 0
    items = cast("AsyncGenerator[Any, None]", forwarded.handler(message_service_pb2.SubscribeRequest(), call))
    async with aclosing(streams_of.chunks(items, Event, streams_of.SSE_FORM)) as chunks:
        async for chunk in chunks:
            seen += chunk.count(b"data: ")
    assert seen == 10_000, "no event is lost"
    used = time.process_time() - cpu
    await channel.close()
    await server.drain(0.1)
    return used


PARTS: dict[str, Callable[[], Any]] = {
    "fan-out": fan_out,
    "adding": adding,
    "idle": idle,
    "together": together,
    "agent": agent,
    "serve": serve,
}
_MOST_SECONDS = {"fan-out": 120, "adding": 60, "idle": 120, "together": 60, "agent": 60}


def main() -> int:
    """Each part in a process of its own, so that none weighs on the next, and none for ever; or the one named."""
    if sys.argv[1:]:
        made = PARTS[sys.argv[1]]()
        if made is not None:
            asyncio.run(made)
        return 0
    failed = 0
    for name, seconds in _MOST_SECONDS.items():
        print(f"push: {name}, {seconds} s at most", file=sys.stderr, flush=True)
        try:
            failed |= subprocess.run([sys.executable, __file__, name], check=False, timeout=seconds).returncode != 0
        except subprocess.TimeoutExpired:
            print(f"push: {name} did not end in {seconds} s", file=sys.stderr, flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
