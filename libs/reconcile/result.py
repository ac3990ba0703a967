"""What a run of a key ends with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Done:
    """As wanted, as far as can be seen; the next change brings the key back."""


@dataclass(frozen=True, slots=True)
class Again:
    """Not yet as wanted, and nothing will tell: look again later. Not a failure, so delays do not grow."""

    after: timedelta


DONE = Done()
Result = Done | Again
