"""What is done to the link, each drawn from the round's seed and over when it returns."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from tests.chaos.link.network import AGENTS, HUB
from tests.chaos.link.rig import CERTIFICATE_SECONDS, SECOND, Rig
from tests.kit.eventually import eventually, timescale
from tests.kit.freeze import frozen

PARTS = ("agent", "gateway", SECOND, "nats", "postgresql")
LINKS = ("delay", "stall", "half-open", "cut")
NAMES = (*LINKS, "expire", "hang", "freeze postgresql", *(f"kill {part}" for part in PARTS))
STORES = frozenset({"kill postgresql", "freeze postgresql"})  # while it is away, nobody can hear of a revoked right
UNKNOWN_SECONDS = 5.0  # that a stream may go on while nobody can tell whether it may


class Actions:
    """The strikes by name; a deck of all comes before any comes again.

    Args:
        rig: what is struck.
        seed: draws.
        streams: which streams of users are open.
    """

    def __init__(self, rig: Rig, seed: str, streams: Callable[[], list[str]]) -> None:
        self._rig, self._seed, self._streams = rig, seed, streams

    def drawn(self, number: int) -> tuple[str, ...]:
        """The strike of a round, and for every other one of a part what is done to the link meanwhile."""
        deck, place = divmod(number, len(NAMES))
        rng = random.Random(f"{self._seed} deck {deck}")
        name = rng.sample(NAMES, len(NAMES))[place]
        others = [rng.choice(("", "", *LINKS, *LINKS[2:])) for _ in NAMES]
        return (name, others[place]) if " " in name and others[place] else (name,)

    async def strike(self, names: tuple[str, ...], rng: random.Random) -> str:
        """Does it; what exactly was done."""
        draws = [random.Random(rng.random()) for _ in names]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(*drawn), name=drawn[0]) for drawn in zip(names, draws, strict=True)]
        return " and ".join(task.result() for task in tasks)

    async def _one(self, name: str, rng: random.Random) -> str:
        verb, _, what = name.partition(" ")
        done: str = await getattr(self, f"_{verb.replace('-', '_')}")(rng, what)
        return f"{name}: {done}"

    async def _delay(self, rng: random.Random, _: str) -> str:
        relay = self._rig.relay
        relay.delay = rng.uniform(0.05, 0.4)
        await asyncio.sleep(rng.uniform(2, 5))
        told = f"{relay.delay * 1000:.0f} ms each way"
        relay.delay = 0.0
        return told

    async def _stall(self, rng: random.Random, _: str) -> str:
        """Shorter or longer than a ping may take."""
        seconds = rng.choice([rng.uniform(1, 4), rng.uniform(9, 13)])
        self._rig.relay.stall()
        await asyncio.sleep(seconds)
        self._rig.relay.flow()
        return f"{seconds:.1f} s"

    async def _half_open(self, rng: random.Random, _: str) -> str:
        """Packets are lost silently, on either side or both, for less or more than both ends' patience."""
        cables = rng.choice([(AGENTS,), (HUB,), (AGENTS, HUB)])
        seconds = rng.choice([rng.uniform(2, 5), rng.uniform(10, 14)])
        await self._rig.relay.unplug(*cables)
        await asyncio.sleep(seconds)
        await self._rig.relay.plug()
        return f"{' and '.join(cables)} {seconds:.1f} s"

    async def _cut(self, rng: random.Random, _: str) -> str:
        """All connections are reset, some times over; new ones are refused for a while."""
        relay, count, times = self._rig.relay, 0, rng.randint(1, 4)
        for _turn in range(times):
            count += relay.cut()
            await asyncio.sleep(rng.uniform(0.1, 1.5))
        relay.refused = set(relay.ports)
        relay.cut()
        await asyncio.sleep(rng.uniform(0, 3))
        relay.refused = set()
        return f"{times} times, {count} connections"

    async def _expire(self, rng: random.Random, _: str) -> str:
        """No renewal comes through until the certificate has ended and the hub has let its tunnel go."""
        relay = self._rig.relay
        relay.refused = {"enrolment"}
        relay.cut("enrolment")
        try:
            await eventually(self._let_go, within=CERTIFICATE_SECONDS + 15, every=0.3, what="certificate expired")
            await asyncio.sleep(rng.uniform(0, 2))
        finally:
            relay.refused = set()
        return "the tunnel ended with its certificate"

    async def _let_go(self) -> bool:
        return not await self._rig.holders()

    async def _hang(self, rng: random.Random, _: str) -> str:
        """The gateway that holds the tunnel stands still for longer than a ping may take: the agent goes to the other one."""
        (holder,) = await eventually(self._rig.holders, within=30, every=0.3)
        (other,) = set(self._rig.gateways) - {holder}
        self._rig.doors.close(holder)
        self._rig.freeze(holder, on=True)
        try:
            await eventually(lambda: self._rig.holders(other), within=10, every=0.2, what=f"{other} took over")
            await asyncio.sleep(rng.uniform(0, 3))
        finally:
            self._rig.freeze(holder, on=False)
            self._rig.doors.closed = set()
        return f"{holder}, {other} took over"

    async def _freeze(self, rng: random.Random, part: str) -> str:
        """A store stands still for longer than rights may be believed: no stream outlives that, whosever it is."""
        before = len(self._streams())
        with frozen(self._rig.platform.pid(part)):
            await asyncio.sleep(UNKNOWN_SECONDS * timescale())
            left = self._streams()
            assert not left, f"{left} go on while nobody can tell whether they may"
            await asyncio.sleep(rng.uniform(0, 5))
        return f"{before} streams ended"

    async def _kill(self, rng: random.Random, part: str) -> str:
        pid = self._rig.kill(part)
        await self._rig.platform.back(part, other_than=pid, within=90)
        return f"pid {pid}"
