"""Two msgbus processes behind one channel, with a real NATS that can lose its tail, and doubles for gateway and cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_DNS, uuid4, uuid5

from prometheus_client import CollectorRegistry

from deploy.local import part as parts
from deploy.local.certificates import Certificates
from deploy.local.part import Part, until_open
from deploy.local.ports import Ports
from deploy.local.process import Command, Process
from kubegems.fleet.v1 import cluster_access_service_pb2 as fleet
from kubegems.identity.v1 import access_service_pb2 as access
from kubegems.messages.v1 import announcement_service_pb2, event_pb2, inbox_service_pb2, message_service_pb2
from libs import rpc
from libs.bus import Bus, streams, subjects
from libs.clock import SystemClock, new_id
from libs.crypt.signing import SigningKey
from libs.faults import Fault
from libs.kube import Change, Resource, Store
from libs.kube.resources import CONFIG_MAPS, PODS
from libs.kube.store import LISTED
from libs.rpc.batches import each
from libs.rpc.call import Call, Caller, Kind, Method, Scopes
from libs.rpc.forward import forward
from services.agent.app import _on_interest
from services.agent.observed.observation import Observation
from services.agent.observed.publisher import Publisher, Rate
from tests.kit.nats import NatsServer, nats_server_part

UID = "0197a1b2-0000-7000-8000-000000000001"
ACME = access.GrantedScope(name="tenants/acme/projects/shop/environments/dev", cluster_uid=UID, namespace="acme", cluster="clusters/local")
GLOBEX = access.GrantedScope(
    name="tenants/globex/projects/x/environments/dev", cluster_uid=UID, namespace="globex", cluster="clusters/local"
)
_Snapshot = access.WatchGrantsResponse.SNAPSHOT
Object = dict[str, Any]


class Rights:
    """A caller that may do what the gateway has let through."""

    def scopes(self, permission: str) -> Scopes:
        """Everywhere, for `admin`'s lists."""
        return Scopes(everything=False, exact=frozenset({""}))


class Hub:
    """Gateway's internal services, as a test tells them to answer."""

    def __init__(self, key: SigningKey) -> None:
        self.key = key
        self.grants: dict[str, access.WatchGrantsResponse] = {}
        self.ended: set[str] = set()
        self.watches: dict[str, dict[tuple[str, str], access.WatchGrantsResponse | None]] = {}
        self.changed = asyncio.Event()
        self.interest: dict[str, dict[str, list[str]]] = {}
        self.online = True
        self.asked: list[str] = []

    def grant(self, user: str, *scopes: access.GrantedScope, everything: bool = False, audiences: tuple[str, ...] = ()) -> None:
        """What a user may see from now on."""
        message = access.WatchGrantsResponse(
            kind=_Snapshot, everything=everything, scopes=scopes, audiences=[f"users/{user}", "platform", *audiences]
        )
        self.grants[user] = message
        self._stir()

    @property
    def wanted(self) -> set[str]:
        """Kinds that someone watches."""
        return {resource for clusters in self.interest.values() for resource in clusters.get(UID, ())}

    async def ListCallerKeys(self, request: Any, call: Call) -> access.ListCallerKeysResponse:
        """The one key."""
        return access.ListCallerKeysResponse(keys=[access.CallerKey(kid=self.key.kid, public_key=self.key.public)])

    async def CheckAccess(self, request: Any, call: Call) -> access.CheckAccessResponse:
        """Yes."""
        return access.CheckAccessResponse(allowed=True)

    async def ListAudiences(self, request: access.ListAudiencesRequest, call: Call) -> access.ListAudiencesResponse:
        """Those of the grants."""
        return access.ListAudiencesResponse(audiences=self.grants[request.username].audiences)

    async def WatchGrants(self, request: Any, call: Call) -> AsyncIterator[access.WatchGrantsResponse]:
        """Nobody asks for one session."""
        raise NotImplementedError
        yield

    async def WatchSessions(self, request: Any, call: Call) -> AsyncIterator[access.WatchSessionsResponse]:
        """What `grant` said of the sessions of a watch, at once and at each change."""
        name = new_id().hex
        told = self.watches.setdefault(name, {})
        yield access.WatchSessionsResponse(watch=name)
        while True:
            changed = self.changed
            message = access.WatchSessionsResponse()
            for key, last in list(told.items()):
                now = self.grants.get(key[0])
                if key[0] in self.ended:
                    message.sessions.append(_said(key, access.WatchGrantsResponse(kind=access.WatchGrantsResponse.ENDED)))
                    del told[key]
                elif now is not None and now is not last:
                    told[key] = now
                    message.sessions.append(_said(key, now))
            yield message
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await changed.wait()

    async def UpdateWatch(self, request: access.UpdateWatchRequest, call: Call) -> access.UpdateWatchResponse:
        """Other sessions."""
        watch = self.watches[request.watch]
        for one in request.remove:
            watch.pop((one.username, one.session), None)
        watch.update({(one.username, one.session): None for one in request.add})
        self._stir()
        return access.UpdateWatchResponse()

    def _stir(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def ListLinks(self, request: Any, call: Call) -> fleet.ListLinksResponse:
        """The one cluster."""
        return fleet.ListLinksResponse(links=[fleet.ListLinksResponse.Link(cluster="clusters/local", uid=UID, online=self.online)])

    async def ReportInterest(self, request: fleet.ReportInterestRequest, call: Call) -> fleet.ReportInterestResponse:
        """Keeps it."""
        self.interest[request.replica] = {one.cluster_uid: list(one.resources) for one in request.clusters}
        return fleet.ReportInterestResponse()

    async def CountInventory(self, request: Any, call: Call) -> fleet.CountInventoryResponse:
        """Nothing."""
        return fleet.CountInventoryResponse()

    async def LocateEnvironment(self, request: Any, call: Call) -> fleet.LocateEnvironmentResponse:
        """Nowhere."""
        return fleet.LocateEnvironmentResponse()

    async def RequestKubernetes(self, request: fleet.RequestKubernetesRequest, call: Call) -> fleet.RequestKubernetesResponse:
        """Says who asked for what."""
        self.asked.append(f"{request.username} {request.path}")
        body = b'{"metadata":{"name":"it","managedFields":[]},"data":{"a":"b"}}'
        return fleet.RequestKubernetesResponse(status=200, body=body)


class _Reflector:
    """A copy that a test changes."""

    def __init__(self) -> None:
        self.store = Store()
        self.problem = None

    async def run(self) -> None:
        """Does nothing, for ever."""
        await asyncio.Event().wait()


class _Observer:
    """Keeps reflectors and listeners, as the agent's."""

    def __init__(self) -> None:
        self.reflectors: dict[Resource, _Reflector] = {}
        self.listeners: dict[Resource, list[Any]] = {}

    def add(self, kind: Resource) -> _Reflector:
        """A fresh copy."""
        self.reflectors[kind] = _Reflector()
        return self.reflectors[kind]

    def remove(self, kind: Resource) -> None:
        """Forgets it."""
        del self.reflectors[kind]
        self.listeners.pop(kind, None)

    def listen(self, kind: Resource, listener: Any) -> None:
        """Who hears."""
        self.listeners.setdefault(kind, []).append(listener)


class _Interest:
    """What pokes go to."""

    def poke(self, _traceparent: str = "") -> None:
        """Nothing to fetch."""


class Cluster:
    """An agent's observation of a cluster that a test makes up: real feeds, publisher, watermarks and answers to hints."""

    def __init__(self, bus: Bus, spawn: Callable[[str, Any], asyncio.Task[None]]) -> None:
        self.observer = _Observer()
        self.objects: dict[Resource, dict[tuple[str, str], Object]] = {}
        self.version = 0
        self._bus, self._spawn = bus, spawn
        self._tasks: list[asyncio.Task[None]] = []
        self.start()

    def start(self, *kinds: Resource) -> None:
        """A new agent process: a new epoch, everything listed afresh."""

        def spawn(name: str, work: Any) -> asyncio.Task[None]:
            self._tasks.append(self._spawn(name, work))
            return self._tasks[-1]

        publisher = Publisher(self._bus, cluster_uid=UID, rate=Rate(5000), clock=SystemClock(), registry=CollectorRegistry(), max_delay=0.5)
        self.observation = Observation(self.observer, publisher, spawn=spawn, epoch=new_id().hex, limit=2000)  # type: ignore[arg-type]
        spawn("watermarks", publisher.watermarks(self.observation.watermark, 0.5))
        spawn("hints", _on_interest(self._bus.subscribe(subjects.interest(UID)), _Interest(), self.observation))  # type: ignore[arg-type]

    async def kill(self) -> None:
        """The agent dies; the cluster goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        self.observer = _Observer()

    async def observe(self, kind: Resource) -> None:
        """Lists and follows a kind."""
        self.observation.start(kind)
        for found in self.objects.get(kind, {}).values():
            await self._tell(kind, self.observer.reflectors[kind].store.put(found))
        await self._tell(kind, LISTED)

    def stop(self, kind: Resource) -> None:
        """Nobody watches it any more."""
        self.observation.stop(kind)

    async def put(self, namespace: str, name: str, kind: Resource = PODS, **labels: str) -> None:
        """An object is made or changed."""
        self.version += 1
        objects = self.objects.setdefault(kind, {})
        uid = objects[namespace, name]["metadata"]["uid"] if (namespace, name) in objects else str(uuid4())
        metadata = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(self.version), "labels": labels}
        objects[namespace, name] = {"metadata": metadata, "columns": {"phase": f"v{self.version}"}}
        if kind in self.observer.reflectors:
            await self._tell(kind, self.observer.reflectors[kind].store.put(objects[namespace, name]))

    async def delete(self, namespace: str, name: str, kind: Resource = PODS) -> None:
        """An object goes."""
        self.version += 1
        self.objects.get(kind, {}).pop((namespace, name), None)
        if kind in self.observer.reflectors:
            await self._tell(kind, self.observer.reflectors[kind].store.remove((namespace, name)))

    async def _tell(self, kind: Resource, change: Change | None) -> None:
        if change is not None:
            for listener in self.observer.listeners.get(kind, ()):
                await listener(change)

    def listed(self, kind: Resource = PODS, *namespaces: str) -> dict[tuple[str, str], str]:
        """What the cluster's own list says: resource version by (namespace, name)."""
        found = self.objects.get(kind, {})
        return {key: o["metadata"]["resourceVersion"] for key, o in found.items() if not namespaces or key[0] in namespaces}

    async def churn(self, rng: random.Random, changes: int, namespaces: tuple[str, ...] = ("acme", "globex"), every: float = 0.0) -> None:
        """Random changes of a few objects."""
        for _ in range(changes):
            namespace, name = rng.choice(namespaces), f"p{rng.randrange(30)}"
            if rng.random() < 0.3:
                await self.delete(namespace, name)
            else:
                await self.put(namespace, name)
            await asyncio.sleep(every)


def _said(key: tuple[str, str], grants: access.WatchGrantsResponse) -> access.SessionGrants:
    """What is told of a session."""
    said = access.SessionGrants(of=access.WatchGrantsRequest(username=key[0], session=key[1]), grants=grants)
    if grants.kind == _Snapshot:
        said.grants.change_time.GetCurrentTime()
    return said


@dataclass
class Viewer:
    """A subscriber as a careful client is one: keeps a view, resumes by token after a break, lists again at RESYNC."""

    rig: Rig
    user: str
    request: dict[str, Any]
    view: dict[tuple[str, str], str] = field(default_factory=dict)
    token: str = ""
    resyncs: list[str] = field(default_factory=list)
    kinds: list[Any] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    allowed: set[str] = field(default_factory=set)
    breaks: int = 0
    name: str = ""
    at: int | None = None

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self._follow()
            except Fault:
                self.breaks += 1
                await asyncio.sleep(0.1)

    async def _follow(self) -> None:
        fresh: dict[tuple[str, str], str] | None = None if self.token else {}
        asked = message_service_pb2.SubscribeRequest(snapshot=not self.token, resume_token=self.token, **self.request)
        async with aclosing(self.rig.subscribe(self.user, asked, self.at)) as events:
            async for event in events:
                self.kinds.append(event.kind)
                self.name = event.subscription or self.name
                if event.kind == event_pb2.Event.RESYNC:
                    self.resyncs.append(event.resync.reason)
                    self.token = ""
                    return  # what was skipped is seen by listing again
                if event.kind == event_pb2.Event.SNAPSHOT_END and fresh is not None:
                    self.view, fresh = fresh, None
                if event.kind == event_pb2.Event.CHANGE:
                    self._take(event.change, self.view if fresh is None else fresh)
                if event.kind == event_pb2.Event.SCOPE_REVOKED:
                    self._revoked(event.scope)
                if fresh is None and event.resume_token:
                    self.token = event.resume_token

    def _take(self, change: event_pb2.Change, into: dict[tuple[str, str], str]) -> None:
        if self.allowed and change.namespace not in self.allowed:
            self.foreign.append(f"{change.namespace}/{change.object}")
        key = (change.namespace, change.object)
        if change.verb == event_pb2.Change.DELETED:
            into.pop(key, None)
        else:
            into[key] = change.resource_version

    def _revoked(self, scope: str) -> None:
        namespace = {ACME.name: "acme", GLOBEX.name: "globex"}.get(scope)
        self.view = {key: version for key, version in self.view.items() if key[0] != namespace}


@dataclass
class Rig:
    """Everything around two replicas."""

    folder: Path
    certificates: Certificates
    nats: NatsServer
    hub: Hub
    bus: Bus
    cluster: Cluster
    channel: rpc.Channel
    methods: dict[str, Method]
    direct: list[dict[str, Method]]
    replicas: list[Process | None]
    parts: list[Part]
    nats_process: Process
    ports: list[int]

    def viewer(self, user: str, **request: Any) -> Viewer:
        """A subscriber that is not yet running."""
        return Viewer(self, user, request)

    @contextlib.asynccontextmanager
    async def viewing(self, *viewers: Viewer) -> AsyncIterator[None]:
        """Runs subscribers for the length of a block."""
        tasks = [asyncio.create_task(v.run(), name=f"viewer {v.user}") for v in viewers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(ended, asyncio.CancelledError), ended

    async def subscribe(
        self, user: str, asked: message_service_pb2.SubscribeRequest, at: int | None = None
    ) -> AsyncGenerator[event_pb2.Event, None]:
        """A stream through the channel to whichever replica, or to the one `at` a place."""
        method = (self.methods if at is None else self.direct[at])["Subscribe"]
        async with aclosing(method.handler(asked, self.call(method, user))) as items:  # type: ignore[type-var]
            async for item in items:  # type: ignore[union-attr]
                for raw in each(item):
                    yield event_pb2.Event.FromString(raw)

    async def ask(self, rpc_name: str, request: Any, user: str = "dev") -> Any:
        """A unary call through the channel."""
        method = self.methods[rpc_name]
        raw = await method.handler(request, self.call(method, user))  # type: ignore[misc]
        return method.response_class.FromString(raw)

    def call(self, method: Method, user: str) -> Call:
        """A call of a signed-in user."""
        return Call(
            method, caller=Caller(Kind.USER, user, str(uuid5(NAMESPACE_DNS, user)), f"session-{user}", Rights()), request_id=uuid4().hex
        )

    async def kill_replica(self, index: int) -> None:
        """kill -9."""
        process = self.replicas[index]
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        self.replicas[index] = None

    async def start_replica(self, index: int) -> None:
        """Starts it (again)."""
        self.replicas[index] = await parts.start(self.parts[index])

    async def kill_nats(self) -> None:
        """kill -9."""
        os.kill(self.nats_process.pid, signal.SIGKILL)
        await self.nats_process.wait()

    async def start_nats(self) -> None:
        """Starts it (again), on the store as it lies there."""
        self.nats_process = await parts.start(nats_server_part(self.nats))

    def keep_store(self) -> Path:
        """A copy of the broker's store as it lies on the disk now: what an unsynced tail falls back to."""
        kept = self.folder / f"store-{new_id().hex}"
        shutil.copytree(self.nats.server.folder / "store", kept, ignore_dangling_symlinks=True)
        return kept

    def restore(self, kept: Path) -> None:
        """Puts an earlier store in place of the one that a killed broker left."""
        shutil.rmtree(self.nats.server.folder / "store")
        shutil.copytree(kept, self.nats.server.folder / "store")


@contextlib.asynccontextmanager
async def rig(folder: Path, certificates: Certificates, ports: Ports, dsn: str) -> AsyncIterator[Rig]:
    """Builds all of it."""
    async with contextlib.AsyncExitStack() as stack:
        tasks: set[asyncio.Task[None]] = set()

        def spawn(name: str, work: Any) -> asyncio.Task[None]:
            task = asyncio.create_task(work, name=name)
            tasks.add(task)
            return task

        nats = NatsServer.create(folder, certificates, ports.take("push-nats"))
        await nats_server_part(nats).prepare()
        process = await parts.start(nats_server_part(nats))
        bus = await Bus.connect(nats.url, name="gateway", tls=nats.tls(), nkey_seed_file=nats.seed_file())
        stack.push_async_callback(bus.close)
        for stream in (*streams.HUB, streams.cluster(UID)):
            await bus.ensure_stream(stream)
        tls = rpc.Tls(*nats.tls())
        hub = Hub(SigningKey.generate("k1"))
        gateway = await _gateway(hub, tls)
        stack.push_async_callback(gateway[0].drain, 0.1)
        cluster = Cluster(bus, spawn)
        addresses = [ports.take(f"push-msgbus-{i}") for i in range(2)]
        (folder / "dsn").write_text(dsn)
        made = [_replica(folder, certificates, nats, i, addresses[i], ports.take(f"push-metrics-{i}"), gateway[1]) for i in range(2)]
        everywhere = [f"127.0.0.1:{port}" for port in addresses]
        channel, *single = [rpc.Channel(target, "msgbus", tls) for target in (",".join(everywhere), *everywhere)]
        for found in (channel, *single):
            stack.push_async_callback(found.close)
        files = (message_service_pb2, inbox_service_pb2, announcement_service_pb2)
        services = [s for file in files for s in file.DESCRIPTOR.services_by_name.values()]
        served, *direct = [
            {m.descriptor.name: m for s in services for m in forward(s, c, lambda: hub.key, SystemClock())} for c in (channel, *single)
        ]
        built = Rig(folder, certificates, nats, hub, bus, cluster, channel, served, direct, [None, None], made, process, addresses)
        try:
            await cluster.observe(PODS)
            await asyncio.gather(*(built.start_replica(i) for i in range(2)))
            yield built
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for running in (*built.replicas, built.nats_process):
                if running is not None:
                    await running.stop()


async def _gateway(hub: Hub, tls: rpc.Tls) -> tuple[rpc.Server, str]:
    found = (access.DESCRIPTOR, fleet.DESCRIPTOR)
    methods = [m for file in found for s in file.services_by_name.values() for m in rpc.methods(s, hub)]
    server = rpc.Server(rpc.Pipeline(methods, registry=CollectorRegistry()))
    port = server.listen("127.0.0.1:0", tls, require_client=True)
    await server.start()
    return server, f"127.0.0.1:{port}"


def _replica(  # noqa: PLR0917 -- what a process is told
    folder: Path, certificates: Certificates, nats: NatsServer, index: int, port: int, metrics: int, gateway: str
) -> Part:
    settings = {
        "DATABASE_URL_FILE": folder / "dsn",
        "RESUME_KEY_FILE": certificates.master_key,
        "NATS_URL": nats.url,
        "NATS_SEED_FILE": nats.seed_file("msgbus"),
        "CERTIFICATE_FILE": certificates.certificate("msgbus"),
        "KEY_FILE": certificates.key("msgbus"),
        "CA_FILE": certificates.ca,
        "GATEWAY_ADDRESS": gateway,
        "GRPC_ADDRESS": f"127.0.0.1:{port}",
        "METRICS_ADDRESS": f"127.0.0.1:{metrics}",
        "STREAMS_PER_USER": "20",
    }
    env = os.environ | {f"KUBEGEMS_MSGBUS_{name}": str(value) for name, value in settings.items()}

    def command() -> Command:
        return Command((sys.executable, "-m", "services.msgbus"), folder / f"msgbus-{index}.log", env)

    return Part(f"msgbus {index}", command, lambda: until_open(port))


__all__ = ["ACME", "CONFIG_MAPS", "GLOBEX", "PODS", "UID", "Rig", "Viewer", "rig"]
