"""The story: users place, cancel and retry jobs while everything dies; then the oracle reads what is left."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from libs.faults import Fault
from libs.jobs import store
from libs.jobs.domain import Order
from tests.chaos.jobs.kinds import PATIENT, POISON_ATTEMPTS, STEPS
from tests.chaos.jobs.rig import Rig, settled

_KINDS = ("quick", "quick", "quick", "slow", "flaky", "flaky", "doomed", "poison", "keyed", "keyed", "steps")


@dataclass
class Story:
    """What was asked for and acknowledged.

    Attributes:
        placed: idempotency key → job, for each order that was acknowledged.
        cancelled: jobs whose cancel was acknowledged.
        retried: jobs whose retry was acknowledged.
    """

    rig: Rig
    count: int
    strikes: int
    placed: dict[str, uuid.UUID] = field(default_factory=dict)
    forbidden: set[uuid.UUID] = field(default_factory=set)
    cancelled: set[uuid.UUID] = field(default_factory=set)
    retried: set[uuid.UUID] = field(default_factory=set)

    async def insist(self, work: Any) -> Any:
        """Asks until there is an answer: a commit whose answer was lost is asked for again."""
        assert self.rig.database is not None
        while True:
            try:
                async with self.rig.database.transaction() as tx:
                    return await work(tx)
            except Fault:
                await asyncio.sleep(0.2)

    async def place(self) -> None:
        """Users place orders in bursts, each under a key, until each is acknowledged."""
        rng = random.Random(f"story {self.count}")
        for number in range(self.count):
            kind = rng.choice(_KINDS)
            mallory = rng.random() < 0.02
            order = Order(
                kind=kind, target=f"tenants/{rng.choice('abcd')}", creator="users/mallory" if mallory else "users/dev",
                max_attempts=POISON_ATTEMPTS if kind == "poison" else PATIENT, idempotency_key=f"order {number}",
                concurrency_key=f"release {rng.randrange(5)}" if kind == "keyed" else None, priority=rng.randrange(3),
            )  # fmt: skip
            made = await self.insist(lambda tx, order=order: store.enqueue(tx, order))
            self.placed[f"order {number}"] = made.job.id
            if mallory:
                self.forbidden.add(made.job.id)
            while number / self.count > (len(self.rig.deaths) + 1) / self.strikes:  # there is work under way at every strike
                await asyncio.sleep(0.05)
            if rng.random() < 0.08:
                await self.cancel(rng.choice(list(self.placed.values())))
            if rng.random() < 0.04:
                await self.retry(rng.choice(list(self.placed.values())))

    async def cancel(self, job: uuid.UUID) -> None:
        """A user cancels; None means that it had ended."""
        if await self.insist(lambda tx: store.cancel(tx, job)) is not None:
            self.cancelled.add(job)

    async def retry(self, job: uuid.UUID) -> None:
        """A user retries; None means that there was nothing to retry."""
        if await self.insist(lambda tx: store.again(tx, job)) is not None:
            self.retried.add(job)

    async def run(self) -> None:
        """Places all, while strike follows strike."""

        async def struck() -> None:
            for _ in range(self.strikes):
                await asyncio.sleep(self.rig.rng.uniform(0.3, 2.0))
                await self.rig.strike()

        async with asyncio.TaskGroup() as group:
            group.create_task(self.place(), name="place")
            group.create_task(struck(), name="strikes")
        await self.rig.right_clock()
        await self.insist(lambda tx: tx.execute("UPDATE jobs.schedules SET disabled = true"))

    async def counts(self) -> dict[str, int]:
        """Jobs by state."""
        rows = await self.insist(lambda tx: tx.rows("SELECT state, count(*) AS n FROM jobs.jobs GROUP BY state"))
        return {row["state"]: row["n"] for row in rows}

    async def end(self, within: float) -> dict[str, int]:
        """Waits until nothing waits or runs any more."""
        deadline = time.monotonic() + within
        while not settled(counts := await self.counts()):
            assert time.monotonic() < deadline, f"stuck: {counts}; {await self.stuck()}; struck: {self.rig.deaths}"
            await asyncio.sleep(0.5)
        return counts

    async def stuck(self) -> list[dict[str, Any]]:
        """Some of what does not end."""
        sql = """SELECT id, kind, state, waits, attempts, dispatch, dispatch_time, lease_time, run_time, cancel,
                        concurrency_key, now() AS now
                   FROM jobs.jobs WHERE state IN ('QUEUED', 'RUNNING') LIMIT 5"""
        return [dict(row.items()) for row in await self.insist(lambda tx: tx.rows(sql))]

    async def check(self) -> Counter[str]:
        """The oracle: nothing is lost, each effect is there exactly when it should be, each end is right."""
        jobs = {row["id"]: row for row in await self.insist(lambda tx: tx.rows("SELECT * FROM jobs.jobs"))}
        effects = Counter((row["job"], row["step"]) for row in await self.insist(lambda tx: tx.rows("SELECT job, step FROM chaos.effects")))
        won = Counter(
            row["job"] for row in await self.insist(lambda tx: tx.rows("SELECT job FROM jobs.claims WHERE outcome = 'SUCCEEDED'"))
        )
        ticks = {id_ for id_, row in jobs.items() if row["kind"] == "tick"}
        assert set(self.placed.values()) == set(jobs) - ticks, "acknowledged orders = jobs"
        fired = await self.insist(lambda tx: tx.value("SELECT sum(jobs) FROM jobs.firings WHERE outcome = 'STARTED'"))
        assert len(ticks) == fired > 0, f"the schedule's jobs = those of its history: {len(ticks)}, {fired}"
        assert len(set(self.placed.values())) == self.count, "each order once"
        wrong = [str(row["id"]) + ": " + told for row in jobs.values() if (told := self._wrong(row, effects, won[row["id"]]))]
        assert not wrong, "\n".join(wrong[:20]) + f"\nstruck: {self.rig.deaths}"
        assert not await self.insist(lambda tx: tx.value("SELECT count(*) FROM chaos.holders")), "two held one concurrency key"
        return Counter(row["state"] for row in jobs.values())

    def _wrong(self, row: Any, effects: Counter[tuple[uuid.UUID, str]], won: int) -> str:  # noqa: PLR0911 -- one line per rule
        """What is wrong with a job; empty for nothing."""
        job, state, kind = row["id"], row["state"], row["kind"]
        steps = STEPS if kind == "steps" else ("",)
        found = [effects[job, step] for step in steps]
        if max(found) > 1:
            return f"{kind} {state}: effects {found}"
        if won > 1 or (state == "SUCCEEDED") != (won == 1):
            return f"{kind} {state}: {won} claims succeeded"
        if state == "SUCCEEDED" and min(found) == 0:
            return f"{kind} SUCCEEDED: effects {found}"
        if state != "SUCCEEDED" and kind != "steps" and max(found):
            return f"{kind} {state}: effects {found}"
        if state == "CANCELLED":
            return "" if job in self.cancelled else f"{kind} CANCELLED: nobody asked for it"
        if job in self.forbidden:
            return "" if (state, row["reason"]) == ("FAILED", "FORBIDDEN") else f"{kind} {state} {row['reason']}: was forbidden"
        expected = {"doomed": {"FAILED"}, "poison": {"DEAD"}}.get(kind, {"SUCCEEDED"})
        if job in self.cancelled and kind in ("doomed", "poison") and job not in self.retried:
            return f"{kind} {state}: its cancel was acknowledged and it never succeeded"
        return "" if state in expected else f"{kind} {state} {row['reason']} after {row['attempts']} attempts: {row['error']}"
