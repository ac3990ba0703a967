"""Rules of a cluster's health: what is wrong, from what is known of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

EXPIRING_SHARE = 0.2  # of a certificate's life; agents renew at two thirds, so a fifth left means that renewals fail
EXPIRING_MOST = timedelta(days=7)
SLOW = 1.0  # seconds of round trip; calls of people become hard to bear
SKEWED = 120.0  # seconds between the clocks; the link bears ten minutes and more
HOLD = timedelta(seconds=15)  # that a better state must last before it is told; longer than from one look to the next
_RANKS = ("ONLINE", "DEGRADED", "OFFLINE")
MOST_SKEW = 1  # minor versions between hub and agent that are tested


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a cluster whose agent is connected.

    Attributes:
        confirmation_needed: why applying waits for a human.
        failed: objects that could not be applied.
        nodes, ready_nodes: as last counted.
        issued, expires: of the newest certificate.
        round_trip, clock_skew: seconds.
        agent, hub: versions.
        flapping: two agents push each other out.
    """

    confirmation_needed: str = ""
    failed: int = 0
    nodes: int = 0
    ready_nodes: int = 0
    issued: datetime | None = None
    expires: datetime | None = None
    round_trip: float | None = None
    clock_skew: float = 0.0
    agent: str = ""
    hub: str = ""
    flapping: bool = False


def problems(facts: Facts, now: datetime) -> Iterator[tuple[str, str]]:
    """Reason and message of each thing that is wrong, in a fixed order."""
    if facts.confirmation_needed:
        yield "CONFIRMATION_NEEDED", facts.confirmation_needed
    if facts.failed:
        yield "OBJECTS_FAILED", f"{facts.failed} objects of desired state cannot be applied"
    if facts.ready_nodes < facts.nodes:
        yield "NODES_NOT_READY", f"{facts.nodes - facts.ready_nodes} of {facts.nodes} nodes are not ready"
    if (left := expiring(facts.issued, facts.expires, now)) is not None:
        yield "CERTIFICATE_EXPIRING", f"the agent's certificate ends in {_about(left)} and was not renewed"
    if facts.round_trip is not None and facts.round_trip > SLOW:
        yield "SLOW_LINK", f"a round trip to the agent takes more than {SLOW:g} s"
    if abs(facts.clock_skew) > SKEWED:
        way = "ahead of" if facts.clock_skew > 0 else "behind"
        yield "CLOCK_SKEW", f"the cluster's clock is about {_about(timedelta(seconds=abs(facts.clock_skew)))} {way} the hub's"
    if abs(skew(facts.agent, facts.hub)) > MOST_SKEW:
        yield "AGENT_VERSION", f"agent {facts.agent} and hub {facts.hub} are more than one minor version apart"
    if facts.flapping:
        yield "FLAPPING", "two agents with this cluster's certificate push each other out"


def expiring(issued: datetime | None, expires: datetime | None, now: datetime) -> timedelta | None:
    """What is left of a certificate that should have been renewed by now; None when there is nothing to say."""
    if issued is None or expires is None:
        return None
    left = expires - now
    return left if left < min((expires - issued) * EXPIRING_SHARE, EXPIRING_MOST) else None


def skew(agent: str, hub: str) -> int:
    """Minor versions that an agent is behind the hub; 0 when either version cannot be read; a major version counts 100."""
    theirs, ours = _minor(agent), _minor(hub)
    return 0 if theirs is None or ours is None else ours - theirs


def state(*, leaving: bool, online: bool, seen: bool, joined: bool, wrong: bool) -> str:
    """A cluster's state; `clusters_store.STATE` says the same in SQL."""
    if leaving:
        return "DELETING"
    if online:
        return "DEGRADED" if wrong else "ONLINE"
    return "OFFLINE" if seen else "JOINING" if joined else "WAITING"


def better(told: str, told_reasons: Collection[str], found: str, reasons: Collection[str]) -> bool:
    """Whether what was found is better than what was told: only that must hold for a while, the rest is told at once."""
    if told not in _RANKS or found not in _RANKS:
        return False
    if told == found:
        return set(reasons) < set(told_reasons)
    return _RANKS.index(found) < _RANKS.index(told)


def merged(found: Sequence[tuple[str, str]], before: Sequence[Mapping[str, str]], now: datetime) -> list[dict[str, str]]:
    """The reasons to keep: one that was there before keeps its time."""
    since = {kept["reason"]: kept["since"] for kept in before}
    return [{"reason": reason, "message": message, "since": since.get(reason, now.isoformat())} for reason, message in found]


def _minor(version: str) -> int | None:
    major, _, rest = version.removeprefix("v").partition(".")
    minor = rest.partition(".")[0]
    return int(major) * 100 + int(minor) if major.isdecimal() and minor.isdecimal() else None


def _about(span: timedelta) -> str:
    """A span in its largest unit, so that a message does not change with every look."""
    seconds = max(span.total_seconds(), 0.0)
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds // 60)} minutes"
