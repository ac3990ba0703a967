"""What the rules read: anything with named values."""

from __future__ import annotations

from typing import Any, Protocol


class Row(Protocol):
    """A row of the database, or a dict in its place."""

    def __getitem__(self, key: str, /) -> Any:
        """The value of a column."""
        ...
