"""Pages: keyset paging with signed tokens. A token is good only for the caller, method and query that it was made for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import orjson
from google.protobuf.message import Message

from libs.faults import Invalid
from libs.rpc.call import Call

R = TypeVar("R")
DEFAULT_SIZE = 50
MAX_SIZE = 500
_MAC = 16  # bytes; 128 bits cannot be guessed online
_MAX_TOKEN = 8192  # characters; five texts of 128 characters fit


class Pages:
    """Opens and closes pages for one hub; replicas share the key."""

    def __init__(self, key: bytes) -> None:
        self._key = hmac.digest(key, b"kubegems page tokens", "sha256")

    def open(
        self, call: Call, request: Any, *, order: Sequence[str] = ("name",), default: int = DEFAULT_SIZE, most: int = MAX_SIZE
    ) -> Page:
        """The page that a request asks for, by its `page_size` and `page_token`.

        Raises Invalid for a token that is malformed, forged, another caller's or another query's.
        """
        query = _query(call, request, order)
        size = min(request.page_size or default, most)
        return Page(self, query, tuple(order), size, self._read(request.page_token, query))

    def token(self, query: bytes, after: Sequence[Any]) -> str:
        """A token that continues behind a row's key."""
        body = orjson.dumps([_plain(v) for v in after])
        return base64.urlsafe_b64encode(self._mac(query, body) + body).rstrip(b"=").decode()

    def _read(self, token: str, query: bytes) -> tuple[Any, ...] | None:
        if not token:
            return None
        try:
            raw = base64.b64decode(token[:_MAX_TOKEN] + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error) as error:
            raise _refused() from error
        mac, body = raw[:_MAC], raw[_MAC:]
        if not hmac.compare_digest(mac, self._mac(query, body)):
            raise _refused()
        # what we signed is what we wrote: it needs no further checks, the order is part of `query`
        return tuple(_rich(v) for v in orjson.loads(body))

    def _mac(self, query: bytes, body: bytes) -> bytes:
        return hmac.digest(self._key, query + body, "sha256")[:_MAC]


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        size: rows to return.
        after: key of the last row of the page before; None at the start.
        order: names of the key's columns.
    """

    pages: Pages
    query: bytes
    order: tuple[str, ...]
    size: int
    after: tuple[Any, ...] | None

    @property
    def limit(self) -> int:
        """Rows to fetch: one more than to return, which tells whether there is a next page."""
        return self.size + 1

    def where(self, columns: Sequence[str], *, first_parameter: int, descending: bool = False) -> tuple[str, list[Any]]:
        """SQL condition and arguments that start behind the last page; `true` at the start.

        Args:
            columns: SQL expressions of the key, all in one direction, unique together; literals of ours.
            first_parameter: number of the first free `$n`.
            descending: whether the order is.
        """
        if self.after is None:
            return "true", []
        numbers = ", ".join(f"${first_parameter + i}" for i in range(len(columns)))
        return f"({', '.join(columns)}) {'<' if descending else '>'} ({numbers})", list(self.after)

    def close(self, rows: Sequence[R], key: Callable[[R], Any]) -> tuple[list[R], str]:
        """The rows to return and the next page's token, empty at the end.

        Args:
            rows: at most `limit` rows.
            key: a row's values of `order`: a tuple, or the value when it is one.
        """
        if len(rows) <= self.size:
            return list(rows), ""
        kept = list(rows[: self.size])
        last = key(kept[-1])
        return kept, self.pages.token(self.query, last if isinstance(last, tuple) else (last,))


def _refused() -> Invalid:
    return Invalid.one("page_token", "is not a token of this list, query and caller; start again without it")


def _query(call: Call, request: Message, order: Sequence[str]) -> bytes:
    bare = type(request)()
    bare.CopyFrom(request)
    bare.ClearField("page_token")
    bare.ClearField("page_size")
    parts = [call.method.path, call.caller.name, call.caller.uid, ",".join(order)]
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + bare.SerializeToString(deterministic=True)).digest()


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return {"t": value.isoformat()}
        case uuid.UUID():
            return {"u": str(value)}
        case str() | int() | None:
            return value
        case _:
            raise TypeError(f"{type(value).__name__} cannot be part of a page's key")


def _rich(value: Any) -> Any:
    match value:
        case {"t": text}:
            return datetime.fromisoformat(text)
        case {"u": text}:
            return uuid.UUID(text)
        case _:
            return value
