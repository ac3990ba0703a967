"""The body of a request, which stays on the wire until somebody asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol


class Body(Protocol):
    """What comes behind a request's headers. It is taken once, whole or in pieces."""

    async def whole(self, most: int) -> bytes:
        """All of it; raises 413 when it is larger than `most` bytes, 408 when it does not come, 415 when it is compressed."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """Piece by piece: no further one is taken off the wire before the last one was asked for. Raises 408 and 415."""
        ...
