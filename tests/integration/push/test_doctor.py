"""What the doctor says of push."""

from __future__ import annotations

from deploy.local import doctor_push
from tests.integration.push.rig import Rig


async def test_streams_consumers_and_lag_are_shown(rig: Rig) -> None:
    """Each stream has a line, lasting consumers theirs; nothing is wrong here, and a missing stream is told."""
    said = await doctor_push.lines(rig.nats.url, rig.nats.tls(), rig.nats.seed_file())
    text = "\n".join(said)
    assert all(f" {name}: " in text for name in ("PLATFORM", "NOTICES", "JOBS")), text
    assert "msgbus-post: 0 waiting" in text
    assert not [line for line in said if line.startswith("!")]
    await rig.bus.delete_stream("JOBS")
    assert "! stream JOBS is missing; the gateway makes it within half a minute" in await doctor_push.lines(
        rig.nats.url, rig.nats.tls(), rig.nats.seed_file()
    )


async def test_a_broker_that_is_away_is_one_line(rig: Rig) -> None:
    """And no trace."""
    [line] = await doctor_push.lines("tls://127.0.0.1:1", rig.nats.tls(), rig.nats.seed_file())
    assert line.startswith("! NATS does not answer")
