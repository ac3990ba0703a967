"""Lists to their end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

Q = TypeVar("Q", bound=Message)


async def pages(method: Callable[..., Awaitable[Any]], request: Q, **options: Any) -> AsyncIterator[Any]:
    """Every item of a list, page by page; the request stays as it is.

    Args:
        method: a stub's `List…` method.
        request: what to list; its `page_size` is that of each page.
        options: passed on with each call, such as `timeout`.
    """
    ask = type(request)()
    ask.CopyFrom(request)
    while True:
        reply = await method(ask, **options)
        for item in getattr(reply, _items(reply)):
            yield item
        if not reply.next_page_token:
            return
        ask.page_token = reply.next_page_token  # type: ignore[attr-defined] # every list request has one


def _items(reply: Message) -> str:
    """The field that holds the page: the only repeated message."""
    (name,) = [f.name for f in reply.DESCRIPTOR.fields if f.is_repeated and f.message_type is not None]
    return str(name)
