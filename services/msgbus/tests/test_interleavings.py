"""Whatever crosses what: changes, rights, environments that come and go, breaks and resumes. The view is what may be seen."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from kubegems.agent.v1.events_pb2 import ObservedChange
from kubegems.messages.v1 import event_pb2
from kubegems.messages.v1.event_pb2 import Event
from libs.crypt.box import Box
from services.msgbus import resume
from services.msgbus.api import Messages
from services.msgbus.domain import Environment, Grants, Selection, Selector
from services.msgbus.hub import Hub, Subscription
from services.msgbus.stream import Stream
from services.msgbus.subscriber import Item, Queue
from services.msgbus.view import View

NAMESPACES = ("a", "b", "c")
OBJECTS = ("x", "y")
SCOPED, ALL = Selection((Selector(("tenants/t",)),)), Selection()
Key = tuple[str, str]


def environment(namespace: str, name: str) -> Environment:
    """The environment of a namespace; `o…` lies in another tenant than the one asked for."""
    tenant = "other" if name.startswith("o") else "t"
    return Environment(f"tenants/{tenant}/projects/p/environments/{name}", "clusters/local", "c1", namespace)


@dataclass
class World:
    """A cluster, the hub's tables, and two replicas that hear of both."""

    objects: dict[Key, int] = field(default_factory=dict)
    rows: dict[str, Environment] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    everything: bool = False
    counter: int = 0
    epoch: int = 0
    hubs: list[Hub] = field(default_factory=lambda: [Hub(View()), Hub(View())])

    def __post_init__(self) -> None:
        for hub in self.hubs:
            hub.clusters["c1"] = "clusters/local"
        self.listed()

    def change(self, verb: Any, key: Key = ("", ""), *, heard: bool = True) -> None:
        """Numbers a change and tells of it, unless it gets lost."""
        self.counter += 1
        change = ObservedChange(epoch=f"e{self.epoch}", counter=self.counter, verb=verb, resource="pods", namespace=key[0], name=key[1])
        change.resource_version = str(self.objects.get(key, ""))
        for hub in self.hubs if heard else ():
            hub.take("c1", change)

    def put(self, key: Key) -> None:
        self.objects[key] = self.objects.get(key, 0) + self.counter + 1
        self.change(ObservedChange.MODIFIED, key)

    def delete(self, key: Key, *, heard: bool = True) -> None:
        if self.objects.pop(key, None) is not None:
            self.change(ObservedChange.DELETED, key, heard=heard)

    def deleted_unheard(self, key: Key) -> None:
        self.delete(key, heard=False)

    def relist(self, _key: Key) -> None:
        self.listed()

    def restart(self, _key: Key) -> None:
        """A new agent."""
        self.epoch, self.counter = self.epoch + 1, 0
        self.listed()

    def begin(self, key: Key, name: str = "") -> None:
        """The namespace becomes an environment, and the user a member of it."""
        self.rows[key[0]] = environment(key[0], name or key[0])
        self.members.add(self.rows[key[0]].name)

    def begin_elsewhere(self, key: Key) -> None:
        self.begin(key, f"o{key[0]}")

    def end(self, key: Key) -> None:
        """The environment's row goes; its objects may be there for a while."""
        self.rows.pop(key[0], None)

    def leave(self, key: Key) -> None:
        self.members.discard(environment(key[0], key[0]).name)

    def everything_or_not(self, _key: Key) -> None:
        self.everything = not self.everything

    def listed(self) -> None:
        """As after a gap."""
        self.change(ObservedChange.LISTING)
        for key in self.objects:
            self.change(ObservedChange.ADDED, key)
        self.change(ObservedChange.LISTED)

    @property
    def grants(self) -> Grants:
        """What the gateway tells of the user now."""
        seen = [e for e in self.rows.values() if self.everything or e.name in self.members]
        return Grants(everything=self.everything, environments={e.place: e for e in seen})

    def shown(self, selection: Selection) -> dict[Key, int]:
        """What the user's view must hold: what it may see of what it asked for."""
        found = {}
        for key, version in self.objects.items():
            row = self.grants.environments.get(("c1", key[0]))
            wanted = selection == ALL or (row is not None and row.name.startswith("tenants/t/"))
            if wanted and (row is not None or self.everything):
                found[key] = version
        return found


class Client:
    """A careful client: resumes with its last token, drops what is revoked, lists again at RESYNC."""

    def __init__(self, world: World, selection: Selection) -> None:
        self.world, self.selection = world, selection
        self.view: dict[Key, tuple[int, str]] = {}
        self.token = ""
        self.fresh: dict[Key, tuple[int, str]] | None = None
        self.box = Box(b"k" * 32)
        self.connect(0)

    def connect(self, replica: int) -> None:
        """Subscribes, with the token if there is one."""
        self.hub = self.world.hubs[replica]
        self.messages = Messages(self.hub, cast("Any", None), self.box, queue_size=6, streams_per_user=9)
        subscription = Subscription("dev", self.selection, Queue(6), "r-1")
        past = resume.open_token(self.box, self.token, "dev", resume.selectors_hash(self.selection))
        self.stream = Stream(self.hub, subscription, snapshot=not self.token, past=past, resumed=bool(self.token))
        self.fresh = None if self.token else {}
        self.hub.open(subscription)
        self.stream.changed(self.world.grants)

    def leave(self) -> None:
        self.hub.remove(self.stream.subscription)

    async def read(self) -> None:
        """One batch, if there is something."""
        if not (self.stream._present or len(self.stream.subscription.queue)):
            return
        self.stream._token_at = -1e9
        async with asyncio.timeout(5):
            items = await self.stream.batch()
        token = self.messages._token(self.stream.subscription) if self.stream.due() else ""
        for item in items:
            if not self._take(item):
                return
        self.token = token if token and self.fresh is None else self.token

    async def read_all(self) -> None:
        while self.stream._present or len(self.stream.subscription.queue):
            await self.read()

    def _take(self, item: Item) -> bool:
        """Takes an event in; whether it goes on."""
        event = item.event
        into = self.view if self.fresh is None else self.fresh
        if event.kind == Event.RESYNC:
            self.token = ""
            self.leave()
            self.connect(self.world.hubs.index(self.hub))
            return False
        if event.kind == Event.SNAPSHOT_END and not event.scope and self.fresh is not None:
            self.view, self.fresh = self.fresh, None
        if event.kind == Event.SCOPE_REVOKED:
            for key in [key for key, (_, scope) in into.items() if scope == event.scope]:
                del into[key]
        if event.kind == Event.CHANGE:
            key = (event.change.namespace, event.change.object)
            if item.shown == event_pb2.Change.DELETED:
                into.pop(key, None)
            else:
                self.allowed(event.change)
                into[key] = (int(event.change.resource_version), event.change.environment)
        return True

    def allowed(self, change: event_pb2.Change) -> None:
        """Nothing outside of the rights, at any moment."""
        grants = self.world.grants
        assert grants.everything or ("c1", change.namespace) in grants.environments, change


class Story:
    """What happens, step by step."""

    def __init__(self, selection: Selection) -> None:
        self.world = World()
        self.client = Client(self.world, selection)
        self.away = False

    async def step(self, what: str, key: Key) -> None:
        if what in _WORLD:
            getattr(self.world, what)(key)
        elif what == "back" and self.away:
            self.away = False
            self.client.connect(OBJECTS.index(key[1]))
        elif what == "break" and not self.away:
            self.away = True
            self.client.leave()
        elif what == "read" and not self.away:
            await self.client.read()
        if not self.away:
            self.client.stream.changed(self.world.grants)

    async def end(self) -> None:
        if self.away:
            self.client.connect(1)
        self.world.listed()
        await self.client.read_all()
        assert {key: version for key, (version, _) in self.client.view.items()} == self.world.shown(self.client.selection)


_WORLD = ("put", "delete", "deleted_unheard", "relist", "restart", "begin", "begin_elsewhere", "end", "leave", "everything_or_not")
_STEPS = (*_WORLD, "put", "begin", "read", "read", "read", "break", "back")
steps = st.lists(st.tuples(st.sampled_from(_STEPS), st.tuples(st.sampled_from(NAMESPACES), st.sampled_from(OBJECTS))), max_size=40)
A, B = ("a", "x"), ("b", "x")


@pytest.mark.parametrize("selection", [SCOPED, ALL], ids=["scoped", "all"])
@settings(max_examples=300, deadline=None)
@given(steps)
@example([("everything_or_not", A), ("begin", A), ("put", A), ("read", A), ("end", A), ("delete", A)])
@example([("begin", A), ("put", A), ("read", A), ("break", A), ("end", A), ("delete", A)])
@example([("begin", B), ("put", A), ("read", A), ("break", A), ("begin", A), ("back", A)])
@example([("put", A), ("everything_or_not", A), ("put", A)])
@example([("put", A), ("begin", A), ("everything_or_not", A), ("read", A), ("end", A), ("everything_or_not", A)])
def test_a_view_ends_as_what_may_be_seen(selection: Selection, happens: list[tuple[str, Key]]) -> None:
    """However changes, ends of environments, rights, gaps, breaks and resumes cross: nothing stays that is gone or may not be seen."""

    async def run() -> None:
        note(f"{happens}")
        story = Story(selection)
        for what, key in happens:
            await story.step(what, key)
        await story.end()

    asyncio.run(run())
