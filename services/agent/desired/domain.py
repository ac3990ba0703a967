"""Rules of desired state: when a set is refused, when removals wait, what of an object differs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

GENERATION = "gems.kubegems.io/generation"
UID = "gems.kubegems.io/uid"
HUB_UID = "gems.kubegems.io/hub-uid"
TRACEPARENT = "gems.kubegems.io/traceparent"
TOMBSTONE = "gems.kubegems.io/tombstone"
SPEC_CHECKSUM = "gems.kubegems.io/spec-checksum"

OWN_MARKS = frozenset({GENERATION, UID, HUB_UID, TRACEPARENT, SPEC_CHECKSUM})

_BRAKE_COUNT = 3
_BRAKE_SHARE = 0.2  # decisions.md 19

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An object that should be; `manifest` holds labels, annotations and spec."""

    kind: str
    name: str
    uid: str
    generation: int
    manifest: Mapping[str, Any]
    traceparent: str = ""

    @property
    def spec_checksum(self) -> str:
        """Short SHA-256 over the spec, to see when the hub changed it."""
        return hashlib.sha256(orjson.dumps(self.manifest.get("spec") or {}, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Buried:
    """An object that should go: only the one with this uid."""

    kind: str
    name: str
    uid: str
    generation: int
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class DesiredSet:
    """A whole set of one generation."""

    hub_uid: str
    generation: int
    checksum: str
    wanted: tuple[Wanted, ...] = ()
    buried: tuple[Buried, ...] = ()
    confirmed: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an object is not as wanted."""

    kind: str
    name: str
    uid: str
    generation: int
    reason: str
    message: str


@dataclass(slots=True)
class Outcome:
    """What became of applying a set.

    Attributes:
        failures: objects not as wanted, by kind and name.
        removed: tombstones whose object is gone.
        removing: tombstones whose object is still going, with what is known of why.
        confirmation_needed: why removals wait; empty when none does.
        written: objects written.
    """

    failures: dict[tuple[str, str], Failure] = field(default_factory=dict)
    removed: list[Buried] = field(default_factory=list)
    removing: dict[tuple[str, str], str] = field(default_factory=dict)
    confirmation_needed: str = ""
    written: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything was applied and nothing waits for a human."""
        return not self.failures and not self.confirmation_needed


def refusal(
    known: DesiredSet | None, fetched: DesiredSet, *, accepted_hub_uid: str, refused_confirmed: int | None,
    earlier_hubs: frozenset[str] = frozenset(),
) -> str:  # fmt: skip
    """Why a fetched set is not taken; empty when it is.

    Args:
        known: the set taken last.
        fetched: the set at hand.
        accepted_hub_uid: hub that an operator of this cluster has let take over.
        refused_confirmed: the confirmed generation at the first refusal of a lower one; a confirmation counts only after that.
        earlier_hubs: hubs that the cluster followed under other cluster uids; of them and not of generations a first set is judged.
    """
    if not fetched.hub_uid:
        return "the set names no hub"
    hubs = {known.hub_uid} if known is not None else earlier_hubs
    if hubs - {fetched.hub_uid}:
        return "" if fetched.hub_uid == accepted_hub_uid else _other_hub(hubs, fetched)
    if known is None or fetched.generation >= known.generation:
        return ""
    confirmed = refused_confirmed is not None and fetched.confirmed >= fetched.generation and fetched.confirmed != refused_confirmed
    return "" if confirmed else _older(known, fetched)


def _other_hub(hubs: Iterable[str], fetched: DesiredSet) -> str:
    return (
        f"hub {fetched.hub_uid} is not the one this cluster belongs to ({', '.join(sorted(hubs))}); "
        "to move the cluster set accepted_hub_uid of its agent"
    )


def _older(known: DesiredSet, fetched: DesiredSet) -> str:
    return (
        f"generation {fetched.generation} is older than {known.generation}, taken before; "
        f"confirm generation {fetched.generation} to go back"
    )


def brake(removals: Iterable[Buried], existing: int, confirmed: int) -> str:
    """Why unconfirmed removals wait; empty when they may go on.

    Args:
        removals: tombstones whose objects are still there and not yet being removed.
        existing: objects of the hub in the cluster.
        confirmed: greatest generation whose removals a human has confirmed.
    """
    open_ = [b for b in removals if b.generation > confirmed]
    limit = max(_BRAKE_COUNT, int(existing * _BRAKE_SHARE))
    if len(open_) <= limit:
        return ""
    generation = max(b.generation for b in open_)
    return f"{len(open_)} of {existing} objects are to be removed, more than {limit} at once; confirm generation {generation} to go on"


def annotations_of(live: Object) -> Mapping[str, str]:
    """The annotations of an object."""
    return live["metadata"].get("annotations") or {}


def covers(live: Any, wanted: Any) -> bool:
    """Whether all that is wanted is there; what others added, such as defaults, does not matter."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and covers(live[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(covers, live, wanted))
    return bool(live == wanted)


def foreign(live: Object, wanted: Wanted, hub_uid: str) -> tuple[str, str] | None:
    """Reason and message when the object there must not be touched; None when it is ours."""
    found = annotations_of(live)
    if HUB_UID not in found:
        return (
            "NOT_OURS",
            f"{wanted.kind} {wanted.name} exists and was not made by this hub; delete it, or annotate it with {HUB_UID} and {UID}",
        )
    if found[HUB_UID] != hub_uid:
        return "OTHER_HUB", f"{wanted.kind} {wanted.name} belongs to hub {found[HUB_UID]}"
    if found.get(UID) != wanted.uid:
        return "EARLIER_OBJECT", f"an earlier {wanted.kind} {wanted.name} is still there"
    if live["metadata"].get("deletionTimestamp"):
        return "BEING_DELETED", f"{wanted.kind} {wanted.name} is being deleted in the cluster; it will be made again"
    return None


def body(wanted: Wanted, live: Object | None, hub_uid: str, traceparent: str) -> Object | None:
    """What to apply; None when the object is as wanted.

    The trace annotation comes with a change of the spec by the hub, stays while the spec is untouched, and goes when
    the spec is only put right again, so that no later reconcile is taken for part of that trace.
    """
    annotations = {
        **(wanted.manifest.get("annotations") or {}),
        UID: wanted.uid,
        HUB_UID: hub_uid,
        GENERATION: str(wanted.generation),
        SPEC_CHECKSUM: wanted.spec_checksum,
    }
    labels, spec = wanted.manifest.get("labels") or {}, wanted.manifest.get("spec") or {}
    if live is not None:
        metadata, found = live["metadata"], annotations_of(live)
        spec_as_wanted = found.get(SPEC_CHECKSUM) == wanted.spec_checksum and covers(live.get("spec") or {}, spec)
        if spec_as_wanted and covers(found, annotations) and covers(metadata.get("labels") or {}, labels):
            return None
        if found.get(SPEC_CHECKSUM) == wanted.spec_checksum:
            traceparent = found.get(TRACEPARENT, "") if spec_as_wanted else ""
    if traceparent:
        annotations[TRACEPARENT] = traceparent
    return {"metadata": {"name": wanted.name, "labels": labels, "annotations": annotations}, "spec": spec}
