"""`make chaos`: a hundred rounds of broken links. `--seed` repeats one; without it the seed is drawn and printed."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
import time
from pathlib import Path

from tests.chaos.link.network import within_namespaces
from tests.chaos.link.rig import rig
from tests.chaos.link.story import story


async def main(rounds: int, seed: str) -> None:
    """Tells the story and its figures."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        async with rig(Path(folder) / "stack") as made, story(made, Path(folder) / "home", seed) as told:
            await told.run(rounds)
    slowest, ended = max(told.away), max(told.ended)
    print(f"seed {seed}: {rounds} rounds, {time.monotonic() - begun:.0f} s; back within {slowest:.1f} s; revoked within {ended:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    arguments = parser.parse_args()
    within_namespaces()
    print(f"seed {arguments.seed}", flush=True)
    asyncio.run(main(arguments.rounds, arguments.seed))
