"""When to try again: what may be tried, how long to wait, when the budget is spent."""

from __future__ import annotations

import random
from dataclasses import dataclass

from libs.faults import Code, Fault

_PASSING = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})


@dataclass(frozen=True, slots=True)
class Retries:
    """Waits double from `first` to `longest`, each drawn between half of it and all of it.

    Attributes:
        first: seconds before the second attempt.
        longest: seconds between two attempts at most.
        most: attempts of a unary call, the first one included; streams go on for ever.
    """

    first: float = 0.2
    longest: float = 10.0
    most: int = 6

    def pause(self, attempt: int, fault: Fault) -> float:
        """Seconds to wait after attempt number `attempt` (from 1) failed; never less than the hub asks for."""
        wait: float = min(self.longest, self.first * 2 ** min(attempt - 1, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 -- jitter
        asked = fault.retry_after.total_seconds() if fault.retry_after else 0.0
        return max(wait, asked)


def passing(fault: Fault) -> bool:
    """Whether a fault may be gone at the next attempt."""
    return fault.code in _PASSING
