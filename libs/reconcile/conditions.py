"""Conditions: facts in a status, with the time at which each last changed its answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Answer = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One fact: `type` holds or not, a machine word for why, a sentence for people.

    `counts` is False for a fact that people should see but that does not keep the object from being Ready.
    """

    type: str
    status: Answer
    reason: str
    message: str = ""
    counts: bool = True


def summed(conditions: Sequence[Condition]) -> Condition:
    """`Ready`: True when all that count are; else the reason and message of those that are not."""
    missing = [c for c in conditions if c.counts and c.status != "True"]
    if not missing:
        return Condition("Ready", "True", "AsWanted")
    answer: Answer = "False" if any(c.status == "False" for c in missing) else "Unknown"
    return Condition("Ready", answer, missing[0].reason, "; ".join(f"{c.type}: {c.message or c.reason}" for c in missing))


def merged(old: Sequence[Mapping[str, Any]], new: Iterable[Condition], *, now: str, generation: int) -> list[dict[str, Any]]:
    """The conditions as a status holds them; `lastTransitionTime` moves only where the answer changed."""
    before = {condition["type"]: condition for condition in old}
    found = []
    for condition in new:
        known = before.get(condition.type, {})
        same = known.get("status") == condition.status
        found.append({
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastTransitionTime": known.get("lastTransitionTime", now) if same else now,
            "observedGeneration": generation,
        })  # fmt: skip
    return found
