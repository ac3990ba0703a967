"""The seeded part of the link's chaos that CI runs; `make chaos` is the large one. `KUBEGEMS_CHAOS_SEED` repeats one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.link.actions import NAMES
from tests.chaos.link.rig import rig
from tests.chaos.link.story import story

ROUNDS = len(NAMES)  # each kind once
SEED = os.environ.get("KUBEGEMS_CHAOS_SEED", "ci 1")


@pytest.mark.cluster
@pytest.mark.timeout(720)
async def test_whatever_breaks_the_link_it_comes_back_whole(tmp_path: Path) -> None:
    """Nothing desired is lost, nobody is ever taken for another, revoked streams end in time, the agent comes back by itself."""
    print(f"seed {SEED}")
    tmp_path.chmod(0o700)
    async with rig(tmp_path / "stack") as made, story(made, tmp_path / "home", SEED) as told:
        await told.run(ROUNDS)
        struck = " ".join(told.told)
        for name in NAMES:
            assert f"{name}: " in struck, f"the seed has no {name}"
        assert " and half-open: " in struck or " and cut: " in struck, "the seed breaks no link while a part is away"
