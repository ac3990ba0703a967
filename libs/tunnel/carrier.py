"""What the multiplexer asks of what carries its frames."""

from __future__ import annotations

from typing import Protocol


class Carrier(Protocol):
    """What carries the frames."""

    def write(self, content: bytes) -> None:
        """Sends bytes; says `pause()` to the multiplexer when its buffer is full."""
        ...

    def abort(self) -> None:
        """Drops the connection; `lost()` follows."""
        ...
