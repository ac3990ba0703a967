"""How streams and connections end before their time."""

from __future__ import annotations

from enum import IntEnum


class Reset(IntEnum):
    """Why a stream was reset; the number on the wire."""

    DONE = 0  # the answer is complete, the rest of the request is not wanted
    CANCELLED = 1  # whoever asked went away
    REFUSED = 2  # too many streams, or an unknown purpose
    TOO_LARGE = 3  # a message over the limit
    BROKEN = 4  # the stream's bytes make no sense
    INTERNAL = 5  # a mistake of the peer's
    DEADLINE = 6  # time is up
    EXPIRED = 7  # the grant ended, or was taken away
    UPSTREAM = 8  # what the stream leads to broke off
    LOST = 9  # the tunnel behind the one that passes on is gone
    STOPPING = 10  # the hub's end is about to stop


class StreamEnded(Exception):
    """The stream cannot go on; base of the reasons."""


class Ended(StreamEnded):
    """The stream was reset, by the peer or by us."""

    def __init__(self, code: Reset, text: str) -> None:
        super().__init__(f"{code.name}: {text}" if text else code.name)
        self.code = code
        self.text = text


class TooLarge(StreamEnded):
    """A message is over the limit."""


class Lost(StreamEnded):
    """The connection under the stream is gone."""


class ProtocolBroken(Exception):
    """The peer breaks the protocol; the connection is dropped."""
