"""The seeded part of the link's chaos that CI runs; `make chaos` is the large one. `KUBEGEMS_CHAOS_SEED` repeats one."""

from __future__ import annotations

import asyncio
import os
import sys
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
    if os.geteuid():  # who is not root needs a user namespace, which a process with threads cannot enter
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.chaos.link", "--rounds", str(ROUNDS), "--seed", SEED)
        assert await process.wait() == 0
        return
    print(f"seed {SEED}")
    tmp_path.chmod(0o700)
    async with rig(tmp_path / "stack") as made, story(made, tmp_path / "home", SEED) as told:
        await told.run(ROUNDS)
        struck = " ".join(told.told)
        for name in NAMES:
            assert f"{name}: " in struck, f"the seed has no {name}"
        assert " and half-open: " in struck or " and cut: " in struck, "the seed breaks no link while a part is away"
