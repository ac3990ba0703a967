"""What is done to the link, each drawn from the round's seed and over when it returns."""

from __future__ import annotations

import asyncio
import random

from tests.chaos.link.network import AGENTS, HUB
from tests.chaos.link.rig import CERTIFICATE_SECONDS, SECOND, Rig
from tests.kit.eventually import eventually

PARTS = ("agent", "gateway", SECOND, "nats", "postgresql")
STORES = frozenset({"kill postgresql"})  # while it is away, nobody can hear of a revoked right


class Actions:
    """The strikes by name; a deck of all comes before any comes again."""

    def __init__(self, rig: Rig, seed: str) -> None:
        self._rig, self._seed = rig, seed
        self.names = ["delay", "stall", "half-open", "cut", "expire", "hang", *(f"kill {part}" for part in PARTS)]

    def drawn(self, number: int) -> str:
        """The strike of a round."""
        deck, place = divmod(number, len(self.names))
        return random.Random(f"{self._seed} deck {deck}").sample(self.names, len(self.names))[place]

    async def strike(self, name: str, rng: random.Random) -> str:
        """Does it; what exactly was done."""
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
            await eventually(lambda: self._rig.holders(other), within=25, every=0.2, what=f"{other} took over")
            await asyncio.sleep(rng.uniform(0, 3))
        finally:
            self._rig.freeze(holder, on=False)
            self._rig.doors.closed = set()
        return f"{holder}, {other} took over"

    async def _kill(self, rng: random.Random, part: str) -> str:
        pid = self._rig.kill(part)
        await self._rig.platform.back(part, other_than=pid, within=90)
        return f"pid {pid}"
