"""Follower: brings the cluster to what the hub desires, on each hint, on connecting, and every few minutes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from libs import log
from libs.faults import Fault
from libs.log import trace
from services.agent.desired import domain
from services.agent.desired.applier import Applier, Overwritten
from services.agent.desired.domain import DesiredSet, Outcome
from services.agent.desired.kept import Kept, parse

_log = log.get(__name__)
_SERVICE = wire.DESCRIPTOR.services_by_name["DesiredStateService"]
FETCH = _SERVICE.methods_by_name["FetchDesiredState"]
_FETCH_SECONDS = 15.0
_FIRST_DELAY = 0.5
_MAX_DELAY = 60.0


class Link(Protocol):
    """The way to the hub."""

    async def call(self, method: MethodDescriptor, request: Message, *, timeout: float) -> Any:
        """The hub's answer; raises Faults, Unavailable while the tunnel is down."""
        ...


class Follower:
    """Keeps the cluster at the desired state.

    Attributes:
        outcome: of the last time that a set was applied.
        confirmation_needed: why something waits for a human; empty when nothing does.
        on_trust: told the hash of the CAs that the hub goes by.

    `patience` ends a pause of so many seconds with TimeoutError.
    """

    def __init__(
        self, link: Link, applier: Applier, kept: Kept, *, resync_seconds: float, accepted_hub_uid: str = "",
        on_outcome: Callable[[], None] = lambda: None,
        patience: Callable[[float], AbstractAsyncContextManager[object]] = asyncio.timeout,
    ) -> None:  # fmt: skip
        self.outcome = Outcome()
        self.confirmation_needed = ""
        self._link = link
        self._applier = applier
        self._kept = kept
        self._resync_seconds = resync_seconds
        self._accepted_hub_uid = accepted_hub_uid
        self.on_outcome = on_outcome
        self._patience = patience
        self.on_trust: Callable[[str], None] = lambda _: None
        self._wake = asyncio.Event()
        self._cause = ""
        self._failures = 0

    @property
    def applied_generation(self) -> int:
        """The last generation that was applied whole."""
        return self._kept.progress.applied_generation

    @property
    def paused(self) -> bool:
        """Whether the hub wants nothing to be done for now; remembered while it is away."""
        return self._kept.progress.paused

    @property
    def overwritten(self) -> Mapping[tuple[str, str], Overwritten]:
        """What other field managers had set and was put back lately, by kind and name."""
        return self._applier.overwritten

    @property
    def desired(self) -> DesiredSet | None:
        """The set taken last."""
        return self._kept.set

    def poke(self, traceparent: str = "") -> None:
        """Looks again now: a hint came (in the trace of a change), the tunnel is up, one of our objects was changed by others."""
        self._cause = traceparent or self._cause
        self._wake.set()

    async def run(self) -> None:
        """Never ends by itself."""
        while True:
            self._wake.clear()
            try:
                complete = await self.sync()
            except (Fault, ValueError) as error:
                _log.warning("desired.not_applied", problem=str(error))
                complete = False
            self._failures = 0 if complete else self._failures + 1
            try:
                async with self._patience(self._pause()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def sync(self) -> bool:
        """Fetches and applies once; whether nothing is left to do. Without the hub, what is kept is put right."""
        try:
            desired = await self._fetched()
        except Fault as fault:
            _log.info("desired.not_fetched", reason=fault.reason, problem=fault.message)
            if self._kept.set is not None:
                await self._applied(self._kept.set)
            return False
        if desired is None:
            self.on_outcome()
            return True  # refused: only a human can help, the next resync looks again
        return await self._applied(desired)

    async def _fetched(self) -> DesiredSet | None:
        """The set to apply; None when it is refused."""
        kept, progress = self._kept.set, self._kept.progress
        current = kept is not None and kept.generation == progress.applied_generation
        request = wire.FetchDesiredStateRequest()
        if current:
            request.known_generation, request.known_checksum = progress.applied_generation, progress.applied_checksum
        cause, self._cause = self._cause, ""
        with trace.span("desired.fetch", parent=cause or None, kind=trace.SpanKind.CLIENT):
            reply = await self._link.call(FETCH, request, timeout=_FETCH_SECONDS)
            if reply.unchanged and kept is not None and reply.hub_uid != kept.hub_uid:  # another hub's equal numbers mean nothing
                reply = await self._link.call(FETCH, wire.FetchDesiredStateRequest(), timeout=_FETCH_SECONDS)
        self.on_trust(reply.ca_bundle_hash)
        if reply.unchanged and kept is not None:
            self._kept.note(paused=reply.paused)
            return kept
        fetched = parse(reply)
        self.confirmation_needed = self.refusal(fetched)
        if self.confirmation_needed:
            _log.error("desired.refused", reason=self.confirmation_needed)
            if progress.refused_confirmed is None:
                self._kept.note(refused_confirmed=fetched.confirmed)
            return None
        if kept is not None and kept.hub_uid != fetched.hub_uid:
            self.outcome = Outcome()  # what became of the first hub's objects is not this one's
        return self._kept.take(reply)

    def refusal(self, fetched: DesiredSet) -> str:
        """Why a fetched set is not taken; empty when it is."""
        refused = self._kept.progress.refused_confirmed
        return domain.refusal(
            self._kept.set, fetched, accepted_hub_uid=self._accepted_hub_uid, refused_confirmed=refused,
            earlier_hubs=self._kept.earlier_hubs,
        )  # fmt: skip

    async def _applied(self, desired: DesiredSet) -> bool:
        if self.paused:
            _log.info("desired.paused", generation=desired.generation)
            self.on_outcome()
            return True
        outcome = await self._applier.bring(desired)
        self.outcome, self.confirmation_needed = outcome, outcome.confirmation_needed
        if outcome.complete:
            self._kept.note(applied_generation=desired.generation, applied_checksum=desired.checksum)
        if outcome.written or not outcome.complete:
            _log.info(
                "desired.applied", generation=desired.generation, written=outcome.written, failed=len(outcome.failures),
                removing=len(outcome.removing), confirmation_needed=outcome.confirmation_needed,
            )  # fmt: skip
        self.on_outcome()
        return not outcome.failures

    def _pause(self) -> float:
        if not self._failures:
            return self._resync_seconds * random.uniform(0.9, 1.1)  # noqa: S311 -- spreads the clusters' resyncs
        ceiling = min(_MAX_DELAY, self._resync_seconds, _FIRST_DELAY * 2 ** min(self._failures, 16))
        return random.uniform(ceiling / 2, ceiling)  # noqa: S311 -- jitter
