"""The seeded part of the chaos test that CI runs; `make chaos` is the large one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.jobs.rig import rig
from tests.chaos.jobs.story import Story

JOBS = 500
STRIKES = 24


@pytest.mark.timeout(600)
async def test_whatever_dies_each_effect_happens_once_and_no_job_is_lost(tmp_path: Path) -> None:
    """Workers, gateway, NATS (its unsynced tail too) and PostgreSQL are killed, messages doubled, clocks jump: the oracle holds."""
    async with rig(tmp_path / "rig", "ci 2") as made:
        story = Story(made, JOBS, STRIKES)
        await story.run()
        await story.end(within=180)
        counts = await story.check()
        print(made.deaths, dict(counts))
        for part in ("postgresql", "nats", "gateway", "worker-"):
            assert any(death.startswith(f"kill {part}") for death in made.deaths), f"the seed kills no {part}"
        assert {"lose tail", "duplicate", "jump"} <= set(made.deaths)
        assert {"SUCCEEDED", "FAILED", "CANCELLED", "DEAD"} <= set(counts)
