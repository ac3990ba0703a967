"""What `make doctor` shows of push: streams, who reads them, and what waits."""

from __future__ import annotations

from pathlib import Path

from libs.bus import Bus
from libs.bus.bus import StreamReport
from libs.bus.streams import CLUSTER_PREFIX, HUB
from libs.faults import Fault

_FULL = 0.9  # of a stream's bytes
_MUCH = 1000  # messages that wait for a consumer
_LASTING = {"NOTICES": ("msgbus-post", "msgbus"), "JOBS": ("workers", "worker")}  # stream → consumer that must be there, and whose it is


async def lines(nats_url: str, tls: tuple[Path, Path, Path], seed_file: Path) -> list[str]:
    """One line each; those that begin with `!` want a look.

    Args:
        nats_url: the broker's.
        tls: (certificate, key, CA) of a hub service.
        seed_file: that service's nkey seed.
    """
    bus = await Bus.connect(nats_url, name="doctor", tls=tls, nkey_seed_file=seed_file, patience=3.0)
    try:
        found = await bus.report()
    except Fault as fault:
        return [f"! NATS does not answer at {nats_url}: {fault}"]
    finally:
        await bus.close()
    missing = sorted({stream.name for stream in HUB} - {stream.name for stream in found})
    said = [line for stream in found for line in _stream(stream)]
    return [*said, *(f"! stream {name} is missing; the gateway makes it within half a minute" for name in missing)]


def _stream(stream: StreamReport) -> list[str]:
    """A stream, its consumers, and what is wrong with them."""
    clusters = stream.name.startswith(CLUSTER_PREFIX)
    full = stream.bytes / stream.most_bytes if stream.most_bytes > 0 else 0.0
    rings = (full > _FULL and not clusters) or stream.behind > _MUCH  # a cluster's stream forgets its oldest by design
    readers = f"{stream.readers} readers" + (f", the last {stream.behind} behind" if stream.readers else "")
    said = [f"{'!' if rings else ' '} {stream.name}: {stream.messages} messages, {full:.0%} full, {readers}"]
    if clusters and not stream.readers:
        said.append(f"!   nobody reads {stream.name}: is msgbus running?")
    for consumer in stream.consumers:
        mark = "!" if consumer.waiting > _MUCH else " "
        said.append(f"{mark}   {consumer.name}: {consumer.waiting} waiting, {consumer.handling} in hand, {consumer.repeated} came again")
    name, owner = _LASTING.get(stream.name, ("", ""))
    if name and name not in {consumer.name for consumer in stream.consumers}:
        said.append(f"!   consumer {name} of {stream.name} is missing: is the {owner} running?")
    return said
