"""Parts of a report: statuses of a large cluster, in messages of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from kubegems.agent.v1 import desired_state_service_pb2 as wire

Key = tuple[str, str, str]  # kind, name, row uid
PART_BYTES = 256 * 1024  # of the statuses in a message, unless one alone is larger


def parts(statuses: Mapping[Key, bytes], *, whole: bool) -> Iterator[wire.ReportStatusRequest]:
    """Requests that together hold all statuses; of a whole picture each says of which range it is whole.

    What has the same kind and name is in one message.
    """
    after, taken, size = "", list[bytes](), 0
    last = ""
    for at, found in groupby(sorted(statuses, key=_at), key=_at):
        group = [statuses[key] for key in found]
        grown = sum(map(len, group))
        if taken and size + grown > PART_BYTES:
            yield _request(taken, wire.ReportStatusRequest.Part(after=after, until=last) if whole else None)
            after, taken, size = last, [], 0
        taken += group
        size, last = size + grown, at
    if whole and not after:
        yield _request(taken, None, full=True)
    else:
        yield _request(taken, wire.ReportStatusRequest.Part(after=after) if whole else None)


def _at(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _request(statuses: list[bytes], part: wire.ReportStatusRequest.Part | None, *, full: bool = False) -> wire.ReportStatusRequest:
    return wire.ReportStatusRequest(objects=map(wire.ObjectStatus.FromString, statuses), part=part, full=full)
