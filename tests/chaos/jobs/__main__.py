"""`make chaos`: 10,000 jobs under a shower of strikes. `--seed` repeats one; without it the seed is drawn and printed."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.jobs.rig import rig
from tests.chaos.jobs.story import Story


async def main(count: int, strikes: int, seed: str) -> None:
    """Tells the story and its end."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        async with rig(Path(folder), seed) as made:
            story = Story(made, count, strikes)
            await story.run()
            await story.end(within=60 + count / 5)
            counts = await story.check()
    print(f"seed {seed}: {count} jobs, {strikes} strikes, {time.monotonic() - begun:.0f} s, {dict(counts)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--strikes", type=int, default=120)
    parser.add_argument("--seed", default=secrets.token_hex(4))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    asyncio.run(main(arguments.jobs, arguments.strikes, arguments.seed))
    sys.exit(0)
