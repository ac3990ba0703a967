"""What `make doctor` shows of push: streams, who reads them, and what waits."""

from __future__ import annotations

from pathlib import Path

from libs.bus import Bus
from libs.bus.streams import CLUSTER_PREFIX, HUB
from libs.faults import Fault

_FULL = 0.9  # of a stream's bytes
_MUCH = 1000  # messages that wait for a consumer


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
    said = []
    for stream in found:
        full = stream.bytes / stream.most_bytes if stream.most_bytes > 0 else 0.0
        rings = full > _FULL and not stream.name.startswith(CLUSTER_PREFIX)  # a cluster's stream forgets its oldest by design
        said.append(f"{'!' if rings else ' '} {stream.name}: {stream.messages} messages, {full:.0%} full, {stream.readers} readers")
        for consumer in stream.consumers:
            mark = "!" if consumer.waiting > _MUCH else " "
            said.append(
                f"{mark}   {consumer.name}: {consumer.waiting} waiting, {consumer.handling} in hand, {consumer.repeated} came again"
            )
    missing = {stream.name for stream in HUB} - {stream.name for stream in found}
    return [*said, *(f"! stream {name} is missing; the gateway makes it within half a minute" for name in sorted(missing))]
